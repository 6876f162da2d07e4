"""Many callbacks that together hold the loop, none of them over the budget."""

from __future__ import annotations

import asyncio
import time

import pytest

import loopguard
from loopguard.evidence import Iteration, Look
from loopguard.explain.crowd import contributors_of
from loopguard.watch.detector import find_congestion
from tests.evidence import MS, beat, frame, held, idle, look
from tests.holding import BUDGET, LOOPS, REST, run, told

pytestmark = pytest.mark.core

LIMIT = 200 * MS


def turn(started: float, index: int | None = None, error: float = 0.1) -> Iteration:
    return Iteration(round(started * MS), round(error * MS), index)


def crowd(start: float, times: range) -> list[Look]:
    """Looks of one iteration, each at another callback."""
    return [look(at, key=(start, at), iteration=turn(start, at)) for at in times]


# The verdict


def test_an_iteration_over_its_limit_is_held_together() -> None:
    [found] = find_congestion(beat(400), crowd(5, range(55, 400, 10)), LIMIT)
    assert found.together
    assert (found.start_ns, found.end_ns) == (5 * MS, 400 * MS)


def test_behind_a_beat_of_its_own_iteration_it_starts_at_that_beat() -> None:
    """uvloop's timers come first in an iteration, and the beat is one."""
    [found] = find_congestion(beat(400), crowd(-0.3, range(55, 400, 10)), LIMIT)
    assert (found.start_ns, found.end_ns) == (0, 400 * MS)
    assert found.error_ns < 5 * MS


def test_an_iteration_within_its_limit_is_none() -> None:
    assert find_congestion(beat(190), crowd(5, range(55, 190, 10)), LIMIT) == []


def test_two_iterations_within_their_limits_are_none() -> None:
    looks = [*crowd(5, range(55, 160, 10)), *crowd(160, range(165, 320, 10))]
    assert find_congestion(beat(320), looks, LIMIT) == []


def test_it_ends_where_the_loop_was_seen_to_have_nothing_more_to_do() -> None:
    """uvloop may wait for a beat that is long due: libuv's clock stood still for the whole iteration."""
    seen = [look(at, key=at, iteration=turn(5)) for at in range(55, 400, 10)]
    looks = [*seen, idle(405), idle(420), idle(440)]
    [found] = find_congestion(beat(447), looks, LIMIT)
    assert (found.start_ns, found.end_ns) == (5 * MS, 402 * MS)
    looks = [*seen[:15], idle(202), idle(220)]
    assert find_congestion(beat(250), looks, LIMIT) == []


def test_where_its_begin_is_not_known_the_cpu_clock_tells_its_end() -> None:
    """Of a thread that had four fifths of a CPU, and computed for 8 ms more."""
    looks = [look(at, key=at, cpu=at * 0.8) for at in range(50, 401, 10)]
    [found] = find_congestion(beat(450, cpu=328), [*looks, idle(415)], LIMIT)
    assert found.end_ns == 410 * MS
    [found] = find_congestion(beat(450, cpu=360), [*looks, idle(415)], LIMIT)
    assert found.end_ns == 415 * MS


def test_asyncio_is_found_between_a_callback_and_the_beat_only_just_then() -> None:
    looks = [*(look(at, key=at, iteration=turn(5, at)) for at in range(55, 400, 10)), idle(411)]
    [found] = find_congestion(beat(412), looks, LIMIT)
    assert found.end_ns == 411 * MS


def test_a_moment_between_two_of_its_callbacks_is_not_its_end() -> None:
    looks = sorted([*crowd(5, range(55, 400, 10)), idle(101)], key=lambda each: each.at_ns)
    [found] = find_congestion(beat(400), looks, LIMIT)
    assert found.end_ns == 400 * MS


def test_where_the_iteration_is_not_known_it_has_lasted_since_the_beat_was_due() -> None:
    """Had it begun later, the beat would have been among its callbacks."""
    looks = [look(at, key=at) for at in range(55, 300, 10)]
    [found] = find_congestion(beat(300), looks, LIMIT)
    assert found.start_ns == 50 * MS
    assert find_congestion(beat(249), looks[:19], LIMIT) == []


def test_one_callback_alone_is_no_crowd() -> None:
    alone = [look(at, key="a", iteration=turn(5, 0)) for at in range(55, 400, 10)]
    assert find_congestion(beat(400), alone, LIMIT) == []


def test_a_late_beat_without_any_look_is_none() -> None:
    assert find_congestion(beat(400), [], LIMIT) == []
    assert find_congestion(beat(400), [idle(100), idle(300)], LIMIT) == []


def test_what_the_system_withheld_does_not_count() -> None:
    assert find_congestion(beat(400, run_delay=210), crowd(5, range(55, 400, 10)), LIMIT) == []


# Who it was


def test_contributors_are_grouped_by_name_and_ranked_by_time() -> None:
    own, other = frame("callback"), frame("other")
    handle = frame("_run", module="asyncio.events")
    looks = [
        *(look(at, key=at, coroutine="parse", stack=(own,)) for at in range(0, 200, 10)),
        *(look(at, key=at, stack=(other, own, handle)) for at in range(200, 300, 10)),
    ]
    first, second = contributors_of(held(looks, start=0, end=300))
    assert (first.name, second.name) == ("parse", "callback")
    assert first.share == pytest.approx(2 / 3, abs=0.03)
    assert second.share == pytest.approx(1 / 3, abs=0.03)


def compute(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(100))


async def parse() -> None:
    compute(BUDGET / 12)


async def render() -> None:
    compute(BUDGET / 24)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_crowd_of_tasks_is_told_with_its_names(loop: str) -> None:
    guard = loopguard.install(budget=BUDGET, log=False)

    async def main() -> None:
        await asyncio.sleep(REST)
        await asyncio.gather(*(parse() for _ in range(50)), *(render() for _ in range(50)))
        await asyncio.sleep(REST)

    run(main(), loop)
    [stall] = told(guard)
    assert stall.cause == "congestion"
    assert (stall.culprit, stall.call, stall.task, stall.request) == (None, None, None, None)
    assert stall.contributors is not None
    assert [each.name for each in stall.contributors] == ["parse", "render"]
    assert stall.contributors[0].share > stall.contributors[1].share
    assert stall.budget == 2 * BUDGET


@pytest.mark.parametrize("loop", LOOPS)
def test_a_crowd_within_the_congestion_budget_is_none(loop: str) -> None:
    guard = loopguard.install(budget=BUDGET, congestion_budget=100 * BUDGET, log=False)

    async def main() -> None:
        await asyncio.sleep(REST)
        await asyncio.gather(*(parse() for _ in range(50)))
        await asyncio.sleep(REST)

    run(main(), loop)
    assert told(guard) == []


def test_the_congestion_budget_follows_the_budget_unless_it_is_given() -> None:
    guard = loopguard.install(budget=BUDGET, log=False)
    guard.budget = 10 * BUDGET

    async def main() -> None:
        await asyncio.sleep(REST)
        await asyncio.gather(*(parse() for _ in range(50)))
        await asyncio.sleep(REST)

    run(main())
    assert told(guard) == []
