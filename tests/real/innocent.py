"""Handlers that are slow, busy or both, and yet never hold the event loop for a whole budget."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator

from fastapi import APIRouter, BackgroundTasks, Depends, Request, WebSocket
from fastapi.concurrency import run_in_threadpool
from fastapi.requests import HTTPConnection
from fastapi.responses import StreamingResponse

from tests.real.truth import Held

BUDGET = 0.1
UNDER = 0.6 * BUDGET
STREAM_BYTES = 200_000
WORDS = 5

_served: Counter[str] = Counter()


async def count(connection: HTTPConnection) -> None:
    """Note that a handler of that kind was called."""
    _served[connection.scope["route"].path.split("/")[2]] += 1


router = APIRouter(prefix="/innocent", dependencies=[Depends(count)])


def spin(seconds: float) -> None:
    """Compute for as long as that."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def nap() -> None:
    """Block for 0.6 of a budget."""
    with Held("under", resumed=True):
        time.sleep(UNDER)


@router.get("/served/all")
async def served() -> dict[str, int]:
    """How many requests of each kind have come to their handlers, and what they left to be done."""
    return dict(_served)


@router.get("/sleep/{item}")
async def sleep(item: str) -> str:
    await asyncio.sleep(0.3)
    return item


@router.get("/pool/{item}")
async def pool(item: str) -> str:
    await run_in_threadpool(time.sleep, 0.3)
    return item


@router.get("/plain/{item}")
def plain(item: str) -> str:
    time.sleep(0.3)
    return item


@router.get("/child/{item}")
async def child(item: str) -> str:
    process = await asyncio.create_subprocess_exec("sleep", "0.3", stdin=subprocess.DEVNULL)
    await process.wait()
    return item


@router.get("/chunks/{item}")
async def chunks(item: str) -> str:
    for _ in range(30):
        with Held("chunk", resumed=True):
            spin(0.01)
        await asyncio.sleep(0)
    return item


@router.get("/under/{item}")
async def under(item: str) -> str:
    with Held("under"):
        time.sleep(UNDER)
    return item


@router.get("/busy_under/{item}")
async def busy_under(item: str) -> str:
    with Held("under"):
        spin(UNDER)
    return item


@router.get("/two_under/{item}")
async def two_under(item: str) -> str:
    async def task() -> None:
        nap()

    await asyncio.gather(task(), task())
    return item


@router.get("/two_callbacks/{item}")
async def two_callbacks(item: str) -> str:
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    for callback in (nap, nap, done.set):
        loop.call_soon(callback)
    await done.wait()
    return item


@router.get("/background/{item}")
async def background(item: str, later: BackgroundTasks) -> str:
    async def on_the_loop() -> None:
        await asyncio.sleep(0.05)
        nap()
        _served["done_on_the_loop"] += 1

    def in_a_thread() -> None:
        time.sleep(0.3)
        _served["done_in_a_thread"] += 1

    later.add_task(on_the_loop)
    later.add_task(in_a_thread)
    return item


@router.get("/stream/{item}")
async def stream(item: str) -> StreamingResponse:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(20):
            await asyncio.sleep(0.02)
            yield bytes(STREAM_BYTES // 20)

    return StreamingResponse(parts())


@router.post("/upload/{item}")
async def upload(item: str, request: Request) -> int:
    size = 0
    async for part in request.stream():
        size += len(part)
    return size


@router.websocket("/words/{item}")
async def words(item: str, websocket: WebSocket) -> None:
    await websocket.accept()
    for _ in range(WORDS):
        word = await websocket.receive_text()
        await asyncio.sleep(0.02)
        await websocket.send_text(word)
    await websocket.close()
