"""Records to test with: a plausible stall, of which each test changes what it is about."""

from __future__ import annotations

from contextvars import Context
from dataclasses import replace
from typing import Any

from opentelemetry.trace import INVALID_SPAN

from loopguard.evidence import StoodStill
from loopguard.record import Delayed, Frame, Process, Request, Stall
from loopguard.tell.report import Report

STARTED_NS = 1_700_000_000_000_000_000
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"

CULPRIT = Frame(
    file="app/users.py",
    line=42,
    module="app.users",
    function="list_users",
    code="time.sleep(0.4)",
    library=False,
)
LIBRARY = Frame(
    file="starlette/routing.py",
    line=7,
    module="starlette.routing",
    function="Route.handle",
    code="await self.app(scope, receive, send)",
    library=True,
)
REQUEST = Request(
    method="GET",
    route="/v1/users/{id}",
    trace_id=TRACE_ID,
    span_id=SPAN_ID,
    started_at=STARTED_NS / 1e9 - 0.01,
    background=False,
)
PROCESS = Process(
    instance="5f9c",
    host="web-1",
    service="shop",
    version="1.2",
    started_at=STARTED_NS / 1e9 - 60,
    loop_seconds=60.0,
    requests=17,
)
STALL = Stall(
    id="00112233445566778899aabbccddeeff",
    started_at=STARTED_NS / 1e9,
    duration=0.4,
    duration_error=0.001,
    budget=0.1,
    severity="warning",
    ongoing=False,
    phase="serving",
    cause="blocking_call",
    culprit=CULPRIT,
    call="time.sleep",
    waited_on="clock_nanosleep",
    holder=None,
    stack=(LIBRARY, LIBRARY, CULPRIT),
    samples=5,
    confidence=1.0,
    phases=None,
    cpu_time=0.0123456789,
    gc_time=0.0,
    task="Task-7",
    coroutine="RequestResponseCycle.run_asgi",
    contributors=None,
    request=REQUEST,
    trace_id=TRACE_ID,
    span_id=SPAN_ID,
    delayed=None,
    delayed_requests=None,
    delayed_complete=None,
    in_flight=3,
    open_connections=0,
    advice="await asyncio.sleep(…) instead",
    fingerprint="c0ffee",
    suppressed=0,
    profile=None,
    pid=4711,
    thread="MainThread",
    loop="uvloop.Loop",
    process=PROCESS,
)


def make_stall(**changes: Any) -> Stall:
    """A request's `time.sleep(0.4)`, but for what is changed."""
    return replace(STALL, **changes)


def make_report(
    stall: Stall = STALL,
    *,
    context: Context | None = None,
    started_ns: int = STARTED_NS,
    ended_ns: int | None = None,
    error_ns: int = 1_000_000,
    allowed: bool = True,
    request_context: Context | None = None,
) -> Report:
    """A report of the stall, in an empty context unless one is given; it ends when its duration is over."""
    return Report(
        stall=stall,
        context=Context() if context is None else context,
        started_ns=started_ns,
        ended_ns=started_ns + round(stall.duration * 1e9) if ended_ns is None else ended_ns,
        error_ns=error_ns,
        allowed=allowed,
        request_context=request_context,
        delays=tuple(_stood_still(each) for each in stall.delayed or ()),
    )


def _stood_still(told: Delayed) -> StoodStill:
    return StoodStill(told, INVALID_SPAN, STARTED_NS, STARTED_NS + 1, object())
