"""A process with a guarded loop, for tests that keep it from running: told on stdin what to do, it answers on stdout.

`rest`: nothing. `sleep S`: one callback that sleeps. `compute S`: one that computes. `work S`: many that compute for
10 ms each. It says `begun` as it begins, and afterwards what was told of since, as one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import loopguard
from tests.holding import new_loop

BUDGET = 0.1


def compute(seconds: float) -> None:
    """For so long on a CPU, however long that takes."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        sum(range(1000))


async def work(seconds: float) -> None:
    for _ in range(round(seconds / 0.01)):
        compute(0.01)
        await asyncio.sleep(0)


async def obey(command: str, seconds: float) -> None:
    if command == "sleep":
        time.sleep(seconds)
    elif command == "compute":
        compute(seconds)
    elif command == "work":
        await work(seconds)
    else:
        await asyncio.sleep(seconds)
    await asyncio.sleep(2 * BUDGET)


async def serve(guard: loopguard.Guard) -> None:
    loop = asyncio.get_running_loop()
    # One thread, begun before anything is asked for: a busy machine takes long to begin one, and that holds the loop.
    loop.set_default_executor(ThreadPoolExecutor(1))
    await loop.run_in_executor(None, int)
    await loop.run_in_executor(None, guard.flush, 10)
    told = {stall.id for stall in guard.stalls}
    print("ready", flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command, _, seconds = line.partition(" ")
        await asyncio.sleep(2 * BUDGET)
        print("begun", flush=True)
        await obey(command, float(seconds))
        await loop.run_in_executor(None, guard.flush, 10)
        new = [stall.to_dict() for stall in guard.stalls if stall.id not in told]
        told.update(record["id"] for record in new)
        print(json.dumps(new), flush=True)


def main() -> None:
    guard = loopguard.install(budget=BUDGET, log=False)
    with asyncio.Runner(loop_factory=lambda: new_loop(sys.argv[1])) as runner:
        runner.run(serve(guard))


if __name__ == "__main__":
    main()
