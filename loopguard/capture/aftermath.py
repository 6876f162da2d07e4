"""Who had to wait: the requests in flight around a late beat, and those that begin after it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

from loopguard.capture.contexts import of_task
from loopguard.capture.requests import Entry, Key, RequestTable
from loopguard.capture.streaming import is_open_connection
from loopguard.capture.tasks import Future, Task, tasks_of, waits_for
from loopguard.clock import monotonic_ns
from loopguard.evidence import ActiveRequest, Arrival, Crossing, InFlight

# So many tasks are gone through at a time, with some rest in between in which the loop gets the GIL.
_AT_A_TIME = 200
_REST = 0.0001
# On the loop's own thread: no more tasks than can be gone through within a millisecond.
_MOST_ON_LOOP = 800


@dataclass(slots=True)
class _Glance:
    """The requests in flight at a moment: which were ready to run, and what the tasks of the others waited for.

    `owners` are those whose tasks wait for `waiters`, `known` all that have a task. `finished`: none was left out.
    """

    at_ns: int
    requests: dict[Key, Entry] = field(default_factory=dict)
    ready: set[Key] = field(default_factory=set)
    waiters: list[Future] = field(default_factory=list)
    owners: list[Key] = field(default_factory=list)
    known: set[Key] = field(default_factory=set)
    finished: bool = False

    def waiters_done(self) -> list[bool]:
        """Which of them are done by now: some 30 ns each, for the loop waits for it."""
        return [waiter.done() for waiter in self.waiters]


class RequestsAround:
    """The requests around one late beat, which follows the one at `since_ns`.

    Glanced at by the watchdog while the loop is held, then twice on the loop's thread, and read by the reporter after
    that. Each writes into what the next reads, in one step.

    In mid-stall those tasks are ready that had to wait for all of it; they run on before anybody can look after it. Two
    looks after it show those that became ready meanwhile: at the first late beat those whose timers were due
    before, or that got an answer; an iteration later those whose timers came behind the beat's.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, requests: RequestTable, since_ns: int
    ) -> None:
        self.since_ns = since_ns
        self._loop = loop
        self._requests = requests
        self._glances: dict[object, _Glance] = {}
        self._at_once: _Glance | None = None
        self._looked_at: _Glance | None = None
        self._first: list[bool] = []
        self._second: list[bool] = []

    def glanced(self, key: object) -> bool:
        """Whether it was glanced at while the callback of that key held the loop."""
        return key in self._glances

    def glance(self, key: object, over: Callable[[], bool]) -> None:
        """Look in mid-stall, off the loop's thread; broken off where the loop goes on.

        What is found is kept for the looks after the stall: these then only ask whether it is done.
        """
        self._requests.arrivals.ask(over=False)
        self._glances[key] = glance = _Glance(monotonic_ns())
        for some in _in_turns(self._requests.keys(), over):
            self._enter(glance, some)
        for some in _in_turns(tasks_of(self._loop), over):
            self._sort(glance, some)
        glance.finished = not over()

    def dismiss(self) -> None:
        """What was glanced at is over, and was too short to be a stall."""
        self._requests.arrivals.dismiss()

    def look(self) -> None:
        """The first look after the stall, on the loop's thread."""
        self._requests.arrivals.ask(over=True)
        glance = self._last_glance()
        if glance is None:
            return
        self._looked_at = glance
        self._first = glance.waiters_done()
        self._loop.call_soon(self._look_again, glance)

    def _look_again(self, glance: _Glance) -> None:
        self._second = glance.waiters_done()
        glance.waiters.clear()

    def _last_glance(self) -> _Glance | None:
        """The watchdog's last, where it came to its end; else one of this moment, if that takes no time."""
        last = list(self._glances.values())[-1:]
        if last and last[0].finished:
            return last[0]
        glance = _Glance(monotonic_ns())
        tasks = tasks_of(self._loop)
        keys = self._requests.keys()
        if max(len(tasks), len(keys)) > _MOST_ON_LOOP:
            return None
        self._enter(glance, keys)
        self._sort(glance, tasks)
        self._at_once = glance
        return glance

    def _enter(self, glance: _Glance, keys: Iterable[Key]) -> None:
        for key in keys:
            entry = self._requests.entry(key)
            if entry is not None:
                glance.requests[key] = entry

    def _sort(self, glance: _Glance, known: Iterable[Callable[[], Task | None]]) -> None:
        """Put each task to those that are ready, or to those that wait, if it belongs to a request in flight."""
        for task in (each() for each in known):
            if task is None or task.done() or task.get_loop() is not self._loop:
                continue
            context = of_task(task)
            key = None if context is None else self._requests.key_in(context)
            if key is None or key not in glance.requests:
                continue
            with suppress(AttributeError):  # of some other make, it does not tell
                waiter = waits_for(task)
                glance.known.add(key)
                if waiter is None:
                    glance.ready.add(key)
                else:
                    glance.waiters.append(waiter)
                    glance.owners.append(key)

    def in_flight(self, start_ns: int, end_ns: int, culprits: Sequence[object]) -> InFlight:
        """Those in flight at the end of a stall; `culprits` are the coroutines' references of those that held the loop."""
        requests, all_along = self._during(start_ns, end_ns)
        ready, known = self._found()
        ready |= all_along
        crossings, others, open_connections = [], 0, 0
        for some in _in_turns(list(requests), _never):
            for key in some:
                scope, started_ns, _ = entry = requests[key]
                if key in culprits or started_ns >= end_ns:
                    continue
                if is_open_connection(scope, end_ns - started_ns, key()):
                    open_connections += 1
                    continue
                others += 1
                if key in ready or key not in known:
                    state = True if key in ready else None
                    crossings.append(Crossing(ActiveRequest(*entry, key), state))
        return InFlight(tuple(crossings), others, open_connections)

    def _during(self, start_ns: int, end_ns: int) -> tuple[dict[Key, Entry], set[Key]]:
        """The requests of the last glance in that time, and those of them that were ready in it; else those of now."""
        glances = [each for each in self._glances.values() if start_ns <= each.at_ns <= end_ns]
        if glances:
            return glances[-1].requests, glances[-1].ready
        now = self._at_once
        if now is None:
            now = _Glance(monotonic_ns())
            self._enter(now, self._requests.keys())
        return now.requests, set()

    def _found(self) -> tuple[set[Key], set[Key]]:
        """The requests that the looks after the stall found ready, and all of which they know."""
        glance = self._looked_at
        if glance is None:
            return set(), set()
        ready = set(compress(glance.owners, self._first))
        ready.update(compress(glance.owners, self._second))
        if glance is self._at_once:
            ready |= glance.ready
        return ready, glance.known

    def arrivals(self, since_ns: int) -> list[Arrival]:
        """Those that have begun since then."""
        return self._requests.arrivals.since(since_ns)

    @property
    def more_may_come(self) -> bool:
        """Whether more may still begin that waited."""
        return self._requests.arrivals.more_may_come

    def on_loop(self, act: Callable[[], object]) -> None:
        """Have something done on the loop's own thread, if it still runs."""
        with suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(act)

    def without_flight(self) -> RequestsAround:
        """The same for arrivals alone: it holds nothing of those that were in flight."""
        return RequestsAround(self._loop, self._requests, self.since_ns)

    def let_go(self) -> None:
        """Nobody will ask any more."""
        self._requests.arrivals.forget()


def _never() -> bool:
    return False


def _in_turns(everything: Sequence[Any], over: Callable[[], bool]) -> Iterable[Sequence[Any]]:
    """Some at a time, until it is over; and the loop's thread may have the GIL in between."""
    for place in range(0, len(everything), _AT_A_TIME):
        if place:
            time.sleep(_REST)
        if over():
            return
        yield everything[place : place + _AT_A_TIME]
