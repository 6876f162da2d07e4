"""Whose it was: the span that was active, and the request with its own span."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context

from opentelemetry import trace

from loopguard.evidence import ActiveRequest, Look
from loopguard.record import Request

Route = Callable[[ActiveRequest], str | None]


def active_span(context: Context | None) -> tuple[str | None, str | None]:
    """Trace and span id (hex) of the span that is active in a copied context; None where there is none."""
    if context is None:
        return None, None
    span = context.run(trace.get_current_span).get_span_context()
    if not span.is_valid:
        return None, None
    return trace.format_trace_id(span.trace_id), trace.format_span_id(span.span_id)


def request_of(look: Look, route: Route, wall_offset_ns: int) -> Request | None:
    """The request that the look's callback ran for."""
    request = look.request
    if request is None:
        return None
    trace_id, span_id = active_span(request.context)
    scope = request.scope
    websocket = scope.get("type") == "websocket"
    return Request(
        method="WEBSOCKET" if websocket else str(scope.get("method", "")),
        route=route(request),
        trace_id=trace_id,
        span_id=span_id,
        started_at=(request.started_ns + wall_offset_ns) / 1e9,
        background=any(frame.module == "starlette.background" for frame in look.stack),
    )
