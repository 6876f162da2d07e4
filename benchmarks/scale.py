"""What the report of one stall costs, by how much there is to look at: requests, threads, tasks, depth of the stack.

    uv run python benchmarks/scale.py [--quick] [--json PATH] [--loop asyncio|uvloop]

A loop with that many requests in flight, threads, tasks and frames is held for some budgets, and then does nothing but
compute for 50 µs and have a turn, again and again until the report is long out. Measured are

- `pause`: the most CPU time in milliseconds that was spent between two of these, by the loop's own thread and all of
  loopguard's together. For so long the loop could not run: one of them had the GIL at a stretch, or its
  callbacks on the loop took so long. (The interpreter asks nobody for the GIL before 5 ms, so no stretch is cut short by
  that. CPU time, because other programs make everything longer that is told by the wall.)
- `floor`: the same without a stall, on the same loop, for as long: a turn of the loop itself.
- `cpu`: milliseconds of CPU that loopguard's threads took in all, from the begin of the stall on.

Each is the median of the repetitions, each in a process of its own. In `ready` all requests in flight had to wait, in all
else none.

It needs Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 0.1
HELD = 0.35
AFTER = 0.6
SLICE_NS = 50_000
TRIES = 3


@dataclass(frozen=True)
class Load:
    """What is there as the loop is held."""

    requests: int = 10
    threads: int = 10
    tasks: int = 10
    depth: int = 10
    ready: bool = False

    @property
    def name(self) -> str:
        return ".".join(f"{key}={value:d}" for key, value in asdict(self).items() if value)


LOADS = [
    Load(),
    Load(requests=1000),
    Load(requests=10_000),
    Load(threads=1000),
    Load(tasks=10_000),
    Load(depth=500),
    Load(requests=1000, ready=True),
]
QUICK = [Load(), Load(requests=1000, threads=50, tasks=1000, depth=100)]


async def endless(scope: Any, receive: Any, send: Any) -> None:
    await scope["event"].wait()


def hold(depth: int) -> None:
    if depth > 0:
        hold(depth - 1)
    else:
        time.sleep(HELD)


async def spin(seconds: float) -> float:
    """The most milliseconds of CPU between two slices of work."""
    clocks = clocks_of_ours()
    until = time.perf_counter_ns() + int(seconds * 1e9)
    most = 0
    while time.perf_counter_ns() < until:
        before = time.thread_time_ns() + cpu_of(clocks)
        turn = time.thread_time_ns() + SLICE_NS
        while time.thread_time_ns() < turn:
            pass
        await asyncio.sleep(0)
        most = max(most, time.thread_time_ns() + cpu_of(clocks) - before - SLICE_NS)
    return most / 1e6


def clocks_of_ours() -> list[int]:
    """The CPU clocks of loopguard's threads."""
    return [
        (~thread.native_id << 3) | 6
        for thread in threading.enumerate()
        if thread.name.startswith("loopguard") and thread.native_id is not None
    ]


def cpu_of(clocks: Sequence[int]) -> int:
    return sum(time.clock_gettime_ns(clock) for clock in clocks)


async def measure(load: Load, app: Any) -> dict[str, float]:
    event = asyncio.Event()
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "event": event}
    tasks = [asyncio.create_task(app(dict(scope), None, None)) for _ in range(load.requests)]
    tasks += [asyncio.create_task(event.wait()) for _ in range(load.tasks)]
    await asyncio.sleep(0.3)
    hold(load.depth)  # the first one finds out what all others know
    await asyncio.sleep(AFTER)
    floor = await spin(AFTER)
    before = cpu_of(clocks_of_ours())
    if load.ready:
        event.set()
    hold(load.depth)
    pause = await spin(AFTER)
    cpu = (cpu_of(clocks_of_ours()) - before) / 1e6
    event.set()
    await asyncio.gather(*tasks)
    return {"floor": floor, "pause": pause, "cpu": cpu}


def measure_here(load: Load, loop: str) -> dict[str, float]:
    """In this process."""
    import loopguard

    over = threading.Event()
    for _ in range(load.threads):
        threading.Thread(target=over.wait, daemon=True).start()
    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with tempfile.TemporaryDirectory() as folder:
        stalls: list[loopguard.Stall] = []
        guard = loopguard.install(
            budget=BUDGET, log=False, jsonl=Path(folder) / "stalls.jsonl", on_stall=stalls.append
        )
        app = loopguard.wrap(endless)
        with asyncio.Runner(loop_factory=factory) as runner:
            figures = runner.run(measure(load, app))
        guard.uninstall()
    over.set()
    told = [stall for stall in stalls if stall.call == "time.sleep"]
    assert len(told) == 2, f"{len(told)} stalls were told of"
    found = told[1].delayed_requests
    assert found == (load.requests if load.ready else 0), f"{found} were delayed"
    assert told[1].in_flight == load.requests, told[1].in_flight
    return figures


def measure_apart(load: Load, loop: str, times: int) -> dict[str, float]:
    runs = []
    for _ in range(times):
        runs.append(measure_once(load, loop))
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def measure_once(load: Load, loop: str) -> dict[str, float]:
    """In a process of its own; again where a busy machine made something else of the stall."""
    command = [sys.executable, __file__, "--loop", loop, "--one", json.dumps(asdict(load))]
    for _ in range(TRIES):
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
        if done.returncode == 0:
            figures: dict[str, float] = json.loads(done.stdout)
            return figures
    raise SystemExit(f"{load.name} cannot be measured on {loop}")


def report(loads: Sequence[Load], loops: Sequence[str], times: int) -> dict[str, dict[str, float]]:
    figures = {}
    print(f"{'':45}{'floor':>9}{'pause':>9}{'cpu':>9}   (ms)")
    for loop in loops:
        for load in loads:
            found = figures[f"{loop}.{load.name}"] = measure_apart(load, loop, times)
            cells = (found[name] for name in ("floor", "pause", "cpu"))
            name = f"{loop}.{load.name}"
            print(f"{name:45}" + "".join(f"{cell:9.2f}" for cell in cells), flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="does it run at all?")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there too")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], action="append")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    loops = arguments.loop or ["asyncio", "uvloop"]
    if arguments.one is not None:
        sys.path.insert(0, str(ROOT))
        print(json.dumps(measure_here(Load(**json.loads(arguments.one)), loops[0])))
        return
    loads, times = (QUICK, 1) if arguments.quick else (LOADS, arguments.times)
    figures = report(loads, loops, times)
    if arguments.json:
        arguments.json.write_text(json.dumps({"figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
