"""Stalls that are explained, and wait a moment for the requests that came in meanwhile."""

from __future__ import annotations

from contextvars import Context
from dataclasses import dataclass, field, replace
from typing import Protocol

from loopguard.evidence import Aftermath, Incident
from loopguard.record import Stall

# Nanoseconds after its end at which a stall is told of: the rest of 0.2 s is for telling.
MOMENT_NS = 140_000_000
# How often it is asked for those that began after that.
AGAIN_NS = 250_000_000
# Between a request's noting the time and its being seen by others.
_OVERLAP_NS = 1_000_000
MOST = 1000
MOST_FOLLOWED = 64


class Explained(Protocol):
    @property
    def stall(self) -> Stall: ...
    @property
    def context(self) -> Context: ...
    @property
    def request_context(self) -> Context | None: ...


@dataclass(frozen=True, slots=True)
class _Told:
    """What is still needed of a stall that was told of."""

    stall: Stall
    context: Context = field(default_factory=Context)
    request_context: Context | None = None


@dataclass(slots=True)
class Pending:
    """A stall, when it is to be told of (CLOCK_MONOTONIC), and the requests that were found by now.

    Once it is told of, `due_ns` is when those are to be asked for that began since, and `asked_ns` until when they were.
    """

    incident: Incident
    explained: Explained
    due_ns: int
    known: set[object] = field(default_factory=set)
    asked_ns: int = 0

    def followed(self, aftermath: Aftermath, now_ns: int) -> Pending:
        """What is left to do once it is told of; nothing of what was seen of it is kept alive for that."""
        held = self.incident.held
        beat = replace(held.beat, aftermath=aftermath.without_flight())
        incident = replace(self.incident, held=replace(held, looks=(), beat=beat))
        stall = self.explained.stall
        return Pending(incident, _Told(stall), now_ns + AGAIN_NS, self.known, now_ns - _OVERLAP_NS)
