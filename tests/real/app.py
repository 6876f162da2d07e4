"""The app under test: a FastAPI app that installs loopguard as its documentation says.

How it is set up comes from variables, because uvicorn imports it in a process of its own:
`REAL_TELEMETRY` (`none`, `before`, `after`: the contrib instrumentor before or after the install;
`fastapi`: FastAPI's own; `both`: that inside of contrib's middleware), `REAL_INSTALL` (`module`, `lifespan`), and the files and ports that
`server.py` sets. Where OpenTelemetry's own variables name an OTLP endpoint, the spans go there too.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider

import loopguard
from tests.real import blocking, innocent
from tests.span_file import SpanFile, otlp_processor

TELEMETRY = os.environ["REAL_TELEMETRY"]
INSTALL = os.environ["REAL_INSTALL"]


def install(app: FastAPI) -> loopguard.Guard:
    return loopguard.install(app, jsonl=os.environ["REAL_JSONL"])


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    if INSTALL == "lifespan":
        install(app)
    yield
    await asyncio.to_thread(provider.force_flush)  # uvicorn ends by a signal: no exit handler runs


provider = TracerProvider()
if TELEMETRY != "none":
    provider.add_span_processor(SpanFile(os.environ["REAL_SPANS"], os.environ["REAL_STARTS"]))
    if (over_otlp := otlp_processor()) is not None:
        provider.add_span_processor(over_otlp)
    trace.set_tracer_provider(provider)

app = FastAPI(lifespan=lifespan)

api = APIRouter(prefix="/v1")
api.include_router(blocking.router)
app.include_router(api)
app.include_router(innocent.router)
app.mount("/tenants/{tenant}", blocking.mounted)

if TELEMETRY == "before":
    FastAPIInstrumentor.instrument_app(app)
if INSTALL == "module":
    install(app)
if TELEMETRY == "after":
    FastAPIInstrumentor.instrument_app(app)

# What is served. Put into the app's own stack, contrib's middleware would turn FastAPI's telemetry off.
served = OpenTelemetryMiddleware(app) if TELEMETRY == "both" else app
