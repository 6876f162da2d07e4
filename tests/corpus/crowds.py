"""Many callbacks of one iteration, none of them over the budget, that together hold the loop."""

from __future__ import annotations

import asyncio
import time

from tests.corpus.label import case, held, rest, truths

MANY = 40
EACH = 0.01


def compute(seconds: float = EACH) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        sum(range(100))


async def together() -> None:
    """Make one truth of those of the parts."""
    truths[:] = [(min(entered for entered, _ in truths), max(left for _, left in truths))]


@case(served=True, core=True)
async def tasks() -> None:
    async def parse() -> None:
        with held():
            compute()  # blocks tasks: -, congestion

    await rest()
    await asyncio.gather(*(parse() for _ in range(MANY)))
    await together()


@case()
async def callbacks() -> None:
    def tick() -> None:
        with held():
            compute()  # blocks callbacks: -, congestion

    await rest()
    for _ in range(MANY):
        asyncio.get_running_loop().call_soon(tick)
    await rest()
    await together()


@case()
async def timers() -> None:
    """All due at once."""

    def fire() -> None:
        with held():
            compute()  # blocks timers: -, congestion

    await rest()
    loop = asyncio.get_running_loop()
    due = loop.time() + 0.06
    for _ in range(MANY):
        loop.call_at(due, fire)
    await rest()
    await rest()
    await together()


@case()
async def woken_waiters() -> None:
    """All wait for one event."""
    event = asyncio.Event()

    async def waiter() -> None:
        await event.wait()
        with held():
            time.sleep(EACH)  # blocks woken_waiters: -, congestion

    waiters = [asyncio.create_task(waiter()) for _ in range(MANY)]
    await rest()
    event.set()
    await asyncio.gather(*waiters)
    await together()


@case()
async def done_callbacks() -> None:
    future = asyncio.get_running_loop().create_future()

    def told(_: object) -> None:
        with held():
            compute()  # blocks done_callbacks: -, congestion

    for _ in range(MANY):
        future.add_done_callback(told)
    await rest()
    future.set_result(None)
    await rest()
    await together()
