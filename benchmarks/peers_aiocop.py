"""aiocop on the corpus: set up as its documentation says, at the same threshold, with trace and route as context."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

import aiocop
from fastapi import FastAPI
from opentelemetry import trace

from benchmarks.peers_told import Line, Told, own_line
from tests.corpus import session

# What it says, and what that may stand for.
_REASONS = {"io_blocking": ["blocking_call"], "cpu_blocking": ["cpu", "gil_hold"]}


class Peer:
    def __init__(self) -> None:
        self._events: list[session.Row] = []

    def install(self, _app: FastAPI) -> None:
        aiocop.patch_audit_functions()
        aiocop.start_blocking_io_detection(trace_depth=20)
        aiocop.register_context_provider(_current_request)
        aiocop.detect_slow_tasks(threshold_ms=100, on_slow_task=self._tell)

    def on_loop(self) -> AbstractAsyncContextManager[object]:
        aiocop.activate()  # again and again: it patches the loop that runs
        return nullcontext()

    def told(self) -> list[session.Row]:
        told = list(self._events)
        self._events.clear()
        return told

    def _tell(self, event: Any) -> None:
        if not event.exceeded_threshold:
            return
        told = Told(
            started_at=time.time() - event.elapsed_ms / 1000,
            duration=event.elapsed_ms / 1000,
            stack=_stack(event),
            trace_id=event.context.get("trace_id"),
            causes=_REASONS.get(event.reason, []),
            said=repr(event),
        )
        self._events.append(told.row())


def _stack(event: Any) -> list[Line]:
    """Of the stack that was sampled most; without a sample, of the first call that blocks."""
    traces = [each["trace"] for each in (*event.cpu_stack_samples, *event.blocking_events)]
    stacks = (
        [
            (file, int(line))
            for file, line, _ in (part.rsplit(":", 2) for part in text.split(" <- "))
        ]
        for text in traces
    )
    return next((stack for stack in stacks if own_line(stack)), [])


def _current_request() -> dict[str, Any]:
    span = trace.get_current_span()
    context = span.get_span_context()
    return {
        "trace_id": f"{context.trace_id:032x}" if context.is_valid else None,
        "route": (getattr(span, "attributes", None) or {}).get("http.route"),
    }


if __name__ == "__main__":
    session.run(Peer(), *sys.argv[1:])
