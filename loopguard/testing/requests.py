"""The requests to FastAPI's and Starlette's applications while tests run: a stall is told with its route."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextvars import Context, ContextVar
from typing import Any

from loopguard.capture.lifespan import Lifespan
from loopguard.capture.requests import RequestTable
from loopguard.evidence import ActiveRequest
from loopguard.explain.routes import route_template
from loopguard.integrations.served import in_place_of

_serving: ContextVar[Any] = ContextVar("loopguard_test_app")


class Requests:
    """Follows each request, whoever makes it (`TestClient`, `ASGITransport`, a server), as a `loopguard.apps.App`.

    By a wrapper around `Starlette.__call__`, once Starlette is imported: tests make applications by the hundred, and
    nothing is to stay in one, nor of it.
    """

    def __init__(self) -> None:
        self._entered: tuple[Any, Any, Any] | None = None

    def enter(
        self, requests: RequestTable, lifespan: Lifespan, trouble: Callable[[BaseException], None]
    ) -> None:
        module = sys.modules.get("starlette.applications")
        kind = getattr(module, "Starlette", None)
        if kind is not None:
            original = kind.__call__
            wrapper = in_place_of(original, _following(original, requests.follower(), trouble))
            self._entered = kind, original, wrapper
            kind.__call__ = wrapper

    def leave(self) -> None:
        """Put it back; where somebody has wrapped the wrapper since, it stays."""
        if self._entered is not None:
            kind, original, wrapper = self._entered
            if kind.__call__ is wrapper:
                kind.__call__ = original
            self._entered = None

    def packages(self) -> Iterable[str]:
        return ()

    def route(self, request: ActiveRequest, context: Context | None) -> str | None:
        app = None if context is None else context.get(_serving)
        return None if app is None else route_template(app.routes, request.scope)


def _following(
    original: Callable[..., Any],
    follow: Callable[[Any, Any], None],
    trouble: Callable[[BaseException], None],
) -> Callable[[Any, Any, Any, Any], Any]:
    def call(app: Any, scope: Any, receive: Any, send: Any) -> Any:
        coroutine = original(app, scope, receive, send)
        # The router has put itself into the scope of an application that is mounted in another.
        if scope["type"] != "lifespan" and "endpoint" not in scope:
            try:
                _serving.set(app)
                follow(scope, coroutine)
            except Exception as error:  # noqa: BLE001 - it is not the test's fault
                trouble(error)
        return coroutine

    return call
