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
from opentelemetry.context import Context
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

import loopguard
from tests.real import blocking, innocent
from tests.real.truth import append

TELEMETRY = os.environ["REAL_TELEMETRY"]
INSTALL = os.environ["REAL_INSTALL"]


class SpanFile(SpanProcessor):
    """Writes what the test asks about spans, a JSON object a line: as each begins, and as each ends."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        append(os.environ["REAL_STARTS"], {"span_id": trace.format_span_id(span.context.span_id)})

    def on_end(self, span: ReadableSpan) -> None:
        append(
            os.environ["REAL_SPANS"],
            {
                "name": span.name,
                "kind": span.kind.name,
                "trace_id": trace.format_trace_id(span.context.trace_id),
                "span_id": trace.format_span_id(span.context.span_id),
                "parent_id": trace.format_span_id(span.parent.span_id) if span.parent else None,
                "start_ns": span.start_time,
                "end_ns": span.end_time,
                "stall_id": (span.attributes or {}).get("loopguard.stall.id"),
            },
        )


def otlp_exporter() -> SpanExporter:
    if os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc

        return grpc.OTLPSpanExporter()
    from opentelemetry.exporter.otlp.proto.http import trace_exporter as http

    return http.OTLPSpanExporter()


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
    provider.add_span_processor(SpanFile())
    if "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ:
        # In batches: a simple processor would send each request's span on the loop, and hold it.
        provider.add_span_processor(BatchSpanProcessor(otlp_exporter()))
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
