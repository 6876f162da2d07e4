"""The OpenTelemetry span of a stall, in the trace of the code that held the loop."""

from __future__ import annotations

import math
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
from loopguard.tell.printable import printable
from loopguard.tell.report import Report
from loopguard.tell.stacktrace import stack_lines

SCOPE = "loopguard"
STALL = "event_loop.stall"

# How much later than the stall a span may seem to begin and still have been there: the moment when the loop
# came to the callback, and the one when the callback opened its span, are told by different clocks.
_TOLERANCE_NS = 5_000_000

_Attributes = dict[str, str | int | float]


class Spans:
    """A sink that sends one span a stall, with its true times, once it is over.

    Without a `provider` the global one is asked at each stall, so it may be set late; where there is no SDK, nothing
    comes of it. No span but our own is ever written to.
    """

    def __init__(
        self, version: str | None = None, provider: trace.TracerProvider | None = None
    ) -> None:
        self._version = version
        self._provider = provider

    def __call__(self, report: Report) -> None:
        place = _place(report)
        begin_ns, end_ns = place.interval(report.started_ns, report.ended_ns)
        tracer = trace.get_tracer(SCOPE, self._version, self._provider)
        span = tracer.start_span(
            STALL,
            context=place.context,
            kind=SpanKind.INTERNAL,
            attributes=_attributes(report) | _unsampled_request(report.stall, place.unsampled),
            start_time=begin_ns,
        )
        if report.stall.severity == "error":
            span.set_status(Status(StatusCode.ERROR, describe(report.stall)))
        span.end(end_time=end_ns)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a stall's span belongs: the context that holds its parent, and what is known of the parent's interval."""

    context: Context
    begin_ns: int | None = None
    end_ns: int | None = None
    unsampled: SpanContext | None = None

    def interval(self, begin_ns: int, end_ns: int) -> tuple[int, int]:
        """The part of the interval that lies within the parent's, never without any length.

        Jaeger takes a length of 0 for a negative one, marks it, and draws it out beyond the parent's end.
        """
        begin_ns, end_ns = self._clamp(begin_ns), self._clamp(max(begin_ns, end_ns))
        if begin_ns < end_ns:
            return begin_ns, end_ns
        return (begin_ns - 1, end_ns) if end_ns == self.end_ns else (begin_ns, end_ns + 1)

    def _clamp(self, time_ns: int) -> int:
        if self.begin_ns is not None:
            time_ns = max(time_ns, self.begin_ns)
        if self.end_ns is not None:
            time_ns = min(time_ns, self.end_ns)
        return time_ns


def _place(report: Report) -> _Place:
    active = report.context.copy().run(trace.get_current_span)
    begin_ns, end_ns = _time_ns(active, "start_time"), _time_ns(active, "end_time")
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
    own_begin_ns, own_end_ns = _time_ns(own, "start_time"), _time_ns(own, "end_time")
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


def _time_ns(span: Span, name: str) -> int | None:
    """One of the times of a span. The API has none of them: the SDK's spans do, and those of others like it."""
    value = getattr(span, name, None)
    return value if isinstance(value, int) else None


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


def _attributes(report: Report) -> _Attributes:
    stall = report.stall
    return {
        **_code(stall),
        **_valued(
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


def _code(stall: Stall) -> _Attributes:
    lines = stack_lines(stall.stack, stall.culprit)
    # Its lines are printable already; what parts them must stay.
    attributes: _Attributes = {"code.stacktrace": "\n".join(lines)} if lines else {}
    if stall.culprit:
        module, function = stall.culprit.module, stall.culprit.function
        attributes |= _valued(
            {
                "code.function.name": f"{module}.{function}" if module else function,
                "code.file.path": stall.culprit.file,
                "code.line.number": stall.culprit.line,
            }
        )
    return attributes


def _request(request: Request | None) -> _Attributes:
    if request is None:
        return {}
    return _valued({"http.route": request.route, "http.request.method": request.method})


def _unsampled_request(stall: Stall, unsampled: SpanContext | None) -> _Attributes:
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


def _valued(values: dict[str, str | int | float | None]) -> _Attributes:
    """Those that have a value: text printable, floats to the microsecond."""
    attributes: _Attributes = {}
    for key, value in values.items():
        if isinstance(value, str):
            attributes[key] = printable(value)
        elif isinstance(value, int):
            attributes[key] = value
        elif value is not None and math.isfinite(value):
            attributes[key] = round(value, 6)
    return attributes
