"""A hundred thousand requests, however they end, leave nothing of loopguard's behind: no request, context or span."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from types import CoroutineType
from typing import Any

import pytest
from opentelemetry import context as telemetry
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

import loopguard
from tests.real.conftest import LOOPS

REQUESTS = 100_000
AT_ONCE = 50
KINDS = ("plain", "waits", "fails", "cancelled", "socket")


class Scope(dict[str, Any]):
    """A scope that can be watched as it goes."""

    __slots__ = ("__weakref__",)
    __hash__ = object.__hash__  # type: ignore[assignment]


async def plain(_request: Any) -> PlainTextResponse:
    return PlainTextResponse("ok")


async def waits(_request: Any) -> PlainTextResponse:
    await asyncio.sleep(0)
    return PlainTextResponse("ok")


async def fails(_request: Any) -> PlainTextResponse:
    raise LookupError


async def cancelled(_request: Any) -> PlainTextResponse:
    await asyncio.Event().wait()
    return PlainTextResponse("never")


async def blocks(_request: Any) -> PlainTextResponse:
    time.sleep(0.3)
    return PlainTextResponse("late")


async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.receive_text()
    await websocket.close()


def application() -> Starlette:
    endpoints = (plain, waits, fails, cancelled, blocks)
    routes = [Route(f"/{endpoint.__name__}/{{item}}", endpoint) for endpoint in endpoints]
    return Starlette(routes=[*routes, WebSocketRoute("/socket/{item}", socket)])


def scope_of(kind: str, number: int) -> Scope:
    websocket = kind == "socket"
    scope = Scope(
        type="websocket" if websocket else "http",
        path=f"/{kind}/{number}",
        root_path="",
        headers=[],
        query_string=b"",
    )
    if not websocket:
        scope["method"] = "GET"
    return scope


async def ask(app: Any, scope: Scope) -> None:
    """As a server does it: each request in a task of its own."""
    first = "websocket.connect" if scope["type"] == "websocket" else "http.request"
    messages: Iterator[dict[str, Any]] = iter(
        [{"type": first}, {"type": "websocket.receive", "text": "hello"}]
    )

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(_message: Any) -> None:
        pass

    with suppress(LookupError):
        await app(scope, receive, send)


def run(loop: str, main: Coroutine[Any, Any, None]) -> None:
    if loop == "uvloop":
        import uvloop

        uvloop.run(main)
    else:
        asyncio.run(main)


async def drive(app: Any, kinds: tuple[str, ...], watch: Callable[[Scope], None]) -> None:
    """All requests, `AT_ONCE` of them at a time; those that wait for ever are cancelled."""
    for first in range(0, REQUESTS, AT_ONCE):
        tasks = []
        for number in range(first, first + AT_ONCE):
            scope = scope_of(kinds[number % len(kinds)], number)
            watch(scope)
            tasks.append(asyncio.create_task(ask(app, scope)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for task, number in zip(tasks, range(first, first + AT_ONCE), strict=True):
            if kinds[number % len(kinds)] == "cancelled":
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_hundred_thousand_requests_leave_nothing_in_the_table(loop: str) -> None:
    """Served, failed, cancelled, and WebSockets; a stall among them, which keeps its request while it is told."""
    gone = 0
    watched: set[weakref.ref[Scope]] = set()

    def forget(reference: weakref.ref[Scope]) -> None:
        nonlocal gone
        gone += 1
        watched.discard(reference)

    app = application()
    guard = loopguard.install(app, log=False)

    async def main() -> None:
        await drive(app, KINDS, lambda scope: watched.add(weakref.ref(scope, forget)))
        scope = scope_of("blocks", 0)
        watched.add(weakref.ref(scope, forget))
        await asyncio.create_task(ask(app, scope))
        assert guard.stats()["in_flight"] == 0

    run(loop, main())
    assert guard.flush(5)
    gc.collect()
    assert guard.stats()["in_flight"] == 0
    (stall,) = [stall for stall in guard.stalls if stall.call == "time.sleep"]
    assert stall.request is not None
    assert stall.request.route == "/blocks/{item}"
    assert stall.process.requests >= REQUESTS
    assert (gone, watched) == (REQUESTS + 1, set())
    assert [each for each in gc.get_objects() if type(each) is Scope] == []
    assert [
        each
        for each in gc.get_objects()
        if isinstance(each, CoroutineType) and "/loopguard/" in each.cr_code.co_filename
    ] == []


class Spans(SpanProcessor):
    """Counts spans as they start and end, and sees which of them are still alive."""

    def __init__(self) -> None:
        self.started = 0
        self.ended = 0
        self.alive: weakref.WeakSet[Span] = weakref.WeakSet()
        self.names: set[str] = set()

    def on_start(self, span: Span, parent_context: Any = None) -> None:
        self.started += 1
        self.alive.add(span)

    def on_end(self, span: ReadableSpan) -> None:
        self.ended += 1
        self.names.add(span.name)


@pytest.mark.parametrize("loop", LOOPS)
def test_no_span_is_left_open_or_kept_alive(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither those of the requests nor our own, however many stalls there were."""
    spans = Spans()
    provider = TracerProvider(sampler=ALWAYS_ON)
    provider.add_span_processor(spans)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    tracer = provider.get_tracer(__name__)
    app = application()
    guard = loopguard.install(app, budget=0.02, log=False)

    async def traced(number: int) -> None:
        with tracer.start_as_current_span("request"):
            await ask(app, scope_of("blocks" if number % 100 == 0 else KINDS[number % 3], number))

    async def main() -> None:
        for first in range(0, 1000, AT_ONCE):
            numbers = range(first, first + AT_ONCE)
            await asyncio.gather(*(asyncio.create_task(traced(number)) for number in numbers))

    run(loop, main())
    assert guard.flush(5)
    assert guard.stats()["stalls"] >= 10
    gc.collect()
    assert "event_loop.stall" in spans.names
    assert spans.started == spans.ended
    assert list(spans.alive) == []
    assert trace.get_current_span(telemetry.get_current()) is trace.INVALID_SPAN
