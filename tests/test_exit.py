"""However a process or a guard ends in mid-stall, it ends as it would without us, in time, and tells what it can."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import loopguard
from tests.holding import (
    BUDGET,
    LONG,
    LOOPS,
    REST,
    UVLOOP,
    changes_since,
    left_in_process,
    run,
)

ROOT = Path(__file__).resolve().parents[1]
STALL = 0.6  # seconds
IN_TIME = (
    2.0  # seconds from the stall's end to the process's; about one, and the machine may be busy
)


# Guards that are uninstalled in mid-stall


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """After each test the process is as it was before, once what is made once in a process is there."""
    with loopguard.install(log=False):
        run(asyncio.sleep(0))
        if UVLOOP:
            run(asyncio.sleep(0), "uvloop")
    before = left_in_process()
    yield
    loopguard.uninstall()
    assert changes_since(before) == {}


@pytest.mark.core
@pytest.mark.parametrize("loop", LOOPS)
def test_uninstalled_on_another_thread_in_mid_stall(loop: str, tmp_path: Path) -> None:
    """It does not wait for the stall, and leaves nothing on the loop once that goes on."""
    guard = loopguard.install(budget=BUDGET, jsonl=tmp_path / "x", log=False)
    stalled, took = threading.Event(), []

    def uninstall() -> None:
        assert stalled.wait(20)
        time.sleep(1.5 * BUDGET)
        began = time.monotonic()
        loopguard.uninstall()
        took.append(time.monotonic() - began)

    async def main() -> None:
        await asyncio.sleep(REST)
        stalled.set()
        began = time.monotonic()
        while not took and time.monotonic() - began < 20:
            time.sleep(0.01)
        await asyncio.sleep(REST)
        time.sleep(LONG)
        await asyncio.sleep(REST)
        assert [t.name for t in threading.enumerate() if "loopguard" in t.name] == []
        waiting = [*getattr(asyncio.get_running_loop(), "_scheduled", ())]
        assert [handle for handle in waiting if not handle.cancelled()] == []

    thread = threading.Thread(target=uninstall)
    thread.start()
    run(main(), loop)
    thread.join()
    assert took[0] < IN_TIME
    assert guard.stats()["troubles"] == 0


@pytest.mark.core
@pytest.mark.parametrize("loop", LOOPS)
def test_uninstalled_and_installed_again_within_the_stall(loop: str) -> None:
    """The first guard tells the stall, and neither leaves anything behind."""

    async def main() -> tuple[loopguard.Guard, loopguard.Guard]:
        first = loopguard.install(budget=BUDGET, log=False)
        await asyncio.sleep(REST)
        time.sleep(LONG)
        loopguard.uninstall()
        second = loopguard.install(budget=BUDGET, log=False)
        await asyncio.sleep(REST)
        return first, second

    first, second = run(main(), loop)
    assert second.flush(20)
    assert [stall.call for stall in first.stalls] == ["time.sleep"]
    assert [stall for stall in second.stalls if stall.cause != "not_scheduled"] == []


# Processes that end in mid-stall


@dataclass(frozen=True)
class End:
    """How a process ended: its exit code, and how long after the moment that it wrote down last."""

    code: int
    seconds: float
    calls: list[str | None]
    error: str


PRELUDE = """
import asyncio, os, sys, threading, time
LOOP, JSONL = sys.argv[1:]
if JSONL != "none":
    import loopguard
    loopguard.install(budget=0.1, jsonl=JSONL)

def run(main):
    if LOOP == "uvloop":
        import uvloop
        return uvloop.run(main)
    return asyncio.run(main)

def now():
    print(time.time(), flush=True)
"""


def end_of(script: str, loop: str, path: Path | None, number: int | None = None) -> End:
    """Run the script, with a guard where there is a path; send it the signal once it has written its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + script, loop, str(path or "none")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        first = process.stdout.readline()
        if number is not None:
            time.sleep(0.3)
            process.send_signal(number)
        try:
            rest, error = process.communicate(timeout=60)
        finally:
            process.kill()
        ended = time.time()
    last = float((rest.split() or [first])[-1])
    lines = path.read_text().splitlines() if path is not None and path.exists() else []
    calls = [line["call"] for line in map(json.loads, lines) if not line["ongoing"]]
    return End(process.returncode, ended - last, calls, error)


SIGNALLED = f"""
# A shell has its background jobs, and all that they start, ignore it.
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)

async def main():
    await asyncio.sleep(0.2)
    now()
    time.sleep({STALL})
    now()
    await asyncio.sleep(30)

run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_in_mid_stall_ends_a_program_as_it_would_without_us(
    number: str, loop: str, tmp_path: Path
) -> None:
    """With the same exit code; and where it unwinds, its stall is told."""
    path = tmp_path / "stalls.jsonl"
    signum = getattr(signal, number)
    without, guarded = end_of(SIGNALLED, loop, None, signum), end_of(SIGNALLED, loop, path, signum)
    assert guarded.code == without.code == -signum
    assert guarded.seconds < STALL + IN_TIME
    assert guarded.calls == (["time.sleep"] if number == "SIGINT" else [])
    assert ("KeyboardInterrupt" in guarded.error) is (number == "SIGINT")
    assert "loopguard/" not in without.error
    assert "Exception ignored" not in guarded.error


SYSTEM_EXIT = f"""
async def main():
    await asyncio.sleep(0.2)
    asyncio.get_running_loop().call_soon(leave)
    await asyncio.sleep(30)

def leave():
    time.sleep({STALL})
    now()
    sys.exit(7)

run(main())
"""


@pytest.mark.core
@pytest.mark.parametrize("loop", LOOPS)
def test_sys_exit_in_the_callback_that_stalls_ends_the_process(loop: str, tmp_path: Path) -> None:
    path = tmp_path / "stalls.jsonl"
    guarded = end_of(SYSTEM_EXIT, loop, path)
    assert guarded.code == 7
    assert guarded.seconds < IN_TIME
    assert guarded.calls == ["time.sleep"]
    assert "Exception ignored" not in guarded.error


IN_A_THREAD = """
async def main():
    await asyncio.sleep(0.2)
    stalled.set()
    {stall}

stalled = threading.Event()
threading.Thread(target=lambda: run(main()), daemon=True).start()
assert stalled.wait(20)
time.sleep(0.3)
now()
"""


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("stall", ["time.sleep(30)", "while True: pass"], ids=["waits", "computes"])
def test_the_main_thread_may_end_while_a_loop_in_another_is_stalled(
    stall: str, loop: str, tmp_path: Path
) -> None:
    guarded = end_of(IN_A_THREAD.format(stall=stall), loop, tmp_path / "stalls.jsonl")
    assert guarded.code == 0
    assert guarded.seconds < IN_TIME
    assert "Traceback" not in guarded.error
    assert "Exception ignored" not in guarded.error
