"""An app whose requests tick, wait, come in or become ready while one of them holds its loop.

What it is served with comes from variables, because the server imports it in a process of its own: `REAL_TELEMETRY`
(`none`, `contrib`, `fastapi`), the files of `tests/places/servers.py`, and OpenTelemetry's own for OTLP.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import StreamingResponse
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from starlette.middleware.base import BaseHTTPMiddleware

import loopguard
from tests.real.truth import Held, append
from tests.span_file import SpanFile, otlp_processor

TELEMETRY = os.environ["REAL_TELEMETRY"]
BUDGET = 0.1
NOTICE = 0.03  # in which those that are to become ready in mid-stall plan when

Next = Callable[[Request], Awaitable[Response]]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await asyncio.to_thread(provider.force_flush)  # uvicorn ends by a signal: no exit handler runs


async def pass_on(request: Request, call_next: Next) -> Response:
    return await call_next(request)


provider = TracerProvider()
if TELEMETRY != "none":
    provider.add_span_processor(SpanFile(os.environ["REAL_SPANS"]))
    if (over_otlp := otlp_processor(longest_queue=100_000)) is not None:
        provider.add_span_processor(over_otlp)
    trace.set_tracer_provider(provider)

app = FastAPI(lifespan=lifespan)
mounted = FastAPI()
about_to_hold = asyncio.Event()


@app.get("/quick/{item}")
async def quick(item: str) -> str:
    return item


@app.post("/quick/{item}")
async def post(item: str, request: Request) -> int:
    return len(await request.body())


@app.get("/tick/{milliseconds}")
async def tick(milliseconds: int) -> None:
    until = time.monotonic() + milliseconds / 1000
    while time.monotonic() < until:
        await asyncio.sleep(0.05)


@app.get("/wait/{milliseconds}")
async def wait(milliseconds: int) -> None:
    await asyncio.sleep(milliseconds / 1000)


@app.get("/at/{milliseconds}")
async def at(milliseconds: int) -> None:
    """Waits until so long after the line that blocks has begun, and notes when it went on."""
    await about_to_hold.wait()
    due = app.state.begins + milliseconds / 1000
    await asyncio.sleep(due - time.time())
    context = trace.get_current_span().get_span_context()
    row = {"case": "at", "due": due, "trace_id": trace.format_trace_id(context.trace_id)}
    append(os.environ["REAL_STARTS"], row)


@app.get("/hold/{milliseconds}")
async def hold(milliseconds: int, after: int = 0, rest: int = 0) -> None:
    await asyncio.sleep(after / 1000)
    app.state.begins = time.time() + NOTICE
    about_to_hold.set()
    await asyncio.sleep(NOTICE)
    append(os.environ["REAL_STARTS"], {"case": "begins"})
    with Held("hold", resumed=True):
        time.sleep(milliseconds / 1000)
    await asyncio.sleep(rest / 1000)


@app.get("/busy/{milliseconds}")
async def busy(milliseconds: int) -> None:
    """Computes, as a busy service does: so its backlog is not gone at once."""
    until = time.perf_counter() + milliseconds / 1000
    while time.perf_counter() < until:
        pass


@app.get("/gather/{milliseconds}")
async def gather(milliseconds: int) -> None:
    await asyncio.gather(tick(milliseconds), never_within(milliseconds))


async def never_within(milliseconds: int) -> None:
    await asyncio.sleep(milliseconds / 1000)


@app.get("/thread/{milliseconds}")
async def thread(milliseconds: int) -> None:
    await asyncio.to_thread(time.sleep, milliseconds / 1000)


@app.get("/fails/{milliseconds}")
async def fails(milliseconds: int) -> None:
    await tick(milliseconds)
    raise LookupError("on purpose")


@app.get("/stream/{milliseconds}")
async def stream(milliseconds: int) -> StreamingResponse:
    async def ticks() -> AsyncIterator[bytes]:
        for _ in range(milliseconds // 10):
            yield b"tick\n"
            await asyncio.sleep(0.01)

    return StreamingResponse(ticks())


@app.websocket("/socket")
async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    async for _ in websocket.iter_text():
        pass


@app.get("/stats")
async def stats() -> dict[str, float]:
    return guard.stats()


@mounted.get("/tick/{milliseconds}")
async def tick_mounted(milliseconds: int) -> None:
    await tick(milliseconds)


app.mount("/tenants/{tenant}", mounted)
app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
guard = loopguard.install(app, budget=BUDGET, jsonl=os.environ["REAL_JSONL"])
if TELEMETRY == "contrib":
    FastAPIInstrumentor.instrument_app(app)
