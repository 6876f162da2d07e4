"""What one item costs that is called, awaited, or handed to a task, a thread or a process, on asyncio and uvloop.

    python benchmarks/awaits.py [--items N]

The least of five repetitions, in µs of wall time. The item itself is next to nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import multiprocessing
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor

import uvloop

REPEATED = 5

Work = Callable[[range, ProcessPoolExecutor], Awaitable[None]]


def double(n: int) -> int:
    return 2 * n


async def doubled(n: int) -> int:
    return 2 * n


async def call(items: range, _: ProcessPoolExecutor) -> None:
    for n in items:
        double(n)


async def await_what_never_waits(items: range, _: ProcessPoolExecutor) -> None:
    for n in items:
        await doubled(n)


async def sleep_0(items: range, _: ProcessPoolExecutor) -> None:
    for _n in items:
        await asyncio.sleep(0)


async def task(items: range, _: ProcessPoolExecutor) -> None:
    await asyncio.gather(*(doubled(n) for n in items))


async def thread(items: range, _: ProcessPoolExecutor) -> None:
    for n in items:
        await asyncio.to_thread(double, n)


async def process(items: range, pool: ProcessPoolExecutor) -> None:
    loop = asyncio.get_running_loop()
    for n in items:
        await loop.run_in_executor(pool, double, n)


# And the share of the items that it is given: one of the last kinds takes as long as a hundred of the first.
ROWS: dict[str, tuple[Work, float]] = {
    "a plain call": (call, 1),
    "`await` of a coroutine that never waits": (await_what_never_waits, 1),
    "`await asyncio.sleep(0)`": (sleep_0, 0.2),
    "a task, by `asyncio.gather`": (task, 0.2),
    "`await asyncio.to_thread(…)`": (thread, 0.02),
    "`await loop.run_in_executor(…)` of a process pool": (process, 0.02),
}


async def least(work: Work, items: range, pool: ProcessPoolExecutor) -> float:
    """µs for an item."""
    best = math.inf
    for _ in range(REPEATED):
        began = time.perf_counter()
        await work(items, pool)
        best = min(best, time.perf_counter() - began)
    return best / len(items) * 1e6


async def measure(items: int, pool: ProcessPoolExecutor) -> list[float]:
    """A figure for each row."""
    return [
        await least(work, range(math.ceil(items * share)), pool) for work, share in ROWS.values()
    ]


def rounded(figure: float) -> str:
    """To two digits."""
    return f"{float(f'{figure:.2g}'):g}"


def main() -> None:
    parser = argparse.ArgumentParser(description="µs for an item")
    parser.add_argument("--items", type=int, default=100_000)
    items: int = parser.parse_args().items
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(double, 1).result()
        columns = [run(measure(items, pool)) for run in (asyncio.run, uvloop.run)]
    print("| | asyncio | uvloop |\n| --- | --- | --- |")
    for name, *figures in zip(ROWS, *columns, strict=True):
        print(f"| {name} | {' | '.join(map(rounded, figures))} |")


if __name__ == "__main__":
    main()
