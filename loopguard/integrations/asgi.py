"""The ASGI layer: notes each request as it begins, inside whatever opens its span."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context
from types import MethodType
from typing import Any, Protocol, cast

from loopguard.capture.lifespan import Lifespan, Receive, Send, runs_lifespan
from loopguard.capture.requests import RequestTable
from loopguard.capture.variables import local
from loopguard.config import ConfigError
from loopguard.evidence import ActiveRequest, Scope
from loopguard.explain.routes import flat, path_of, route_template, rule_in

ASGIApp = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]

_FRAMEWORKS = {
    "blacksheep",
    "django",
    "falcon",
    "fastapi",
    "litestar",
    "quart",
    "sanic",
    "starlette",
}


Around = Callable[[ASGIApp], ASGIApp]


class Layer(Protocol):
    """The application `app` with its requests followed, until `retire()` is called."""

    app: ASGIApp
    retire: Callable[[], None]

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]: ...


def layer_around(
    app: ASGIApp,
    requests: RequestTable,
    lifespan: Lifespan,
    trouble: Callable[[BaseException], None],
    around: Around | None = None,
) -> Layer:
    """A plain function that hands on the coroutine of the application inside it, and follows that.

    Not a coroutine function: a further coroutine around each request costs more than all the rest. So it can only
    serve inside a Starlette stack, which calls it without asking for its kind. Nor an object with `__call__`, which
    costs more to call (`benchmarks/overhead.py`). Only shortly after a stall is a request asked when its data came: what
    begins it is exchanged for that time, so that no other request pays for it.

    `around` puts something else around the application, inside of this layer.
    """
    follow = requests.follower()
    inner = app if around is None else around(app)
    retired = False
    begin = inner

    def begin_asked(scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        coroutine = inner(scope, receive, send)
        try:
            requests.arrivals.note(scope, receive, coroutine)
        except Exception as error:
            trouble(error)
        return coroutine

    def ask(asked: bool) -> None:
        nonlocal begin
        begin = begin_asked if asked else inner

    def layer(scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        if retired:
            return app(scope, receive, send)
        if scope["type"] == "lifespan":
            return lifespan.run(app, scope, receive, send)
        coroutine = begin(scope, receive, send)
        try:
            follow(scope, coroutine)
        except Exception as error:
            trouble(error)
        return coroutine

    def retire() -> None:
        nonlocal retired
        retired = True
        requests.arrivals.leave(ask)

    requests.arrivals.enter(ask)
    followed = cast(Layer, layer)
    followed.app, followed.retire = app, retire
    return followed


class StarletteApp:
    """A FastAPI or Starlette application, with our layer put in and taken out again.

    Raises:
        ConfigError: `app` is no such application.
    """

    def __init__(self, app: Any, around: Around | None = None) -> None:
        if not callable(getattr(app, "build_middleware_stack", None)) or not hasattr(app, "router"):
            raise ConfigError(
                f"app={type(app).__module__}.{type(app).__qualname__} (from argument app): must be a FastAPI or "
                "Starlette application; any other ASGI application is served as loopguard.wrap(app)"
            )
        self.app = app
        self._around = around
        self._holders: list[tuple[Any, Layer]] = []
        self._patch: Any = None
        self._replaced: Any = None

    def enter(
        self, requests: RequestTable, lifespan: Lifespan, trouble: Callable[[BaseException], None]
    ) -> None:
        """Put the layer in: into the chain of middleware if it is built already, else as it is built."""

        def around(inner: ASGIApp) -> Layer:
            return layer_around(inner, requests, lifespan, trouble, self._around)

        app = self.app
        if app.middleware_stack is not None:
            app.middleware_stack = self._put_into(app.middleware_stack, around)
            _join(lifespan)
            return
        build = app.build_middleware_stack

        def build_middleware_stack(_app: Any) -> Any:
            stack = build()
            if self._patch is None:
                return stack
            if vars(app).get("build_middleware_stack") is not self._patch:
                return self._put_in_later(stack, around)
            return self._put_into(stack, around)

        self._replaced = vars(app).get("build_middleware_stack")
        self._patch = MethodType(build_middleware_stack, app)
        app.build_middleware_stack = self._patch

    def _put_into(self, stack: Any, around: Callable[[ASGIApp], Layer]) -> Any:
        """Around all of it, Starlette's error handling too; but inside of what opens the request's span."""
        telemetry = _telemetry_in(stack)
        layer = around(stack if telemetry is None else telemetry.app)
        self._holders.append((telemetry, layer))
        if telemetry is None:
            return layer
        telemetry.app = layer
        return stack

    def _put_in_later(self, stack: Any, around: Callable[[ASGIApp], Layer]) -> Any:
        """Somebody builds further on this stack, and wants to find Starlette's own middleware at its outside.

        Its first call, mostly that of the lifespan, comes when all is built: then the layer goes to its place.
        """
        if not hasattr(stack, "app"):
            return self._put_into(stack, around)
        inner = around(stack.app)
        self._holders.append((stack, inner))

        async def first(scope: Scope, receive: Receive, send: Send) -> None:
            holder = _holder_of(self.app.middleware_stack, placeholder)
            if holder is not None:
                holder.app = inner.app
                if self._patch is not None:
                    self.app.middleware_stack = self._put_into(self.app.middleware_stack, around)
            await inner(scope, receive, send)

        placeholder = cast(Any, first)
        placeholder.app = inner.app
        stack.app = placeholder
        return stack

    def leave(self) -> None:
        """Take the layer out. Where somebody wrapped it since, it stays in place and does nothing."""
        for holder, layer in self._holders:
            layer.retire()
            if holder is not None and holder.app is layer:
                holder.app = layer.app
            elif holder is None and self.app.middleware_stack is layer:
                self.app.middleware_stack = layer.app
        self._holders.clear()
        if self._patch is not None and vars(self.app).get("build_middleware_stack") is self._patch:
            if self._replaced is None:
                del self.app.build_middleware_stack
            else:
                self.app.build_middleware_stack = self._replaced
        self._patch = self._replaced = None

    def packages(self) -> set[str]:
        """The top-level packages of the application and of its endpoints."""
        modules = {
            type(self.app).__module__,
            *(_module(endpoint) for endpoint in _endpoints(self.app.routes)),
        }
        return (
            {module.partition(".")[0] for module in modules if module}
            - _FRAMEWORKS
            - {"builtins", "functools"}
        )

    def route(self, request: ActiveRequest, context: Context | None) -> str | None:
        return route_template(self.app.routes, request.scope)


class WrappedApp:
    """Any ASGI 3 application, served through this object: `loopguard.wrap(app)`.

    Raises:
        ConfigError: `app` cannot be called.
    """

    def __init__(self, app: Any, around: Around | None = None) -> None:
        if not callable(app):
            raise ConfigError(
                f"app={type(app).__qualname__} (from argument app): must be an ASGI 3 application"
            )
        self.app = app
        self._around = around
        self._layer: Layer | None = None
        self._telemetry: Any = None

    # A coroutine function, by which servers tell ASGI 3 from ASGI 2.
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._layer is None or self._telemetry is not None:
            await self.app(scope, receive, send)
        else:
            await self._layer(scope, receive, send)

    def enter(
        self,
        requests: RequestTable,
        lifespan: Lifespan,
        trouble: Callable[[BaseException], None],
    ) -> None:
        self._telemetry = _telemetry_in(self.app)
        if self._telemetry is None:
            self._layer = layer_around(self.app, requests, lifespan, trouble, self._around)
            return
        self._layer = layer_around(self._telemetry.app, requests, lifespan, trouble, self._around)
        self._telemetry.app = self._layer

    def leave(self) -> None:
        layer, self._layer = self._layer, None
        if layer is None or self._telemetry is None:
            return
        layer.retire()
        if self._telemetry.app is layer:
            self._telemetry.app = layer.app

    def packages(self) -> set[str]:
        """The top-level package of the application, where that is no framework's own class."""
        return {_module(self.app).partition(".")[0]} - _FRAMEWORKS - {""}

    def route(self, request: ActiveRequest, context: Context | None) -> str | None:
        return path_of(request.scope) or (None if context is None else rule_in(context))


def _join(lifespan: Lifespan) -> None:
    """Follow the application's lifespan, if that is where we are called from."""
    inner, frame = None, sys._getframe()
    while not runs_lifespan(frame):
        if frame.f_back is None:
            return
        inner, frame = frame, frame.f_back
    task = asyncio.current_task()
    if task is None:
        return
    # Starlette enters a context manager: `__aenter__` was called on that.
    entering = inner is not None and inner.f_code.co_name == "__aenter__"
    manager = local(inner, inner.f_code.co_varnames[0]) if inner and entering else None
    lifespan.join(task, manager)


def _telemetry_in(stack: Any) -> Any:
    """The middleware of OpenTelemetry's instrumentor in the chain: only inside it is the request's span known."""
    for middleware in _chain(stack):
        kind = type(middleware)
        if kind.__name__ == "OpenTelemetryMiddleware" and kind.__module__.startswith(
            "opentelemetry."
        ):
            return middleware
    return None


def _holder_of(stack: Any, app: Any) -> Any:
    """The middleware in the chain that has `app` inside."""
    return next((each for each in _chain(stack) if getattr(each, "app", None) is app), None)


def _chain(stack: Any) -> Iterable[Any]:
    """A stack of middleware, from its outside inwards."""
    seen: set[int] = set()
    while stack is not None and id(stack) not in seen:
        seen.add(id(stack))
        yield stack
        stack = getattr(stack, "app", None)


def _endpoints(routes: Iterable[Any]) -> Iterable[Any]:
    for route in flat(routes):
        inner = getattr(route, "routes", None)
        if inner:
            yield from _endpoints(inner)
        else:
            yield getattr(route, "endpoint", None)


def _module(endpoint: Any) -> str:
    while hasattr(endpoint, "__wrapped__"):
        endpoint = endpoint.__wrapped__
    return getattr(endpoint, "__module__", None) or ""
