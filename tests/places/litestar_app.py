"""A Litestar application behind `loopguard.wrap`, which holds its loop in its common places."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar, Response, Router, get, websocket
from litestar.background_tasks import BackgroundTask
from litestar.di import Provide
from litestar.response import Stream
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

import loopguard
from tests.places.blocks import BLOCK, trace_to_file
from tests.real.truth import Held


@asynccontextmanager
async def lifespan(_app: Litestar) -> AsyncIterator[None]:
    with Held("startup"):
        time.sleep(BLOCK)  # blocks startup: time.sleep, blocking_call
    yield
    with Held("shutdown"):
        time.sleep(BLOCK)  # blocks shutdown: time.sleep, blocking_call


async def provided() -> str:
    with Held("dependency"):
        time.sleep(BLOCK)  # blocks dependency: time.sleep, blocking_call
    return "provided"


async def afterwards() -> None:
    with Held("background"):
        time.sleep(BLOCK)  # blocks background: time.sleep, blocking_call


async def chunks() -> AsyncIterator[str]:
    yield "first"
    with Held("stream"):
        time.sleep(BLOCK)  # blocks stream: time.sleep, blocking_call
    yield "last"


@get("/handler/{item:int}")
async def handler(item: int) -> str:
    with Held("handler"):
        time.sleep(BLOCK)  # blocks handler: time.sleep, blocking_call
    return str(item)


@get("/dependency/{item:int}", dependencies={"value": Provide(provided)})
async def with_a_dependency(item: int, value: str) -> str:
    return f"{item} {value}"


@get("/background/{item:int}")
async def leaves_work(item: int) -> Response[str]:
    return Response(str(item), background=BackgroundTask(afterwards))


@get("/stream/{item:int}")
async def streams(item: int) -> Stream:
    return Stream(chunks())


@get("/child/{item:int}")
async def with_a_child(item: int) -> str:
    async def nap() -> None:
        with Held("child"):
            time.sleep(BLOCK)  # blocks child: time.sleep, blocking_call

    await asyncio.gather(asyncio.sleep(0), nap())
    return str(item)


@websocket("/socket/{item:int}")
async def socket(socket: Any) -> None:
    await socket.accept()
    message = await socket.receive_text()
    with Held("socket"):
        time.sleep(BLOCK)  # blocks socket: time.sleep, blocking_call
    await socket.send_text(message)
    await socket.close()


@get("/ready")
async def ready() -> str:
    return "ready"


def not_found(_request: Any, _error: Exception) -> Response[str]:
    with Held("not_found"):
        time.sleep(BLOCK)  # blocks not_found: time.sleep, blocking_call
    return Response("nothing", status_code=404)


trace_to_file()
v1 = Router("/v1/{tenant:str}", route_handlers=[
    *(handler, with_a_dependency, leaves_work, streams, with_a_child, socket),
])  # fmt: skip
inside = Litestar([ready, v1], lifespan=[lifespan], exception_handlers={404: not_found})
app = loopguard.wrap(OpenTelemetryMiddleware(inside), jsonl=os.environ["REAL_JSONL"])
