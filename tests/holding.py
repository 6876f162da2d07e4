"""Loops to hold on purpose, and what a guard may not leave behind."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import signal
import sys
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

import loopguard
from loopguard.tell import metrics

T = TypeVar("T")

BUDGET = 0.05
LONG = 3.2 * BUDGET  # over any doubt, also on a busy machine
REST = 1.2 * BUDGET  # time for a beat or two

UVLOOP = importlib.util.find_spec("uvloop") is not None
LOOPS = [
    "asyncio",
    pytest.param("uvloop", marks=pytest.mark.skipif(not UVLOOP, reason="uvloop is not installed")),
]


def new_loop(kind: str) -> Any:
    """A loop of that kind; of no declared type, for asyncio's and uvloop's have private parts in common."""
    if kind == "asyncio":
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


def run(main: Coroutine[Any, Any, T], kind: str = "asyncio") -> T:
    """Run on a fresh loop of that kind."""
    with asyncio.Runner(loop_factory=lambda: new_loop(kind)) as runner:
        return runner.run(main)


async def hold(seconds: float = LONG, times: int = 1) -> None:
    """Hold the loop, with some beats before and after."""
    for _ in range(times):
        await asyncio.sleep(REST)
        time.sleep(seconds)
    await asyncio.sleep(REST)


def told(guard: loopguard.Guard) -> list[loopguard.Stall]:
    """All that was reported and that was meant: on a busy machine there may be short ones of nobody's."""
    assert guard.flush(10)
    return [s for s in guard.stalls if s.cause != "not_scheduled" and s.duration > LONG / 2]


def left_in_process() -> dict[str, object]:
    """All that an installed guard changes in a process."""
    gc.collect()  # loops that are closed but not collected keep their files
    loops: list[type] = [asyncio.BaseEventLoop]
    if UVLOOP:
        import uvloop

        loops.append(uvloop.Loop)
    return {
        "threads": [thread.name for thread in threading.enumerate()],
        "files": open_files(),
        "signals": [(number, signal.getsignal(number)) for number in signal.valid_signals()],
        "collector": list(gc.callbacks),
        "run_forever": [vars(kind).get("run_forever") for kind in loops],
        "metrics": metrics._asked.metrics,
        "trace": (sys.gettrace(), sys.getprofile(), threading.gettrace(), threading.getprofile()),
    }


def changes_since(before: dict[str, object]) -> dict[str, tuple[object, object]]:
    """What is not as it was: its state before and now."""
    now = left_in_process()
    return {name: (before[name], now[name]) for name in now if before[name] != now[name]}


def open_files() -> dict[str, str]:
    """The numbers of all open files, and what they are; nothing where the system does not tell."""
    found: dict[str, str] = {}
    directory = Path("/proc/self/fd")
    for file in list(directory.iterdir()) if directory.is_dir() else ():
        try:
            found[file.name] = str(file.readlink())
        except OSError:  # the one that listed the directory
            continue
    return found
