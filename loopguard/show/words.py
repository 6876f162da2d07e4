"""How figures, moments and places are worded, in every output alike."""

from __future__ import annotations

from datetime import datetime

from loopguard.record import Frame, Stall
from loopguard.show.diff import Comparison, Measure
from loopguard.show.summary import Summary

NO_CODE = "no line of code could be seen"


def seconds(value: float) -> str:
    """`713 ms` below a second, `5.503 s` below a minute, `1,374.7 s` above."""
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    return f"{value:.3f} s" if value < 59.9995 else f"{value:,.1f} s"


def number(count: int, noun: str) -> str:
    """`1 stall`, `5,000 stalls`, `2 processes`."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def place(frame: Frame) -> str:
    return frame.file if frame.line is None else f"{frame.file}:{frame.line}"


def blamed(stall: Stall) -> str:
    """Whose fault it was, in a few words."""
    if stall.culprit is not None:
        return str(stall.culprit)
    if stall.contributors:
        return f"many callbacks, first {stall.contributors[0].name}"
    return NO_CODE


def route(method: str, template: str | None) -> str:
    return f"{method} {template or 'no route'}".strip()


def span_of_time(first: float, last: float) -> str:
    """`2026-11-21 17:53:57 to 17:54:05`, in the local zone."""
    begin, end = datetime.fromtimestamp(first), datetime.fromtimestamp(last)  # noqa: DTZ006 - the reader's own clock
    form = "%H:%M:%S" if begin.date() == end.date() else "%Y-%m-%d %H:%M:%S"
    return f"{begin:%Y-%m-%d %H:%M:%S} to {end:{form}}"


def sentence(summary: Summary) -> str:
    """All of it in one sentence."""
    if summary.first is None or summary.last is None:
        return "No stall."
    blame = summary.stalls - summary.not_scheduled
    when = span_of_time(summary.first, summary.last)
    if not blame:
        return f"No code held an event loop, {when}."
    said = (
        f"Held {seconds(summary.seconds)} in {number(blame, 'stall')}, "
        f"{number(len(summary.processes), 'process')}, {when}"
    )
    worst = summary.culprits[0].worst if summary.culprits else None
    if worst is None or worst.culprit is None:
        return f"{said}."
    return f"{said}; worst: {worst.culprit.function}, {place(worst.culprit)}."


def fatal(summary: Summary) -> str | None:
    """How many processes ended in a stall; None if none."""
    if not summary.fatal:
        return None
    return f"{number(summary.fatal, 'stall')} ended with the process, which did not survive it."


def not_scheduled(summary: Summary) -> str | None:
    """What the system is to blame for; None if nothing."""
    if not summary.not_scheduled:
        return None
    return (
        f"The system did not run the process in time, {summary.not_scheduled:,} ×, "
        f"{seconds(summary.not_scheduled_seconds)} (no code is to blame)."
    )


def side(name: str, summary: Summary, measure: Measure) -> str:
    """One side of a comparison."""
    said = f"{name}: {seconds(summary.seconds)} in {number(summary.stalls - summary.not_scheduled, 'stall')}"
    if measure.hours:
        said += (
            f", {measure.hours:,.2f} hours watched: {measure.of(summary.seconds):,.3f} s an hour"
        )
    per_thousand = measure.per_thousand_requests(summary.seconds)
    if per_thousand is not None:
        said += f"; {number(summary.requests, 'request')}: {per_thousand:,.1f} ms per 1,000"
    return said


def caveats(comparison: Comparison) -> list[str]:
    """What a reader must know before believing it."""
    notes = []
    if not comparison.per_hour:
        notes.append(
            "How long was watched is not known, so totals are compared: right only where both runs were "
            "equally long (--before-hours, --after-hours)."
        )
    if any(change.verdict == "gone" for change in comparison.changes):
        notes.append(
            "Gone may also mean that it was not exercised: compare the requests served, "
            f"{comparison.before.requests:,} before and {comparison.after.requests:,} after."
        )
    return notes


def line(stall: Stall) -> str:
    """One stall in one line."""
    so_far = "still held " if stall.ongoing else ""
    return f"{clock(stall.started_at)}  {so_far}{seconds(stall.duration)}  {told(stall)}"


def told(stall: Stall) -> str:
    parts = [stall.cause, blamed(stall)]
    if stall.call:
        parts.append(f"calls {stall.call}")
    parts += filter(None, [route_of(stall), stall.process.host])
    return "  ".join(parts)


def clock(unix: float) -> str:
    moment = datetime.fromtimestamp(unix)  # noqa: DTZ006 - the reader's own clock
    return f"{moment:%H:%M:%S}.{moment.microsecond // 100_000}"


def route_of(stall: Stall) -> str:
    return route(stall.request.method, stall.request.route) if stall.request else ""
