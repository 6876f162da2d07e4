"""Code that is slow, busy or both, and yet never holds the loop for a whole budget."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
import zlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.corpus.crowds import compute
from tests.corpus.label import BLOCK, case, rest, variable
from tests.corpus.locks import work_for
from tests.corpus.waits import LOCAL, NAP, to_peer

UNDER = 0.06  # of a budget of 0.1


innocent = partial(case, innocent=True)


@innocent(served=True)
async def async_sleep() -> None:
    await asyncio.sleep(BLOCK)


@innocent(served=True)
async def sleep_in_the_pool() -> None:
    await asyncio.to_thread(time.sleep, BLOCK)


@innocent()
async def computing_in_the_pool() -> None:
    await asyncio.to_thread(compute, BLOCK)


@innocent()
async def hashing_in_the_pool() -> None:
    await asyncio.to_thread(hashlib.pbkdf2_hmac, "sha256", b"x", b"y", 300_000)


@innocent()
async def compressing_in_the_pool() -> None:
    await asyncio.to_thread(zlib.compress, bytes(30_000_000))


@innocent(served=True)
async def sleep_under_the_budget() -> None:
    await rest()
    time.sleep(UNDER)
    await rest()


@innocent()
async def computing_under_the_budget() -> None:
    await rest()
    compute(UNDER)
    await rest()


@innocent()
async def several_under_the_budget() -> None:
    for _ in range(6):
        time.sleep(UNDER)
        await asyncio.sleep(0)


@innocent()
async def two_tasks_under_the_budget() -> None:
    async def nap() -> None:
        time.sleep(UNDER)

    await rest()
    await asyncio.gather(nap(), nap())
    await rest()


@innocent()
async def two_callbacks_under_the_budget() -> None:
    loop = asyncio.get_running_loop()
    await rest()
    loop.call_soon(time.sleep, UNDER)
    loop.call_soon(compute, UNDER)
    await rest()
    await rest()


@innocent(served=True, core=True)
async def computing_in_portions() -> None:
    for _ in range(30):
        compute(0.01)
        await asyncio.sleep(0)


@innocent()
async def waiting_for_a_lock() -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    asyncio.get_running_loop().call_later(BLOCK, lock.release)
    async with lock:
        pass


@innocent()
async def waiting_for_a_queue() -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()
    asyncio.get_running_loop().call_later(BLOCK, queue.put_nowait, 1)
    await queue.get()


@innocent(served=True)
async def waiting_for_a_socket() -> None:
    reader, writer = await asyncio.open_connection(LOCAL, int(variable("TCP")))
    writer.write(b"?")
    await reader.read(1)
    writer.close()


@innocent()
async def waiting_for_a_child() -> None:
    process = await asyncio.create_subprocess_exec(*NAP)
    await process.wait()


@innocent()
async def waiting_for_a_future_of_a_pool() -> None:
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, work_for, BLOCK)


@innocent()
async def blocking_socket_in_a_thread() -> None:
    def ask() -> None:
        with to_peer() as connection:
            connection.sendall(b"?")
            connection.recv(1)

    await asyncio.to_thread(ask)


@innocent()
async def thread_with_a_lock() -> None:
    lock = threading.Lock()

    def hold() -> None:
        with lock:
            time.sleep(BLOCK)

    await asyncio.gather(asyncio.to_thread(hold), asyncio.to_thread(hold))


@innocent()
async def asynchronous_generator() -> None:
    async def parts() -> AsyncIterator[int]:
        for number in range(30):
            await asyncio.sleep(0.01)
            yield number

    async for _ in parts():
        pass


@innocent()
async def small_files() -> None:
    for _ in range(50):
        Path(__file__).read_bytes()
        await asyncio.sleep(0.002)


def long_ago() -> Any:
    """What takes long before the loop runs is nobody's stall."""
    time.sleep(BLOCK)


@innocent(given=long_ago)
async def blocking_between_two_runs(_: object) -> None:
    await rest()
