"""A FastAPI application whose requests are profiled on demand; between two there is no pause here."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator

from fastapi import BackgroundTasks, FastAPI
from fastapi.responses import PlainTextResponse, StreamingResponse

import loopguard
from loopguard.integrations import profiling

profiling.APART = 0.0


def work(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        sum(range(1_000))


def own_work() -> None:
    work(0.05)


def of_the_others() -> None:
    work(0.002)


def of_the_stream() -> None:
    work(0.05)


def in_the_background() -> None:
    work(0.05)


app = FastAPI()
rung = asyncio.Event()
guard = loopguard.install(
    app,
    budget=0.2,
    log=False,
    profile_token=os.environ["PROFILED_TOKEN"],
    profile_dir=os.environ["PROFILED_DIR"],
)


@app.get("/own")
async def own() -> str:
    own_work()
    return "own"


@app.get("/held")
async def held() -> str:
    own_work()
    await rung.wait()
    return "held"


@app.get("/ring")
async def ring() -> str:
    """Let those go that are held."""
    rung.set()
    rung.clear()
    return "rung"


@app.get("/others")
async def others() -> str:
    for _ in range(20):
        of_the_others()
        await asyncio.sleep(0.005)
    return "others"


@app.get("/stream")
async def stream(endless: bool = False) -> StreamingResponse:
    async def parts() -> AsyncIterator[str]:
        of_the_stream()
        for _ in range(3_000 if endless else 3):
            yield "part "
            await asyncio.sleep(0.02)

    return StreamingResponse(parts(), media_type="text/plain")


@app.get("/background")
async def background(tasks: BackgroundTasks) -> PlainTextResponse:
    async def afterwards() -> None:
        await asyncio.sleep(0.2)
        in_the_background()

    tasks.add_task(afterwards)
    return PlainTextResponse("background", background=tasks)


@app.get("/raises")
async def raises() -> None:
    own_work()
    raise ValueError("of the application's own")


@app.get("/left")
async def left() -> dict[str, object]:
    """What is left of the profiles: the hook of the loop's thread, and what was counted."""
    return {"hook": repr(sys.getprofile()), **guard.stats()}
