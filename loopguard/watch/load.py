"""How busy the loops are: the share of wall time for which a loop's thread was on a CPU, or held without one."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from loopguard.evidence import Incident

SHORTEST_NS = 1_000_000_000  # over less than this a share says little


class Spent(NamedTuple):
    """What a loop's thread has spent until `at_ns`: on a CPU, and beside that held in a stall that goes on."""

    at_ns: int
    cpu_ns: int
    held_ns: int = 0


class Loop(Protocol):
    """A loop that runs; see `watch.heartbeat.Heartbeat`."""

    thread_id: int
    began: Spent

    def spent(self) -> Spent: ...


class _Point(NamedTuple):
    at_ns: int
    busy_ns: int


class Load:
    """The utilization of the busiest loop, since it was last asked for (a second ago or more)."""

    def __init__(self, loops: Callable[[], Iterable[Loop]]) -> None:
        self._loops = loops
        self._held: Counter[int] = Counter()  # by thread; the watchdog alone adds to it
        self._points: dict[Loop, tuple[_Point, _Point]] = {}
        self._reading = threading.Lock()

    def add(self, incident: Incident) -> None:
        """Count the time of a stall that has ended and was not spent on a CPU."""
        held, beat = incident.held, incident.held.beat
        if not incident.ongoing:
            held_ns, seen_ns = held.end_ns - held.start_ns, max(1, beat.at_ns - beat.last_ns)
            on_cpu_ns = (beat.cpu_ns or 0) * held_ns // seen_ns
            self._held[incident.thread_id] += max(0, held_ns - on_cpu_ns)

    def read(self) -> float | None:
        """0 to 1; None where no loop has run for a second."""
        with self._reading:
            shares, points = [], {}
            for loop in self._loops():
                began = _Point(loop.began.at_ns, loop.began.cpu_ns)
                before, last = self._points.get(loop, (began, began))
                now = self._point(loop)
                since = last if now.at_ns - last.at_ns >= SHORTEST_NS else before
                if since is last:
                    before, last = last, now
                points[loop] = before, last
                if now.at_ns - since.at_ns >= SHORTEST_NS:
                    busy = (now.busy_ns - since.busy_ns) / (now.at_ns - since.at_ns)
                    shares.append(min(max(busy, 0.0), 1.0))
            self._points = points
            return max(shares, default=None)

    def _point(self, loop: Loop) -> _Point:
        spent = loop.spent()
        return _Point(spent.at_ns, spent.cpu_ns + spent.held_ns + self._held[loop.thread_id])
