"""A script without any web framework that holds its loop again and again, at known times.

Arguments: the loop (`asyncio`, `uvloop`), how to hold it (`sleep`, `spin`), how often, for how many
seconds, the budget, and the files for the truth and for the records.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time

import loopguard
from tests.real.truth import append


def spin(seconds: float) -> None:
    """Compute for as long as that."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


HOLD = {"sleep": time.sleep, "spin": spin}


async def main(kind: str, times: int, seconds: float, truth: str) -> None:
    hold = HOLD[kind]
    for _ in range(times):
        await asyncio.sleep(random.uniform(0.005, 0.035))
        entered, began, used = time.time(), time.perf_counter(), time.thread_time()
        hold(seconds)
        lasted, used = time.perf_counter() - began, time.thread_time() - used
        row = {"entered": entered, "left": entered + lasted, "lasted": lasted, "used": used}
        append(truth, row)


def run(
    loop: str, kind: str, times: str, seconds: str, budget: str, truth: str, jsonl: str
) -> None:
    guard = loopguard.install(budget=float(budget), jsonl=jsonl, log=False)
    work = main(kind, int(times), float(seconds), truth)
    if loop == "uvloop":
        import uvloop

        uvloop.run(work)
    else:
        asyncio.run(work)
    assert guard.flush(5)
    print(json.dumps(guard.stats()))


if __name__ == "__main__":
    run(*sys.argv[1:])
