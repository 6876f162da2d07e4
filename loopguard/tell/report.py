"""What the reporter hands to each sink: a finished record, and the context that it happened in."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass

from loopguard.record import Stall


@dataclass(frozen=True, slots=True)
class Report:
    """A stall to tell of.

    `context` is a copy of the blocked code's context (never the live one): whatever a sink runs in it sees the
    user's contextvars and the active span, and changes nothing of theirs. `started_ns` and `ended_ns` are unix
    nanoseconds, `error_ns` how far off the start may be. `allowed` is whether the limits let it into the log,
    `thread_id` the identifier that Python gives the loop's thread (`threading.get_ident`).
    """

    stall: Stall
    context: Context
    started_ns: int
    ended_ns: int
    error_ns: int
    allowed: bool
    thread_id: int | None = None


Sink = Callable[[Report], None]
"""Takes a report on the reporter's thread. It may raise: that is contained, counted and said once."""
