"""What the reporter hands to each sink: a finished record, and the context that it happened in."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass

from loopguard.evidence import Incident, StoodStill
from loopguard.record import Stall


@dataclass(frozen=True, slots=True)
class Report:
    """A stall to tell of.

    `context` is a copy of the blocked code's context (never the live one): whatever a sink runs in it sees the
    user's contextvars and the active span, and changes nothing of theirs. `started_ns` and `ended_ns` are unix
    nanoseconds, `error_ns` how far off the start may be; `began_ns` is the start by CLOCK_MONOTONIC, `withheld_ns` for
    how long at most the loop's thread was ready to run without getting a CPU, None where unknown. `allowed` is whether the limits let it into the log,
    `thread_id` the identifier that Python gives the loop's thread (`threading.get_ident`), `request_context` a copy of the
    context that the blocked code's request began in: its own span is in there. `fatal`: it is told of a process that did
    not survive it, by another. `delays` are all requests that the stall delayed, as far as known by now; the record
    lists the longest of them.
    """

    stall: Stall
    context: Context
    started_ns: int
    ended_ns: int
    error_ns: int
    allowed: bool
    thread_id: int | None = None
    request_context: Context | None = None
    fatal: bool = False
    began_ns: int = 0
    withheld_ns: int | None = None
    delays: tuple[StoodStill, ...] = ()


@dataclass(frozen=True, slots=True)
class LateDelays:
    """Requests that a stall delayed and that began only after its report had gone out."""

    stall: Stall
    delays: tuple[StoodStill, ...]


Sink = Callable[[Report], None]
"""Takes a report on a thread of its own. It may raise or hang: that is contained, counted and said once."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """A sink that is to hear of stalls: of final records, of those that are still going on, or of both.

    `fatal`: also of those that an earlier process did not survive. `late` hears of the requests that turn out to be
    delayed after the final record. `close` ends the sink, on its own thread. `unexplained` hears of a stall that no sink
    gets a record of.
    """

    name: str
    sink: Sink
    final: bool = True
    ongoing: bool = False
    fatal: bool = False
    late: Callable[[LateDelays], object] | None = None
    close: Callable[[], object] | None = None
    unexplained: Callable[[Incident], object] | None = None

    def wants(self, stall: Stall) -> bool:
        return self.ongoing if stall.ongoing else self.final
