"""Ground truth: what the app itself knows of a line that holds its loop, written to a file."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from types import TracebackType

from opentelemetry import trace

from tests.withheld import most_withheld, run_delays


class Held:
    """Writes down the time that its body took, the CPU withheld in it, and the span that was active.

    The callback that held the loop began before the marked line: some time after the request was
    sent or, where the handler has `resumed` from an await since, just now. Times are unix seconds.
    """

    def __init__(self, case: str, *, resumed: bool = False) -> None:
        self.case = case
        self.resumed = resumed
        self.entered = 0.0
        self._delays: dict[str, int] = {}

    def __enter__(self) -> None:
        self._delays = run_delays()
        self.entered = time.time()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        left = time.time()
        span = trace.get_current_span().get_span_context()
        append(
            os.environ["REAL_TRUTH"],
            {
                "case": self.case,
                "resumed": self.resumed,
                "entered": self.entered,
                "left": left,
                "withheld": most_withheld(self._delays, run_delays()),
                "trace_id": trace.format_trace_id(span.trace_id) if span.is_valid else None,
                "span_id": trace.format_span_id(span.span_id) if span.is_valid else None,
            },
        )


def append(path: str, row: Mapping[str, object]) -> None:
    """Add one JSON line in one write, so that a reader never sees half of it for long."""
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")
