"""A Quart application behind `loopguard.wrap`, which holds its loop in its common places."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from quart import Blueprint, Quart, websocket

import loopguard
from tests.places.blocks import BLOCK, trace_to_file
from tests.real.truth import Held

inside = Quart(__name__)
v1 = Blueprint("v1", __name__, url_prefix="/v1/<tenant>")


@inside.before_serving
async def start() -> None:
    with Held("startup"):
        time.sleep(BLOCK)  # blocks startup: time.sleep, blocking_call


@inside.after_serving
async def stop() -> None:
    with Held("shutdown"):
        time.sleep(BLOCK)  # blocks shutdown: time.sleep, blocking_call


@inside.get("/ready")
async def ready() -> str:
    return "ready"


@v1.get("/handler/<int:item>")
async def handler(tenant: str, item: int) -> str:
    with Held("handler"):
        time.sleep(BLOCK)  # blocks handler: time.sleep, blocking_call
    return f"{tenant} {item}"


@v1.get("/before/<int:item>")
async def behind_a_hook(tenant: str, item: int) -> str:
    return f"{tenant} {item}"


@v1.before_request
async def hook() -> None:
    from quart import request

    if "/before/" in request.path:
        with Held("before"):
            time.sleep(BLOCK)  # blocks before: time.sleep, blocking_call


@v1.get("/stream/<int:item>")
async def streams(tenant: str, item: int) -> AsyncIterator[str]:
    async def chunks() -> AsyncIterator[str]:
        yield f"{tenant} {item}"
        with Held("stream"):
            time.sleep(BLOCK)  # blocks stream: time.sleep, blocking_call
        yield "last"

    return chunks()


@v1.get("/child/<int:item>")
async def with_a_child(tenant: str, item: int) -> str:
    async def nap() -> None:
        with Held("child"):
            time.sleep(BLOCK)  # blocks child: time.sleep, blocking_call

    await asyncio.gather(asyncio.sleep(0), nap())
    return f"{tenant} {item}"


@v1.websocket("/socket/<int:item>")
async def socket(tenant: str, item: int) -> None:
    message = await websocket.receive()
    with Held("socket"):
        time.sleep(BLOCK)  # blocks socket: time.sleep, blocking_call
    await websocket.send(message)


@inside.errorhandler(404)
async def not_found(_error: Exception) -> tuple[str, int]:
    with Held("not_found"):
        time.sleep(BLOCK)  # blocks not_found: time.sleep, blocking_call
    return "nothing", 404


trace_to_file()
inside.register_blueprint(v1)
app = loopguard.wrap(OpenTelemetryMiddleware(inside), jsonl=os.environ["REAL_JSONL"])
