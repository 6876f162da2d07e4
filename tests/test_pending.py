"""A stall waits a moment for the requests that came in meanwhile, and never longer; what comes later is told of too."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextvars import Context
from time import monotonic, monotonic_ns
from typing import Any

import pytest

from loopguard.evidence import Held, Incident, LateBeat, StoodStill, Suffered
from loopguard.record import Delayed, Stall
from loopguard.tell.report import LateDelays, Report, Subscription
from loopguard.tell.reporter import Reporter
from tests.records import make_stall
from tests.threads import wait_until

pytestmark = pytest.mark.core

MOMENT = 0.2


class Around:
    """Requests around a stall, of which more may come."""

    def __init__(self) -> None:
        self.more_may_come = True
        self.let_go_of = 0

    def on_loop(self, act: Any) -> None:
        pass

    def in_flight(self, *_: Any) -> Any:
        raise NotImplementedError

    def arrivals(self, since_ns: int) -> Any:
        raise NotImplementedError

    def without_flight(self) -> Around:
        return self

    def let_go(self) -> None:
        self.let_go_of += 1


class Explained:
    def __init__(self, stall: Stall) -> None:
        self.stall = stall
        self.context = Context()
        self.request_context = None


def stood_still(delay: float) -> StoodStill:
    told = Delayed("GET", "/quick", None, None, delay, True, True, None)
    return StoodStill(told, None, 0, round(delay * 1e9), object())


class Found:
    """Whom the reporter finds to have waited: at first, and later."""

    def __init__(self) -> None:
        self.first: tuple[StoodStill, ...] = ()
        self.later: tuple[StoodStill, ...] = ()
        self.error: Exception | None = None

    def of(self, incident: Incident) -> Suffered | None:
        if self.error is not None:
            raise self.error
        return Suffered(self.first, True, 7, 2)

    def late(
        self, incident: Incident, since_ns: int, known: Collection[object]
    ) -> tuple[StoodStill, ...]:
        return tuple(each for each in self.later if each.coroutine not in known)


class World:
    """A reporter, and what it has told."""

    def __init__(self) -> None:
        self.around = Around()
        self.found = Found()
        self.told: list[tuple[float, Report]] = []
        self.late: list[LateDelays] = []
        self.marked: list[int] = []
        self.ended = 0.0
        self.reporter = Reporter(
            lambda incident: Explained(make_stall(ongoing=incident.ongoing)),
            [Subscription("told", self._hear, ongoing=True, late=self.late.append)],
            ignore=(),
            log=False,
            sufferers=self.found,
            mark=lambda incident, explained, delays: self.marked.append(len(delays)),
        )

    def _hear(self, report: Report) -> None:
        self.told.append((monotonic(), report))

    def put(self, *, ongoing: bool = False, followed: bool = True) -> None:
        now = monotonic_ns()
        self.ended = now / 1e9
        around = self.around if followed else None
        beat = LateBeat(0, 1, now, 0, 0, 0, None, aftermath=around)
        held = Held(start_ns=now - 400_000_000, error_ns=0, end_ns=now, looks=(), beat=beat)
        self.reporter.put(
            Incident("4711", ongoing, held, 1, "MainThread", 1, "asyncio.Loop", None, 0, 0)
        )

    def only(self) -> Stall:
        ((_, report),) = self.told
        return report.stall


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    made.reporter.start()
    yield made
    made.around.more_may_come = False
    made.reporter.stop(5)


def test_it_waits_a_moment_and_tells_whom_it_knows_by_then(world: World) -> None:
    world.put()
    time.sleep(MOMENT / 4)
    assert world.told == []
    world.found.first = (stood_still(0.3), stood_still(0.2))
    wait_until(lambda: world.told)
    ((at, report),) = world.told
    assert at - world.ended >= MOMENT / 2
    stall = report.stall
    assert stall.delayed == tuple(each.told for each in world.found.first)
    assert (stall.delayed_requests, stall.delayed_complete) == (2, True)
    assert (stall.in_flight, stall.open_connections) == (7, 2)
    assert report.delays == world.found.first
    assert sum(world.marked) == 2


def test_flush_does_not_wait(world: World) -> None:
    world.put()
    assert world.reporter.flush(5)
    assert len(world.told) == 1
    assert world.told[0][0] - world.ended < MOMENT / 2


def test_shutdown_does_not_wait(world: World) -> None:
    world.put()
    world.reporter.stop(5)
    assert len(world.told) == 1
    assert world.around.let_go_of == 1


def test_what_nobody_looked_at_is_told_of_at_once(world: World) -> None:
    """As without an application."""
    world.put(followed=False)
    wait_until(lambda: world.told)
    assert world.told[0][0] - world.ended < MOMENT / 2


def test_an_ongoing_one_is_told_of_at_once_and_names_nobody(world: World) -> None:
    world.found.first = (stood_still(0.3),)
    world.put(ongoing=True)
    wait_until(lambda: world.told)
    stall = world.only()
    assert (stall.delayed, stall.delayed_requests, stall.delayed_complete) == (None, None, None)
    assert (stall.in_flight, stall.open_connections) == (7, 2)
    assert world.marked == []


def test_those_that_begin_later_are_told_of_once_until_no_more_may_come(world: World) -> None:
    known = stood_still(0.3)
    world.found.first = (known,)
    world.put()
    assert world.reporter.flush(5)
    world.found.later = (known, stood_still(0.2))
    wait_until(lambda: world.late)
    time.sleep(0.6)  # it asks again, more than once
    world.around.more_may_come = False
    wait_until(lambda: world.around.let_go_of)
    assert [late.delays for late in world.late] == [world.found.later[1:]]
    assert world.late[0].stall.id == world.only().id
    assert sum(world.marked) == 2


def test_the_record_lists_a_hundred_and_counts_all(world: World) -> None:
    world.found.first = tuple(stood_still(0.3) for _ in range(250))
    world.put()
    assert world.reporter.flush(5)
    stall = world.only()
    assert stall.delayed is not None
    assert (len(stall.delayed), stall.delayed_requests) == (100, 250)
    assert len(world.told[0][1].delays) == 250


def test_where_looking_for_them_fails_the_stall_is_told_of_all_the_same(world: World) -> None:
    world.found.error = LookupError("on purpose")
    world.put()
    assert world.reporter.flush(5)
    assert world.only().delayed is None
    assert world.reporter.counts.troubles > 0


def test_many_that_wait_are_told_of_in_their_order_and_none_is_lost(world: World) -> None:
    for _ in range(50):
        world.put()
    assert world.reporter.flush(5)
    assert len(world.told) == 50
    counts = world.reporter.counts
    assert counts.stalls == counts.logged + counts.suppressed + counts.dropped == 50
