"""Whose a stall was: the request's own span, and the one that was active; never one that was over before."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from typing import Any

import pytest
from opentelemetry import context as telemetry
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind

from loopguard.capture.requests import RequestTable
from loopguard.evidence import Look
from loopguard.explain.correlation import active_span, context_of, request_of

pytestmark = pytest.mark.core

sdk = pytest.importorskip("opentelemetry.sdk.trace")
OFFSET = time.time_ns() - time.monotonic_ns()
mine: ContextVar[str] = ContextVar("mine", default="")


async def serve() -> None:
    pass


class World:
    """A request that begins in a context, and a look at its code some time later."""

    def __init__(self) -> None:
        self.tracer = sdk.TracerProvider().get_tracer("test")
        self.context = copy_context()
        self.table = RequestTable()

    def open(self, kind: SpanKind = SpanKind.SERVER) -> Span:
        """A span, active from now on in the context."""
        span: Span = self.context.run(lambda: self.tracer.start_span("some", kind=kind))
        self.context.run(lambda: telemetry.attach(trace.set_span_in_context(span)))
        return span

    def look(self, then: Callable[[], object] = lambda: None) -> Look:
        """Begin a request, do that, and look."""
        time.sleep(0.001)
        coroutine: Any = serve()
        self.context.run(self.table.follower(), {"method": "GET"}, coroutine)
        time.sleep(0.001)
        then()
        request = self.table.of(self.context)
        coroutine.close()
        return Look(0, 0, None, (), context=self.context.copy(), request=request)


def ids(span: Span) -> tuple[str, str]:
    found = span.get_span_context()
    return trace.format_trace_id(found.trace_id), trace.format_span_id(found.span_id)


def told(look: Look) -> tuple[tuple[str | None, str | None], tuple[str | None, str | None]]:
    """The ids of the request's own span, and of the active one."""
    request = request_of(look, lambda _request, _context: None, OFFSET)
    assert request is not None
    return (request.trace_id, request.span_id), active_span(context_of(look, OFFSET))


def test_the_span_that_the_request_began_in_is_its_own_and_may_have_another_inside() -> None:
    world = World()
    own = world.open()
    inner: list[Span] = []
    look = world.look(lambda: inner.append(world.open(SpanKind.INTERNAL)))
    assert told(look) == (ids(own), ids(inner[0]))


def test_a_span_that_ended_since_is_still_its_own() -> None:
    """As in a background task, when the response is out."""
    world = World()
    own = world.open()
    look = world.look(own.end)
    assert told(look) == (ids(own), ids(own))


def test_a_span_that_was_over_before_is_neither_its_own_nor_active() -> None:
    """Of an upload before it on the same connection; all else in the context stays."""
    world = World()
    world.open().end()
    world.context.run(mine.set, "kept")
    look = world.look()
    assert told(look) == ((None, None), (None, None))
    assert context_of(look, OFFSET).get(mine) == "kept"


def test_a_server_span_that_was_opened_further_inside_is_its_own() -> None:
    """As by a framework's own middleware, behind `loopguard.wrap`."""
    world = World()
    opened: list[Span] = []
    look = world.look(lambda: opened.append(world.open()))
    assert told(look) == (ids(opened[0]), ids(opened[0]))


def test_any_other_span_that_was_opened_further_inside_is_not() -> None:
    world = World()
    opened: list[Span] = []
    look = world.look(lambda: opened.append(world.open(SpanKind.INTERNAL)))
    assert told(look) == ((None, None), ids(opened[0]))


def test_where_nothing_was_seen_the_context_is_empty() -> None:
    assert list(context_of(Look(0, 0, None, ()), OFFSET)) == list(Context())
