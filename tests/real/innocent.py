"""Handlers that are slow, busy or both, and yet never hold the event loop for a whole budget."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from tests.real.truth import Held

router = APIRouter(prefix="/innocent")

BUDGET = 0.1


def spin(seconds: float) -> None:
    """Compute for as long as that."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


@router.get("/ready")
async def ready() -> str:
    return "ready"


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
        time.sleep(0.6 * BUDGET)
    return item


@router.get("/busy_under/{item}")
async def busy_under(item: str) -> str:
    with Held("under"):
        spin(0.6 * BUDGET)
    return item


@router.get("/two_under/{item}")
async def two_under(item: str) -> str:
    async def nap() -> None:
        with Held("under", resumed=True):
            time.sleep(0.6 * BUDGET)

    await asyncio.gather(nap(), nap())
    return item


@router.get("/stream/{item}")
async def stream(item: str) -> StreamingResponse:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(20):
            await asyncio.sleep(0.02)
            yield item.encode() * 1000

    return StreamingResponse(parts())


@router.post("/upload/{item}")
async def upload(item: str, request: Request) -> int:
    size = 0
    async for part in request.stream():
        size += len(part)
    return size
