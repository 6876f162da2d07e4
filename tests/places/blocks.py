"""How every place blocks, and the spans that it is told by: shared by the applications of this room."""

from __future__ import annotations

import os

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from tests.span_file import SpanFile

BLOCK = 0.25


def trace_to_file() -> None:
    provider = TracerProvider()
    provider.add_span_processor(SpanFile(os.environ["REAL_SPANS"]))
    trace.set_tracer_provider(provider)
