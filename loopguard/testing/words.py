"""What is said of a stall in a test: first what happened and where, then why, then what to do."""

from __future__ import annotations

from collections.abc import Iterator

from loopguard.record import Frame, Stall
from loopguard.tell.printable import printable
from loopguard.testing.verdict import Seen, limit_of

_LEAST_SHOWN = 0.001  # seconds


def headline(stall: Stall, budget: float) -> str:
    """One line: place, seconds, budget, call and function."""
    place, by = _place(stall), _by(stall)
    blocked = f"event loop blocked {stall.duration:.3f} s (budget {limit_of(stall, budget):.3f} s)"
    return printable(f"{place}{blocked}{by}")


def explanation(seen: Seen) -> str:
    """The lines below the headline."""
    return "\n".join(f"    {printable(line)}" for line in _lines(seen))


def to_blame(stall: Stall) -> Frame | None:
    """The frame that a reader should look at: the culprit, or that of the thread in the way."""
    return stall.culprit or (stall.holder.culprit if stall.holder else None)


def _place(stall: Stall) -> str:
    frame = to_blame(stall)
    if frame is None:
        return ""
    return f"{frame.file}: " if frame.line is None else f"{frame.file}:{frame.line}: "


def _by(stall: Stall) -> str:
    if stall.contributors:
        first = stall.contributors[0]
        return f" by many callbacks in turn, {first.share:.0%} of it by {first.name}"
    frame = to_blame(stall)
    if frame is not None and stall.culprit is None and stall.holder is not None:
        return f" by thread {stall.holder.thread} in {frame.function}"
    called = f" by {stall.call}" if stall.call else ""
    return called if frame is None else f"{called} in {frame.function}"


def _lines(seen: Seen) -> Iterator[str]:
    stall = seen.stall
    frame = to_blame(stall)
    if frame is not None and frame.code:
        yield " ".join(frame.code.split())
    yield ", ".join(_why(seen))
    if stall.request is not None and stall.request.route is not None:
        yield f"in {stall.request.method} {stall.request.route}"
    if seen.context is not None:
        yield f"in the context of an earlier test: {seen.context}"
    if stall.advice is not None:
        yield stall.advice


def _why(seen: Seen) -> Iterator[str]:
    stall = seen.stall
    yield f"cause: {stall.cause}"
    if stall.waited_on:
        yield f"waited on {stall.waited_on}"
    if stall.cpu_time is not None:
        yield f"{stall.cpu_time:.3f} s on CPU"
    if seen.withheld and seen.withheld >= _LEAST_SHOWN:
        yield f"up to {seen.withheld:.3f} s without one"
