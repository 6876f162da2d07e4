"""Adds up stalls by culprit, victim and process, in bounded memory, and keeps the longest of them whole."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from loopguard.record import Process, Stall
from loopguard.show.choose import Choice
from loopguard.show.read import Found

MOST_KEPT = 5_000
_MOST_CULPRITS = 20_000
_MOST_ROUTES = 2_000
_MOST_PROCESSES = 5_000

Key = TypeVar("Key")
Group = TypeVar("Group")


@dataclass(slots=True)
class Culprit:
    """The stalls of one fingerprint: times in seconds, `worst` the longest of them (without its stack).

    `delayed_requests` is None where none of them tells.
    """

    worst: Stall
    stalls: int = 0
    seconds: float = 0.0
    delayed_requests: int | None = None
    causes: Counter[str] = field(default_factory=Counter)

    def add(self, stall: Stall) -> None:
        self.stalls += 1
        self.seconds += stall.duration
        self.delayed_requests = _sum(self.delayed_requests, stall.delayed_requests)
        self.causes[stall.cause] += 1
        if stall.duration > self.worst.duration:
            self.worst = stall

    @property
    def cause(self) -> str:
        """The cause that most of them have."""
        return self.causes.most_common(1)[0][0]


@dataclass(slots=True)
class Victim:
    """The requests of one route that had to wait: in seconds. `by` has those for which each fingerprint is to blame."""

    method: str
    route: str | None
    requests: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    by: Counter[str] = field(default_factory=Counter)

    def add(self, delay: float, fingerprint: str) -> None:
        self.requests += 1
        self.seconds += delay
        self.longest = max(self.longest, delay)
        if fingerprint in self.by or len(self.by) < _MOST_ROUTES:
            self.by[fingerprint] += delay  # type: ignore[assignment]  # a Counter adds floats as well


@dataclass(slots=True)
class Watched:
    """A process, as its latest record tells of it; `seconds` it was held."""

    process: Process
    pid: int
    stalls: int = 0
    seconds: float = 0.0

    def add(self, stall: Stall) -> None:
        self.stalls += 1
        self.seconds += held(stall)
        if stall.process.loop_seconds > self.process.loop_seconds:
            self.process = stall.process


def held(stall: Stall) -> float:
    """Seconds for which code held the loop: none where the system did not run the process."""
    return 0.0 if stall.cause == "not_scheduled" else stall.duration


def process_key(stall: Stall) -> tuple[str, str, int]:
    """What tells processes apart: in a container every pid is 1, and workers may share an instance's name."""
    return stall.process.host, stall.process.instance, stall.pid


class Summary:
    """What was seen in all; `fatal` is how many stalls their process did not survive. Totals count every stall; groups beyond a bound count in the totals only (`ungrouped`).

    Of the stalls themselves only the `keep` longest are held.
    """

    def __init__(self, keep: int = MOST_KEPT) -> None:
        self.stalls = 0
        self.seconds = 0.0
        self.not_scheduled = 0
        self.not_scheduled_seconds = 0.0
        self.fatal = 0
        self.delayed_requests: int | None = None
        self.first: float | None = None
        self.last: float | None = None
        self.ungrouped = 0
        self.processes: dict[tuple[str, str, int], Watched] = {}
        self._culprits: dict[str, Culprit] = {}
        self._victims: dict[tuple[str, str | None], Victim] = {}
        self._keep = keep
        self._kept: list[tuple[float, int, Stall]] = []

    def add(self, found: Found) -> None:
        stall = found.stall
        self.stalls += 1
        self.fatal += found.fatal
        self._count(stall)
        self._group(stall)
        entry = stall.duration, -self.stalls
        if len(self._kept) < self._keep:
            heapq.heappush(self._kept, (*entry, found.whole()))
        elif self._kept and entry > self._kept[0][:2]:
            heapq.heapreplace(self._kept, (*entry, found.whole()))

    def _count(self, stall: Stall) -> None:
        self.seconds += held(stall)
        if stall.cause == "not_scheduled":
            self.not_scheduled += 1
            self.not_scheduled_seconds += stall.duration
        self.delayed_requests = _sum(self.delayed_requests, stall.delayed_requests)
        end = stall.started_at + stall.duration
        self.first = (
            min(self.first, stall.started_at) if self.first is not None else stall.started_at
        )
        self.last = max(self.last, end) if self.last is not None else end

    def _group(self, stall: Stall) -> None:
        watched = _of(
            self.processes, process_key(stall), _MOST_PROCESSES, Watched(stall.process, stall.pid)
        )
        culprit = _of(self._culprits, stall.fingerprint, _MOST_CULPRITS, Culprit(stall))
        self.ungrouped += watched is None or culprit is None
        if watched:
            watched.add(stall)
        if culprit:
            culprit.add(stall)
        for each in stall.delayed or ():
            fresh = Victim(each.method, each.route)
            victim = _of(self._victims, (each.method, each.route), _MOST_ROUTES, fresh)
            if victim:
                victim.add(each.delay, stall.fingerprint)

    @property
    def culprits(self) -> list[Culprit]:
        """Those that code is to blame for, the one that held the loop longest first."""
        blamed = [each for each in self._culprits.values() if each.cause != "not_scheduled"]
        return sorted(blamed, key=lambda each: (-each.seconds, each.worst.fingerprint))

    @property
    def by_fingerprint(self) -> dict[str, Culprit]:
        return self._culprits

    @property
    def victims(self) -> list[Victim]:
        """The one that waited longest first."""
        return sorted(
            self._victims.values(), key=lambda each: (-each.seconds, each.method, each.route or "")
        )

    @property
    def longest(self) -> list[Stall]:
        """The stalls that were kept, the longest first."""
        return [stall for _, _, stall in sorted(self._kept, reverse=True)]

    @property
    def loop_seconds(self) -> float:
        """Seconds watched, over all processes."""
        return sum(each.process.loop_seconds for each in self.processes.values())

    @property
    def requests(self) -> int:
        """Requests served, over all processes."""
        return sum(each.process.requests for each in self.processes.values())


def summarize(found: Iterable[Found], choice: Choice, keep: int = MOST_KEPT) -> Summary:
    """Add up what was chosen."""
    summary = Summary(keep)
    for each in found:
        if choice.takes(each.stall):
            summary.add(each)
    return summary


def _sum(total: int | None, more: int | None) -> int | None:
    return total if more is None else (total or 0) + more


def _of(groups: dict[Key, Group], key: Key, most: int, fresh: Group) -> Group | None:
    """The group of that key, a fresh one where there is none yet; None where there are too many."""
    if key not in groups and len(groups) < most:
        groups[key] = fresh
    return groups.get(key)
