"""The demo's traces: sent to the OTLP endpoint that the environment names, if it names one."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fastapi import FastAPI
from rich.console import Console

from loopguard.cli.demo.show import show_traces
from loopguard.record import Stall
from loopguard.tell.printable import printable
from loopguard.tell.resource import resource_attributes

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

SERVICE = "loopguard-demo"
# Seconds that an endpoint has for one batch: one that does not answer must not hold up the demo.
EXPORT_WITHIN = 2.0
LAST_WORDS = 0.3


class TracesError(Exception):
    """The environment asks for traces that cannot be sent."""


def start_traces(app: FastAPI, console: Console, stack: contextlib.ExitStack) -> Traces | None:
    """Set up the SDK as an application would, if the environment names an endpoint; `stack` shuts it down.

    Raises:
        TracesError: the environment names a protocol that is not to be had.
    """
    if not _endpoint():
        return None
    try:
        traces = Traces(app)
    except ImportError as error:
        console.print(f"No traces: {error} (pip install 'asyncio-loopguard[demo]')")
        return None
    stack.callback(traces.close)
    return traces


class Traces:
    """A server span for each request, sent in batches."""

    def __init__(self, app: FastAPI) -> None:
        from opentelemetry import trace
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        named = "service.name" in resource_attributes(os.environ)
        self._complaints = _Complaints()
        self._provider = TracerProvider(
            resource=Resource.create({} if named else {"service.name": SERVICE}),
            shutdown_on_exit=False,  # it would wait for an endpoint that does not answer
        )
        self._provider.add_span_processor(BatchSpanProcessor(_exporter()))
        trace.set_tracer_provider(self._provider)
        # With this in place FastAPI's own telemetry steps aside: one server span for each request, in any version.
        FastAPIInstrumentor.instrument_app(
            app, tracer_provider=self._provider, exclude_spans=["receive", "send"]
        )

    def show(self, console: Console, stalls: Iterable[Stall], template: str) -> None:
        """Send all that there is, and print where it is to be seen, or in one line what went wrong."""
        self._provider.force_flush()
        if self._complaints.first:
            console.print(f"\nNo traces: {self._complaints.first}")
        else:
            show_traces(console, stalls, template)

    def close(self) -> None:
        """Send the rest, as far as that takes no time: Ctrl-C is to end the demo at once."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(LAST_WORDS)


def _endpoint() -> str:
    return os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get(
        "OTEL_EXPORTER_OTLP_ENDPOINT", ""
    )


def _exporter() -> SpanExporter:
    protocol = (
        os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "http/protobuf"
    )
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
            OTLPSpanExporter as HttpExporter,
        )

        return HttpExporter(timeout=EXPORT_WITHIN)
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
            OTLPSpanExporter as GrpcExporter,
        )

        return GrpcExporter(timeout=EXPORT_WITHIN)
    raise TracesError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol!r}: must be http/protobuf or grpc")


class _Complaints(logging.Handler):
    """Keeps the first complaint of the SDK to itself, instead of a traceback for each batch on stderr."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.first: str | None = None
        logger = logging.getLogger("opentelemetry")
        logger.addHandler(self)
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        address = urlsplit(_endpoint())
        reason = printable(record.getMessage())
        self.first = self.first or f"{address.hostname}:{address.port} did not take them: {reason}"
