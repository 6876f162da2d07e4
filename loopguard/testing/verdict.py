"""Does a stall fail a test? What the system took from us does not count, and what is nobody's line fails nobody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loopguard.exempt import debugger_in
from loopguard.record import Stall

Outcome = Literal["fails", "warns", "passes"]

# Of an import it is the first alone, and when the collector runs is chance. A thread of Python's hands the GIL over in
# time: where one keeps it, it may just as well have got no CPU itself, and whose fault that is nobody can tell.
_NOBODYS = ("import", "gc", "gil_wait")


@dataclass(frozen=True, slots=True)
class Seen:
    """A stall, and what its record does not tell.

    `began_ns` is its start by CLOCK_MONOTONIC in nanoseconds; `withheld` the seconds for which the system gave its
    thread no CPU, at most; None where that is not known. `context` names the test in whose context it ran.
    """

    stall: Stall
    began_ns: int
    withheld: float | None
    context: str | None = None


def outcome_of(seen: Seen, budget: float, evidence: bool) -> Outcome:
    """What a stall means for a test that allows `budget` seconds.

    `evidence` is whether this platform tells how long a thread was kept from a CPU; where it does not, twice the
    budget is allowed.
    """
    stall = seen.stall
    if stall.cause == "not_scheduled" or is_debugged(stall) or not _blames(stall):
        return "passes"
    if stall.duration - (seen.withheld or 0.0) < limit_of(stall, budget) * (1 if evidence else 2):
        return "passes"
    return "warns" if stall.cause in _NOBODYS or _starts_a_thread(stall) else "fails"


def limit_of(stall: Stall, budget: float) -> float:
    """Seconds that such a stall may take: many callbacks together may take twice what one may."""
    return 2 * budget if stall.cause == "congestion" else budget


def is_debugged(stall: Stall) -> bool:
    """Whether a debugger stood in the way: its own frames are on the stack."""
    return debugger_in(frame.module for frame in stall.stack) is not None


def _starts_a_thread(stall: Stall) -> bool:
    """Whether the loop waited until a new thread, as of `asyncio.to_thread`, had got a CPU for the first time.

    It may have had the GIL by then and no CPU: what this one waited for, the lock or the GIL, is then not known.
    """
    return stall.cause in ("lock", "unknown") and any(
        (frame.module, frame.function) == ("threading", "Thread.start") for frame in stall.stack
    )


def _blames(stall: Stall) -> bool:
    """Whether there is anybody to blame.

    Of a wait for the GIL that is the thread which kept it, in a line of the user's; but not the test's own: what it
    computes beside a loop of another thread harms nobody.
    """
    if stall.cause == "gil_wait":
        holder = stall.holder
        return holder is not None and holder.culprit is not None and holder.thread != "MainThread"
    return stall.culprit is not None or stall.cause == "congestion"
