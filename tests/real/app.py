"""The app under test: a FastAPI app that installs loopguard as its documentation says.

How it is set up comes from variables, because uvicorn imports it in a process of its own:
`REAL_TELEMETRY` (`none`, `before`, `after`: the contrib instrumentor before or after the install;
`fastapi`: FastAPI's own), `REAL_INSTALL` (`module`, `lifespan`), and the files and ports that
`server.py` sets. Where OpenTelemetry's own variables name an OTLP endpoint, the spans go there too.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)

import loopguard
from tests.real import blocking, innocent
from tests.real.truth import append

TELEMETRY = os.environ["REAL_TELEMETRY"]
INSTALL = os.environ["REAL_INSTALL"]


class SpanFile(SpanExporter):
    """Writes what the test asks about finished spans, a JSON object a line."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            append(
                os.environ["REAL_SPANS"],
                {
                    "name": span.name,
                    "kind": span.kind.name,
                    "trace_id": trace.format_trace_id(span.context.trace_id),
                    "span_id": trace.format_span_id(span.context.span_id),
                    "parent_id": trace.format_span_id(span.parent.span_id) if span.parent else None,
                },
            )
        return SpanExportResult.SUCCESS


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
    provider.add_span_processor(SimpleSpanProcessor(SpanFile()))
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
