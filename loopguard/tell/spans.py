"""The OpenTelemetry spans of a stall: its own, in the trace of the code that held the loop, and those of its delays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
)

from loopguard.record import Request, Stall
from loopguard.tell.attributes import Attributes, culprit_of, stack_of, valued
from loopguard.tell.delay_spans import DelaySpans, link_back
from loopguard.tell.interval import time_of, within
from loopguard.tell.printable import printable
from loopguard.tell.report import LateDelays, Report

SCOPE = "loopguard"
STALL = "event_loop.stall"

# How much later than the stall a span may seem to begin and still have been there: the moment when the loop
# came to the callback, and the one when the callback opened its span, are told by different clocks.
_TOLERANCE_NS = 5_000_000


class Spans:
    """A sink that sends one span a stall, with its true times, once it is over, and one for each request that it delayed.

    Without a `provider` the global one is asked at each stall, so it may be set late; where there is no SDK, nothing
    comes of it. No span but our own is ever written to.
    """

    def __init__(
        self, version: str | None = None, provider: trace.TracerProvider | None = None
    ) -> None:
        self._version = version
        self._provider = provider
        self._delays = DelaySpans()

    def __call__(self, report: Report) -> None:
        failures: list[Exception] = []
        place = _place(report)
        begin_ns, end_ns = within(report.started_ns, report.ended_ns, place.begin_ns, place.end_ns)
        tracer = self._tracer()
        span = tracer.start_span(
            STALL,
            context=place.context,
            kind=SpanKind.INTERNAL,
            attributes=_attributes(report) | _unsampled_request(report.stall, place.unsampled),
            start_time=begin_ns,
        )
        try:
            if report.stall.severity == "error":
                span.set_status(Status(StatusCode.ERROR, describe(report.stall)))
            sent = self._delays.send(
                tracer, report.stall, span.get_span_context(), report.delays, failures.append
            )
            if place.has_parent:
                link_back(span, sent)
        finally:
            span.end(end_time=end_ns)
        _raise_first(failures)

    def late(self, late: LateDelays) -> None:
        """Requests that began after the stall's own span was sent."""
        failures: list[Exception] = []
        self._delays.send_late(self._tracer(), late, failures.append)
        _raise_first(failures)

    def _tracer(self) -> trace.Tracer:
        return trace.get_tracer(SCOPE, self._version, self._provider)


def _raise_first(failures: Sequence[Exception]) -> None:
    """Have a failure counted and said, once all that could be sent has been."""
    if failures:
        raise failures[0]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a stall's span belongs: the context that holds its parent, and what is known of the parent's interval."""

    context: Context
    begin_ns: int | None = None
    end_ns: int | None = None
    unsampled: SpanContext | None = None

    @property
    def has_parent(self) -> bool:
        return trace.get_current_span(self.context).get_span_context().is_valid


def _place(report: Report) -> _Place:
    active = report.context.copy().run(trace.get_current_span)
    begin_ns, end_ns = time_of(active, "start_time"), time_of(active, "end_time")
    if begin_ns is not None and begin_ns - report.started_ns > _tolerance_ns(report):
        return _beside(active, begin_ns, end_ns, report)
    return _under(active, begin_ns, end_ns)


def _under(parent: Span, begin_ns: int | None, end_ns: int | None) -> _Place:
    # The context made here holds the parent and nothing else. Not the user's own: it may hold baggage, which other
    # people's processors copy onto spans, or ask that instrumentation be suppressed.
    found = parent.get_span_context()
    if not found.is_valid:
        return _Place(Context())
    if not found.trace_flags.sampled:
        return _Place(Context(), unsampled=found)
    return _Place(trace.set_span_in_context(parent, Context()), begin_ns, end_ns)


def _beside(late: Span, begin_ns: int, late_end_ns: int | None, report: Report) -> _Place:
    """The place of a stall in which the active span began in mid-stall: under that one's parent.

    The SDK tells the parent's ids, but not when it began and ended. So where the whole request began in mid-stall, its
    own span takes the stall: whatever lies between began then too.
    """
    parent, own = getattr(late, "parent", None), _own(report)
    if not isinstance(parent, SpanContext):
        # A request stays the owner of its stall, however long the system kept the thread from opening its span.
        is_own = own.get_span_context() == late.get_span_context()
        return _under(late, begin_ns, late_end_ns) if is_own else _Place(Context())
    own_begin_ns, own_end_ns = time_of(own, "start_time"), time_of(own, "end_time")
    in_same_trace = own.get_span_context().trace_id == parent.trace_id
    if in_same_trace and (
        own.get_span_context().span_id == parent.span_id or _in_mid_stall(own_begin_ns, report)
    ):
        return _under(own, own_begin_ns, own_end_ns)
    # The parent ended after its child did, and may have done so in the same moment.
    if late_end_ns is None or report.ended_ns - late_end_ns > _tolerance_ns(report):
        late_end_ns = own_end_ns if in_same_trace else None
    return _under(NonRecordingSpan(parent), None, late_end_ns)


def _own(report: Report) -> Span:
    """The request's own span; an invalid one where there is no request, or none of its own."""
    if report.request_context is None:
        return INVALID_SPAN
    return report.request_context.copy().run(trace.get_current_span)


def _in_mid_stall(begin_ns: int | None, report: Report) -> bool:
    return begin_ns is not None and begin_ns >= report.started_ns - report.error_ns


def _tolerance_ns(report: Report) -> int:
    return max(report.error_ns, _TOLERANCE_NS)


def describe(stall: Stall) -> str:
    """The stall in one line: `event loop blocked 400 ms by time.sleep at app/users.py:42`.

    Where nothing was called, the cause stands in its place: `event loop blocked 400 ms (cpu) at app/users.py:42`.
    """
    words = [f"event loop blocked {stall.duration * 1000:.0f} ms"]
    words.append(f"by {stall.call}" if stall.call else f"({stall.cause})")
    if stall.culprit:
        line = "" if stall.culprit.line is None else f":{stall.culprit.line}"
        words.append(f"at {stall.culprit.file}{line}")
    return printable(" ".join(words))


def _attributes(report: Report) -> Attributes:
    stall = report.stall
    return {
        **stack_of(stall),
        **culprit_of(stall),
        **valued(
            {
                "thread.id": report.thread_id,
                "thread.name": stall.thread,
                "loopguard.stall.id": stall.id,
                "loopguard.stall.fingerprint": stall.fingerprint,
                "loopguard.stall.cause": stall.cause,
                "loopguard.stall.severity": stall.severity,
                "loopguard.stall.budget": stall.budget,
                "loopguard.stall.duration": stall.duration,
                "loopguard.stall.cpu_time": stall.cpu_time,
                "loopguard.stall.gc_time": stall.gc_time,
                "loopguard.stall.call": stall.call,
                "loopguard.stall.waited_on": stall.waited_on,
                "loopguard.stall.samples": stall.samples,
                "loopguard.stall.confidence": stall.confidence,
                "loopguard.stall.delayed_requests": stall.delayed_requests,
                "loopguard.stall.suppressed": stall.suppressed,
                "loopguard.task.name": stall.task,
            }
        ),
        **_request(stall.request),
    }


def _request(request: Request | None) -> Attributes:
    if request is None:
        return {}
    return valued({"http.route": request.route, "http.request.method": request.method})


def _unsampled_request(stall: Stall, unsampled: SpanContext | None) -> Attributes:
    """Where a stall in an unsampled trace belongs: its span is a root, and this is what is left of the way back."""
    if unsampled is None:
        return {}
    request = stall.request
    if request and request.trace_id and request.span_id:
        trace_id, span_id = request.trace_id, request.span_id
    else:
        trace_id = trace.format_trace_id(unsampled.trace_id)
        span_id = trace.format_span_id(unsampled.span_id)
    return {"loopguard.request.trace_id": trace_id, "loopguard.request.span_id": span_id}
