"""Where a span may begin and end."""

from __future__ import annotations

from opentelemetry.trace import Span


def time_of(span: Span, name: str) -> int | None:
    """One of the times of a span. The API has none of them: the SDK's spans do, and those of others like it."""
    value = getattr(span, name, None)
    return value if isinstance(value, int) else None


def within(
    begin_ns: int, end_ns: int, earliest_ns: int | None, latest_ns: int | None
) -> tuple[int, int]:
    """The part of the interval that lies within the parent's, as far as that is known; never without any length.

    Jaeger takes a length of 0 for a negative one, marks it, and draws it out beyond the parent's end.
    """
    begin_ns = _clamped(begin_ns, earliest_ns, latest_ns)
    end_ns = _clamped(max(begin_ns, end_ns), earliest_ns, latest_ns)
    if begin_ns < end_ns:
        return begin_ns, end_ns
    return (begin_ns - 1, end_ns) if end_ns == latest_ns else (begin_ns, end_ns + 1)


def _clamped(time_ns: int, earliest_ns: int | None, latest_ns: int | None) -> int:
    if earliest_ns is not None:
        time_ns = max(time_ns, earliest_ns)
    if latest_ns is not None:
        time_ns = min(time_ns, latest_ns)
    return time_ns
