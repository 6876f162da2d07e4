"""Whose it was: the span that was active, and the request with its own span."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context

from opentelemetry import context as telemetry
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind

from loopguard.evidence import BACKGROUND, ActiveRequest, Look
from loopguard.record import Request

Route = Callable[[ActiveRequest, Context | None], str | None]


def active_span(context: Context | None) -> tuple[str | None, str | None]:
    """Trace and span id (hex) of the span that is active in a copied context; None where there is none."""
    return (None, None) if context is None else ids_of(context.run(trace.get_current_span))


def context_of(look: Look, wall_offset_ns: int) -> Context:
    """The context of the code that was seen; without the span in it, where that was over before the request began.

    uvicorn on asyncio starts later requests of a connection in the context of a large upload before them
    (python/cpython#140947): one that opens no span of its own would be taken for a part of the upload.
    """
    if look.context is None:
        return Context()
    if look.request is None:
        return look.context
    return _current(look.context, look.request.started_ns + wall_offset_ns)


def request_of(look: Look, route: Route, wall_offset_ns: int) -> Request | None:
    """The request that the look's callback ran for."""
    request = look.request
    if request is None:
        return None
    began_ns = request.started_ns + wall_offset_ns
    trace_id, span_id = ids_of(_own_span(request, look, began_ns))
    return Request(
        method=method_of(request),
        route=route(request, look.context),
        trace_id=trace_id,
        span_id=span_id,
        started_at=began_ns / 1e9,
        background=request.background or any(frame.module in BACKGROUND for frame in look.stack),
    )


def began_in(request: ActiveRequest, wall_offset_ns: int) -> Span:
    """The span that a request began in: its own, where that was opened outside of our layer; else an invalid one."""
    context = _current(request.context.copy(), request.started_ns + wall_offset_ns)
    return context.run(trace.get_current_span)


def ids_of(span: Span) -> tuple[str | None, str | None]:
    """Trace and span id (hex); None for both where the span is invalid."""
    found = span.get_span_context()
    if not found.is_valid:
        return None, None
    return trace.format_trace_id(found.trace_id), trace.format_span_id(found.span_id)


def method_of(request: ActiveRequest) -> str:
    """`WEBSOCKET` for one."""
    scope = request.scope
    return "WEBSOCKET" if scope.get("type") == "websocket" else str(scope.get("method", ""))


def _own_span(request: ActiveRequest, look: Look, began_ns: int) -> Span:
    """The span that the request began in; else the server's span, where that was opened further inside."""
    own = _current(request.context, began_ns).run(trace.get_current_span)
    if own.get_span_context().is_valid or look.context is None:
        return own
    active = _current(look.context, began_ns).run(trace.get_current_span)
    return active if getattr(active, "kind", None) is SpanKind.SERVER else own


def _current(context: Context, began_ns: int) -> Context:
    """A context as it is, or a copy without the span in it, where that ended before `began_ns`."""
    ended_ns = getattr(context.run(trace.get_current_span), "end_time", None)
    if not isinstance(ended_ns, int) or ended_ns >= began_ns:
        return context
    without = context.copy()
    without.run(lambda: telemetry.attach(trace.set_span_in_context(trace.INVALID_SPAN)))
    return without
