"""The spans of an application under test: to a file, and over OTLP where OpenTelemetry's own variables name an endpoint."""

from __future__ import annotations

import os

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from tests.real.truth import append


class SpanFile(SpanProcessor):
    """Writes each span that has ended, a JSON object a line, and which have begun, where a file is named for these."""

    def __init__(self, ended: str, begun: str | None = None) -> None:
        self._ended = ended
        self._begun = begun

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if self._begun is not None:
            append(self._begun, {"span_id": trace.format_span_id(span.context.span_id)})

    def on_end(self, span: ReadableSpan) -> None:
        append(
            self._ended,
            {
                "name": span.name,
                "kind": span.kind.name,
                "trace_id": trace.format_trace_id(span.context.trace_id),
                "span_id": trace.format_span_id(span.context.span_id),
                "parent_id": trace.format_span_id(span.parent.span_id) if span.parent else None,
                "start_ns": span.start_time,
                "end_ns": span.end_time,
                "attributes": dict(span.attributes or {}),
                "links": [
                    {
                        "trace_id": trace.format_trace_id(link.context.trace_id),
                        "span_id": trace.format_span_id(link.context.span_id),
                        "attributes": dict(link.attributes or {}),
                    }
                    for link in span.links
                ],
            },
        )


def otlp_processor(longest_queue: int = 2048) -> SpanProcessor | None:
    """In batches: a simple processor would send each request's span on the loop, and hold it."""
    if "OTEL_EXPORTER_OTLP_ENDPOINT" not in os.environ:
        return None
    exporter: SpanExporter
    if os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc

        exporter = grpc.OTLPSpanExporter()
    else:
        from opentelemetry.exporter.otlp.proto.http import trace_exporter as http

        exporter = http.OTLPSpanExporter()
    return BatchSpanProcessor(exporter, max_queue_size=longest_queue)
