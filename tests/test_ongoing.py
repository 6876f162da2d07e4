"""A stall that lasts is told of while it lasts, and once more, under the same id, when it is over."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loopguard
from loopguard.record import Stall
from tests.holding import BUDGET, LOOPS, REST, run, told

pytestmark = pytest.mark.core

ROOT = Path(__file__).parent.parent
FIRST = 5 * BUDGET  # seconds after which it is told of the first time
VERY_LONG = 12 * BUDGET  # long enough for a second time, too short for a third


class Ongoing:
    """A guard whose ongoing and final records are kept, in the order in which they came."""

    def __init__(self, **options: Any) -> None:
        self.early: list[Stall] = []
        self.final: list[Stall] = []
        self.guard = loopguard.install(
            budget=BUDGET,
            on_ongoing=self.early.append,
            on_stall=self.final.append,
            **{"log": False, **options},
        )


def compute(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(1000))


async def block(act: Callable[[float], object], seconds: float) -> None:
    await asyncio.sleep(REST)
    act(seconds)
    await asyncio.sleep(REST)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    "act, cause", [(time.sleep, "blocking_call"), (compute, "cpu")], ids=["waits", "computes"]
)
def test_it_is_told_of_at_five_budgets_and_at_ten(
    loop: str, act: Callable[[float], object], cause: str
) -> None:
    seen = Ongoing()
    run(block(act, VERY_LONG), loop)
    [final] = told(seen.guard)
    assert [early.id for early in seen.early] == [final.id] * 2
    assert seen.early[0].duration >= FIRST
    assert 2 * FIRST <= seen.early[1].duration <= final.duration + final.duration_error
    assert {early.ongoing for early in seen.early} == {True}
    assert not final.ongoing
    for early in seen.early:
        assert early.cause == final.cause == cause
        assert early.culprit is not None
        assert final.culprit is not None
        assert (early.culprit.function, early.call) == (final.culprit.function, final.call)
        assert early.severity == "error"
        assert abs(early.started_at - final.started_at) <= early.duration_error + 0.001


def test_it_is_out_while_the_loop_is_still_held() -> None:
    """Who comes to kill the process finds it in the log."""
    seen = Ongoing()
    early_by_then: list[int] = []

    def hold(seconds: float) -> None:
        time.sleep(seconds)
        early_by_then.append(len(seen.early))

    run(block(hold, VERY_LONG))
    told(seen.guard)
    assert early_by_then == [2]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_stall_that_ends_before_is_told_of_once(loop: str) -> None:
    seen = Ongoing()
    run(block(time.sleep, 0.8 * FIRST), loop)
    assert len(told(seen.guard)) == 1
    assert seen.early == []


def test_what_native_code_does_with_the_gil_is_told_of_at_its_end_alone() -> None:
    """Nobody could tell before; and an ongoing record of what is over would not be true."""
    seen = Ongoing()
    run(block(lambda _seconds: re.match(r"(a+)+$", "a" * 26 + "b"), 0))
    final = told(seen.guard)
    assert [stall for stall in final if stall.duration < FIRST] == []  # else the regex was too easy
    assert seen.early == []


def test_each_of_two_callbacks_has_its_own_id() -> None:
    seen = Ongoing()

    async def two() -> None:
        await asyncio.gather(block(time.sleep, 0.7 * VERY_LONG), block(compute, 0.7 * VERY_LONG))

    run(two())
    final = told(seen.guard)
    assert [early.id for early in seen.early] == [stall.id for stall in final]
    assert [early.cause for early in seen.early] == ["blocking_call", "cpu"]


def test_it_is_logged_and_written_but_counted_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = tmp_path / "stalls.jsonl"
    seen = Ongoing(jsonl=lines, log=True)
    run(block(time.sleep, VERY_LONG))
    [final] = told(seen.guard)
    written = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [record["ongoing"] for record in written] == [True, True, False]
    assert {record["id"] for record in written} == {final.id}
    stats = seen.guard.stats()
    assert (stats["stalls"], stats["logged"]) == (1, 1)
    early, late = "event_loop.stall.ongoing", "event_loop.stall"
    logged = [vars(each) for each in caplog.records if each.name == "loopguard"]
    assert [each["message"] for each in logged if "stall_id" in each] == [early, early, late]
    assert {each["stall_id"] for each in logged if "stall_id" in each} == {final.id}
    assert {each["levelname"] for each in logged if "stall_id" in each} == {"ERROR"}


@pytest.mark.parametrize("options", [{}, {"ignore": "*.block"}], ids=["allowed", "ignored"])
def test_what_is_exempt_is_not_told_of_early_either(options: dict[str, Any]) -> None:
    seen = Ongoing(**options)

    def allowed(seconds: float) -> None:
        with loopguard.allow_blocking("migration"):
            time.sleep(seconds)

    run(block(time.sleep if options else allowed, VERY_LONG))
    assert told(seen.guard) == []
    assert seen.early == []
    assert seen.guard.stats()["exempt"] == 1


def test_a_pause_silences_it() -> None:
    seen = Ongoing()

    def resume_inside(seconds: float) -> None:
        seen.guard.resume()
        time.sleep(seconds)

    async def main() -> None:
        await asyncio.sleep(REST)
        seen.guard.pause()
        resume_inside(VERY_LONG)
        await asyncio.sleep(REST)

    run(main())
    assert told(seen.guard) == []
    assert seen.early == []


def test_a_process_that_is_killed_in_mid_stall_has_said_what_it_was_doing(tmp_path: Path) -> None:
    lines = tmp_path / "stalls.jsonl"
    script = tmp_path / "wedged.py"
    script.write_text(
        "import asyncio, sys, time, loopguard\n"
        "loopguard.install(budget=0.05, jsonl=sys.argv[1], log=False)\n"
        "async def main():\n"
        "    await asyncio.sleep(0.1)\n"
        "    time.sleep(600)  # wedged\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, script, lines], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}
    )
    until = time.monotonic() + 30
    while not lines.exists() or not lines.read_text().endswith("\n"):
        assert time.monotonic() < until, "no record came"
        time.sleep(0.05)
    process.kill()
    process.wait()
    record = json.loads(lines.read_text().splitlines()[0])
    assert (record["ongoing"], record["culprit"]["line"], record["call"]) == (True, 5, "time.sleep")
