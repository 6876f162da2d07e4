"""How every place blocks, and the spans that it is told by: shared by the applications of this room."""

from __future__ import annotations

import os
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from tests.real.truth import append

BLOCK = 0.25


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


def trace_to_file() -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(SpanFile()))
    trace.set_tracer_provider(provider)
