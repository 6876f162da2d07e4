"""Several callbacks in one iteration of the loop: each over the budget is a stall of its own, with its own start."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import loopguard
from loopguard.capture.clocks import RunDelay
from tests.holding import LOOPS, run

pytestmark = pytest.mark.core

BUDGET = 0.1
BLOCK = 3 * BUDGET
UNDER = 0.6 * BUDGET
CLOCK = 0.001  # for reading the clock itself

SPACE_AT_THE_END = re.compile(r"\s+$")
SPACES = " " * 10_000 + "end"  # some 0.3 s: for each it looks at all that follow

Work = Callable[[], object]


def first() -> None:
    time.sleep(BLOCK)


def second() -> None:
    time.sleep(BLOCK)


def third() -> None:
    time.sleep(BLOCK)


def nap() -> None:
    time.sleep(UNDER)


def short_wait() -> None:
    time.sleep(0.4 * BUDGET)


def searches() -> None:
    SPACE_AT_THE_END.search(SPACES)  # keeps the GIL


def computes() -> None:
    until = time.thread_time() + BLOCK
    while time.thread_time() < until:
        pass


def locks() -> None:
    lock = threading.Lock()
    lock.acquire()
    threading.Timer(BLOCK, lock.release).start()
    lock.acquire()


@dataclass
class Ran:
    """What truly ran: a function's name, and when it began and ended, in unix seconds."""

    name: str
    began: float
    ended: float


def in_one_iteration(loop: str, how: str, *work: Work) -> list[Ran]:
    """Run these one after the other in one iteration of the loop: as plain callbacks, as tasks, or in turn."""
    ran: list[Ran] = []

    def act(function: Work) -> None:
        began = time.time()
        function()
        ran.append(Ran(function.__name__, began, time.time()))

    async def step(function: Work) -> None:
        act(function)

    async def main() -> None:
        await asyncio.sleep(1.3 * BUDGET)
        tasks = []
        for place, function in enumerate(work):
            if how == "tasks" or (how == "mixed" and place % 2):
                tasks.append(asyncio.create_task(step(function), name=function.__name__))
            else:
                asyncio.get_running_loop().call_soon(act, function)
        await asyncio.sleep(BUDGET)
        await asyncio.gather(*tasks)

    run(main(), loop)
    return ran


def told(guard: loopguard.Guard) -> list[loopguard.Stall]:
    assert guard.flush(10)
    return [stall for stall in guard.stalls if stall.cause != "not_scheduled"]


def check_times(stall: loopguard.Stall, truth: Ran) -> None:
    off = stall.started_at - truth.began
    assert abs(off) <= stall.duration_error + CLOCK
    assert stall.duration_error < BLOCK / 2
    assert abs(stall.started_at + stall.duration - truth.ended) < BUDGET / 2


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("how", ["callbacks", "tasks", "mixed"])
def test_three_over_budget_are_three_stalls_each_with_its_own_line(how: str, loop: str) -> None:
    with loopguard.install(budget=BUDGET, log=False) as guard:
        ran = in_one_iteration(loop, how, first, second, third)
        stalls = told(guard)
    assert [stall.culprit and stall.culprit.function for stall in stalls] == [r.name for r in ran]
    for place, (stall, truth, function) in enumerate(
        zip(stalls, ran, (first, second, third), strict=True)
    ):
        check_times(stall, truth)
        assert stall.culprit is not None
        assert stall.culprit.line == function.__code__.co_firstlineno + 1
        assert stall.culprit.file == str(Path(__file__).relative_to(Path.cwd()))
        assert (stall.cause, stall.call) == ("blocking_call", "time.sleep")
        in_task = how == "tasks" or (how == "mixed" and place == 1)
        assert stall.task == (truth.name if in_task else None)
        assert (stall.coroutine is not None) == in_task


@pytest.mark.parametrize("loop", LOOPS)
def test_one_that_computes_one_that_sleeps_and_one_that_waits_for_a_lock(loop: str) -> None:
    """Each has its own cause, and none the CPU time of another."""
    with loopguard.install(budget=BUDGET, log=False) as guard:
        ran = in_one_iteration(loop, "tasks", computes, first, locks)
        stalls = told(guard)
    assert [stall.cause for stall in stalls] == ["cpu", "blocking_call", "lock"]
    assert [stall.culprit and stall.culprit.function for stall in stalls] == [r.name for r in ran]
    for stall, truth in zip(stalls, ran, strict=True):
        check_times(stall, truth)
    computing, *waiting = [stall.cpu_time or 0.0 for stall in stalls]
    assert all(seconds < computing for seconds in waiting)
    assert all(seconds < BLOCK / 2 for seconds in waiting)


@pytest.mark.parametrize("loop", LOOPS)
def test_native_calls_on_the_same_line_that_keep_the_gil_are_told_apart(loop: str) -> None:
    """The watchdog gets the GIL between them, for a moment: whatever lets it go in mid-look misses the next."""
    names = [f"search-{number}" for number in range(4)]

    async def search() -> None:
        searches()

    async def main() -> None:
        await asyncio.sleep(3 * BUDGET)
        await asyncio.gather(*(asyncio.create_task(search(), name=name) for name in names))

    delay = RunDelay(threading.get_native_id())
    before = delay.read() or 0
    with loopguard.install(budget=BUDGET, log=False) as guard:
        run(main(), loop)
        stalls = told(guard)
    withheld = ((delay.read() or 0) - before) / 1e9
    delay.close()
    if withheld > BUDGET / 2:
        pytest.skip(f"the machine gave no CPU for {withheld:.3f} s")
    assert [stall.task for stall in stalls] == names
    assert {stall.cause for stall in stalls} == {"gil_hold"}
    assert {stall.culprit and stall.culprit.function for stall in stalls} == {"searches"}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("how", ["callbacks", "tasks"])
def test_two_of_less_than_a_budget_are_no_stall_however_long_they_take_together(
    how: str, loop: str
) -> None:
    with loopguard.install(budget=BUDGET, log=False) as guard:
        ran = in_one_iteration(loop, how, nap, nap)
        assert told(guard) == []
    assert ran[1].ended - ran[0].began > BUDGET


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("unseen", [short_wait, nap])
def test_a_wait_that_nobody_saw_is_within_the_error_of_the_next_ones_start(
    unseen: Work, loop: str
) -> None:
    """It came first in the iteration and was over before the watchdog looked, or was seen: either way the error holds."""
    with loopguard.install(budget=BUDGET, log=False) as guard:
        ran = in_one_iteration(loop, "callbacks", unseen, first)
        (stall,) = told(guard)
    assert stall.culprit is not None
    assert stall.culprit.function == "first"
    check_times(stall, ran[1])
