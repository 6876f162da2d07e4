"""The whole process is stopped by another, whatever the loop was at: nobody's code is to blame."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time

from tests.corpus.label import BLOCK, case, rest, truths
from tests.corpus.waits import to_peer

STOP = f"""
import os, signal, sys, time
time.sleep({BLOCK})  # a while after it was begun
parent = int(sys.argv[1])
os.kill(parent, signal.SIGSTOP)
began = time.time()
time.sleep(2 * {BLOCK})
ended = time.time()
os.kill(parent, signal.SIGCONT)
print(began, ended)
"""


async def suspender() -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-S", "-c", STOP, str(os.getpid())), stdout=subprocess.PIPE
    )


async def tell(process: asyncio.subprocess.Process) -> None:
    output, _ = await process.communicate()
    began, ended = map(float, output.split())
    truths.append((began, ended))


@case(core=True)
async def stopped_while_idle() -> None:
    await rest()
    await tell(await suspender())  # blocks stopped_while_idle: -, not_scheduled


@case(served=True)
async def stopped_while_computing() -> None:
    """In small portions."""
    await rest()
    process = await suspender()
    told = asyncio.create_task(tell(process))
    while not told.done():
        sum(range(20_000))  # blocks stopped_while_computing: -, not_scheduled
        await asyncio.sleep(0)


@case()
async def stopped_in_short_sleeps() -> None:
    await rest()
    process = await suspender()
    told = asyncio.create_task(tell(process))
    while not told.done():
        time.sleep(0.01)  # blocks stopped_in_short_sleeps: -, not_scheduled
        await asyncio.sleep(0)


@case()
async def stopped_beside_a_pool() -> None:
    """While a thread waits for a socket."""

    def wait() -> None:
        with to_peer() as connection:
            connection.sendall(b"?")
            connection.recv(1)

    await rest()
    process = await suspender()
    thread = asyncio.create_task(asyncio.to_thread(wait))
    await tell(process)  # blocks stopped_beside_a_pool: -, not_scheduled
    await thread
