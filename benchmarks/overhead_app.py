"""What the overhead benchmark runs: small apps, a server to drive them, and loops to run them on."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import copy_context
from typing import Annotated, Any, TextIO

import structlog
import uvloop
from fastapi import Depends, FastAPI, Header
from opentelemetry import context, metrics, trace
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

IN_FLIGHT = 20


# The apps: a route as people write them, with a path parameter, a dependency and a JSON answer.


class User(BaseModel):
    name: str
    admin: bool


class Order(BaseModel):
    id: int
    owner: str
    items: list[str]
    paid: bool


async def current_user(authorization: Annotated[str, Header()]) -> User:
    await asyncio.sleep(0)  # one turn of the loop, in place of a look into a database
    return User(name=authorization.removeprefix("Bearer "), admin=False)


async def show_order(order_id: int, user: Annotated[User, Depends(current_user)]) -> Order:
    await asyncio.sleep(0)
    return Order(id=order_id, owner=user.name, items=["tea", "milk", "sugar"], paid=True)


def make_plain() -> FastAPI:
    app = FastAPI()
    app.get("/orders/{order_id}")(show_order)
    return app


def make_traced() -> FastAPI:
    """The same as our users run it: each request has spans, which are batched for an exporter that does nothing."""
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import (
        BatchSpanProcessor,
        SpanExporter,
        SpanExportResult,
    )

    class Nowhere(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    # A queue that never overflows: at full load its thread is late, and to drop a span costs less than to queue it.
    provider.add_span_processor(BatchSpanProcessor(Nowhere(), max_queue_size=1_000_000))
    trace.set_tracer_provider(provider)
    app = make_plain()
    FastAPIInstrumentor.instrument_app(app)
    return app


class AnswersAtOnce:
    """An ASGI app in the guise of a middleware, so that little stands around the layer under test."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def make_shell() -> Starlette:
    return Starlette(middleware=[Middleware(AnswersAtOnce)])


APPS: dict[str, Callable[[], Starlette]] = {
    "plain": make_plain,
    "traced": make_traced,
    "shell": make_shell,
}


# The server: what uvicorn does for each request, without a socket and a parser.


class Exchange:
    """One request of a client and the app's answer to it."""

    __slots__ = ("scope", "status")

    def __init__(self, number: int, state: dict[str, Any]) -> None:
        path = f"/orders/{number}"
        self.status = 0
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 50000),
            "scheme": "http",
            "root_path": "",
            "headers": [(b"host", b"shop"), (b"authorization", b"Bearer me"), (b"accept", b"*/*")],
            "state": state.copy(),
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
        }

    async def receive(self) -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]

    async def run(self, app: ASGIApp) -> None:
        await app(self.scope, self.receive, self.send)
        if self.status != 200:
            raise RuntimeError(f"the app answered {self.status}")


class Server:
    """Drives an ASGI app as a server does: lifespan, connections, a task for each request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.state: dict[str, Any] = {}

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        told: asyncio.Queue[Message] = asyncio.Queue()
        answered: asyncio.Queue[Message] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": self.state}
        running = asyncio.ensure_future(self.app(scope, told.get, answered.put))
        await told.put({"type": "lifespan.startup"})
        if (answer := await answered.get())["type"] != "lifespan.startup.complete":
            raise RuntimeError(f"the app did not start: {answer}")
        yield
        await told.put({"type": "lifespan.shutdown"})
        await running

    async def serve(self, requests: int) -> None:
        """Answer so many requests, 20 at a time."""
        numbers = iter(range(requests))
        await asyncio.gather(*(self._connection(numbers) for _ in range(min(IN_FLIGHT, requests))))

    async def _connection(self, numbers: Iterator[int]) -> None:
        """Answer one request after another: each in a task, so in its own copy of the connection's context.

        Being woken by the end of the task stands for the next request's data coming in.
        """
        for number in numbers:
            await asyncio.create_task(Exchange(number, self.state).run(self.app))

    def call(self, times: int) -> None:
        """Call the app and nothing else, one request like the other, each in a context of its own as in a task."""
        exchange = Exchange(0, self.state)
        app, scope, receive, send = self.app, exchange.scope, exchange.receive, exchange.send
        for _ in range(times):
            copy_context().run(_finish, app, scope, receive, send)


def _finish(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run an app that never waits."""
    with suppress(StopIteration):
        app(scope, receive, send).__await__().__next__()


# The process around them.


def new_runner(loop: str) -> asyncio.Runner:
    return asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None)


def use_what_everybody_uses() -> None:
    """Load structlog and OpenTelemetry as any app with logs and traces does: neither is loopguard's cost."""
    structlog.wrap_logger(structlog.PrintLogger(sys.stderr)).info("ready")
    with trace.get_tracer("benchmark").start_as_current_span("ready"):
        context.get_current()
    metrics.get_meter("benchmark").create_counter("ready").add(1)


@contextmanager
def output_of_its_own() -> Iterator[TextIO]:
    """Give the result standard output to itself: whatever else is printed there is a complaint."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as result:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        yield result
