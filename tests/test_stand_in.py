"""A thread of ours that gets the GIL before the watchdog looks in its place: what it saw is told like any other look."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

import loopguard
from loopguard.watch.timer import Alarm, KernelAlarms
from tests.holding import BUDGET, LOOPS, run, told

pytestmark = pytest.mark.core

HELD = 12 * BUDGET


@pytest.mark.parametrize("loop", LOOPS)
def test_a_look_in_the_watchdogs_place_names_line_and_task(
    loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if another thread always came before the watchdog, which wakes when all is over."""
    over = threading.Event()
    wait = KernelAlarms.wait

    def wait_too_long(alarms: KernelAlarms) -> list[Alarm]:
        gone_off = wait(alarms)
        over.wait(10)
        return gone_off

    async def holds() -> None:
        time.sleep(HELD)

    async def main() -> None:
        await asyncio.sleep(BUDGET)
        monkeypatch.setattr(KernelAlarms, "wait", wait_too_long)
        assert guard._engine is not None
        stand_in = guard._engine.watchdog.stand_in
        for part in range(1, 12):
            threading.Timer(HELD * part / 12, stand_in).start()
        await asyncio.create_task(holds(), name="holds")
        await asyncio.sleep(0)
        over.set()

    with loopguard.install(budget=BUDGET, log=False) as guard:
        run(main(), loop)
        stalls = told(guard)
        if len(stalls) != 1:
            pytest.fail(f"told {guard.stalls}, {guard.stats()}")
        stall = stalls[0]
    assert (stall.task, stall.call, stall.cause) == ("holds", "time.sleep", "blocking_call")
    assert stall.culprit is not None
    assert stall.culprit.line == holds.__code__.co_firstlineno + 1


def test_where_the_watchdog_is_in_time_it_stays_the_only_one_that_looks() -> None:
    async def main() -> None:
        await asyncio.sleep(BUDGET)
        before = guard.stats()
        assert guard._engine is not None
        guard._engine.watchdog.stand_in()
        assert guard.stats()["troubles"] == before["troubles"] == 0

    with loopguard.install(budget=BUDGET, log=False) as guard:
        run(main())
        assert told(guard) == []
