"""Processes that the system does not run are nobody's fault: real ones, stopped, frozen, throttled and starved."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import loopguard
from tests import cgroups
from tests.debugger import REFUSED
from tests.holding import LOOPS, open_files, run

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is stopped here, Linux stops")

STOPPED = re.compile(
    r"the process was stopped for (\S+) s \(SIGSTOP, a debugger, or a frozen container\)"
)
STOP = 0.3
Records = list[dict[str, Any]]


class Kept:
    """A process with a guarded loop; see `tests/kept.py`."""

    def __init__(self, loop: str, group: Path | None = None) -> None:
        def enter() -> None:
            if group is not None:
                cgroups.enter(group, os.getpid())

        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.kept", loop],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=enter,
        )
        assert self._line() == "ready\n"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def threads(self) -> list[int]:
        return [int(each.name) for each in Path(f"/proc/{self.pid}/task").iterdir()]

    def during(self, command: str, after: float, happens: Callable[[], object]) -> Records:
        """What is told of, if this happens so many seconds after the process has begun to obey."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        assert self._line() == "begun\n"
        time.sleep(after)
        happens()
        records: Records = json.loads(self._line())
        return records

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(STOP)
        self.process.send_signal(signal.SIGCONT)

    def debug(self, *threads: int) -> None:
        """Another process attaches to these threads, and lets them go after a while."""
        debugger = subprocess.run(
            [sys.executable, "-m", "tests.debugger", str(STOP), *map(str, threads)],
            cwd=ROOT,
            check=False,
        )
        if debugger.returncode == REFUSED:
            pytest.skip("no process may debug another here")
        assert debugger.returncode == 0

    def end(self) -> None:
        with self.process:
            self.process.kill()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


@contextmanager
def kept(loop: str, group: Path | None = None) -> Iterator[Kept]:
    process = Kept(loop, group)
    try:
        yield process
    finally:
        process.end()


@pytest.fixture(scope="module", params=LOOPS)
def process(request: pytest.FixtureRequest) -> Iterator[Kept]:
    with kept(request.param) as process:
        yield process


def nobodys(records: Records) -> Records:
    """They blame no code, and are at info."""
    for record in records:
        found = {key: record[key] for key in ("cause", "severity", "culprit", "call", "stack")}
        assert found == {
            "cause": "not_scheduled",
            "severity": "info",
            "culprit": None,
            "call": None,
            "stack": [],
        }
        assert record["waited_on"] is None
        assert record["phases"] is None
    return records


def longest(records: Records) -> dict[str, Any]:
    """A busy machine may add short ones."""
    assert records, "nothing was told of"
    return max(records, key=lambda record: float(record["duration"]))


def assert_stopped(records: Records) -> None:
    record = longest(nobodys(records))
    assert record["duration"] >= 0.8 * STOP
    said = STOPPED.fullmatch(record["advice"])
    assert said is not None, record["advice"]
    assert 0.5 * STOP <= float(said[1]) <= record["duration"] + 0.01


def test_an_idle_process_that_is_suspended_is_nobodys_fault(process: Kept) -> None:
    assert_stopped(process.during("rest 0.2", 0.1, process.stop))


def test_nor_is_one_that_a_debugger_stops(process: Kept) -> None:
    assert_stopped(process.during("rest 0.2", 0.1, lambda: process.debug(*process.threads)))


def test_nor_is_one_of_which_a_debugger_stops_the_loops_thread_alone(process: Kept) -> None:
    """Then the watchdog goes on, and sees it stand."""
    records = process.during("rest 0.2", 0.1, lambda: process.debug(process.pid))
    assert_stopped(records)
    assert longest(records)["samples"] > 1


def test_nor_is_one_whose_container_is_frozen(process: Kept) -> None:
    with cgroups.frozen_at_will() as group:
        where = group.parent / _own_group(process.pid).lstrip("/")
        cgroups.enter(group, process.pid)

        def freeze() -> None:
            (group / "cgroup.freeze").write_text("1")
            time.sleep(STOP)
            (group / "cgroup.freeze").write_text("0")

        try:
            assert_stopped(process.during("rest 0.2", 0.1, freeze))
        finally:
            cgroups.enter(where, process.pid)


def _own_group(pid: int) -> str:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line.removeprefix("0::") for line in lines if line.startswith("0::"))


@pytest.mark.parametrize("command", ["sleep 0.05", "compute 0.05"])
def test_code_that_is_stopped_within_its_budget_is_not_to_blame(
    process: Kept, command: str
) -> None:
    nobodys(process.during(command, 0.02, process.stop))


def test_a_sleep_over_budget_is_blamed_for_all_of_it_though_the_process_was_stopped_meanwhile(
    process: Kept,
) -> None:
    """It would have ended no sooner: it was waiting before and behind the stop."""
    record = longest(process.during("sleep 0.6", 0.15, process.stop))
    assert (record["cause"], record["call"]) == ("blocking_call", "time.sleep")
    assert record["culprit"]["code"] == "time.sleep(seconds)"
    assert record["waited_on"] == "clock_nanosleep"
    assert record["duration"] == pytest.approx(0.6, abs=0.1)
    assert record["advice"] != STOPPED


def test_so_is_one_that_a_debugger_stopped_alone(process: Kept) -> None:
    record = longest(process.during("sleep 0.6", 0.15, lambda: process.debug(process.pid)))
    assert (record["cause"], record["call"]) == ("blocking_call", "time.sleep")


def test_code_that_computes_over_budget_is_blamed_though_it_was_stopped_for_longer(
    process: Kept,
) -> None:
    record = longest(process.during("compute 0.25", 0.1, process.stop))
    assert (record["cause"], record["culprit"]["function"]) == ("cpu", "compute")
    assert record["cpu_time"] == pytest.approx(0.25, abs=0.06)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_container_out_of_its_quota_is_nobodys_fault(loop: str) -> None:
    """It may compute for 10 of 200 ms, and would for 100."""
    with cgroups.limited(quota_us=2_000_000, period_us=200_000) as group:
        process = Kept(loop, group)
        try:
            tight = "10000"
            limit = group / "cpu.max"
            limit = limit if limit.exists() else group / "cpu.cfs_quota_us"
            text = f"{tight} 200000" if limit.name == "cpu.max" else tight
            records = process.during("work 0.1", 0, lambda: limit.write_text(text))
        finally:
            process.end()
    said = [record["advice"] for record in nobodys(records)]
    assert said, "nothing was told of"
    form = r"the container used up its CPU quota: (\d+) of (\d+) periods throttled; raise its CPU limit"
    found = [match for match in map(re.compile(form).fullmatch, said) if match]
    assert found, said
    assert all(1 <= int(match[1]) <= int(match[2]) for match in found)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_process_beside_others_that_take_its_cpu_is_nobodys_fault(loop: str) -> None:
    """It is the nicest on its CPU, and the others never rest."""
    cpu = min(os.sched_getaffinity(0))
    with kept(loop) as process:
        for thread in process.threads:
            os.sched_setaffinity(thread, {cpu})
            os.setpriority(os.PRIO_PROCESS, thread, 19)
        others = [
            subprocess.Popen(
                [sys.executable, "-c", "while True: pass"],
                preexec_fn=lambda: os.sched_setaffinity(0, {cpu}),
            )
            for _ in range(3)
        ]

        def relent() -> None:
            time.sleep(1.5)
            for other in others:
                with other:
                    other.kill()

        try:
            records = process.during("work 0.02", 0, relent)
        finally:
            relent()
    said = [record["advice"] for record in nobodys(records)]
    assert any(re.match(r"other processes took the CPU for \S+ s of it; ", each) for each in said)


@pytest.mark.parametrize("loop", LOOPS)
def test_all_clocks_stand_still_while_the_machine_sleeps(loop: str) -> None:
    """CLOCK_MONOTONIC does (clock_gettime(2)), so that a sleep is not late by a single second."""
    assert time.get_clock_info("monotonic").implementation == "clock_gettime(CLOCK_MONOTONIC)"
    clocks: list[str] = []

    async def main() -> None:
        await asyncio.sleep(0.01)
        for number in open_files():
            with suppress(OSError):
                lines = Path(f"/proc/self/fdinfo/{number}").read_text().splitlines()
                clocks.extend(line for line in lines if line.startswith("clockid:"))

    loopguard.install(log=False)
    run(main(), loop)
    assert set(clocks) == {f"clockid: {time.CLOCK_MONOTONIC}"}
