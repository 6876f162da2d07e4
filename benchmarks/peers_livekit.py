"""LiveKit's monitor on the corpus: one module of the wheel `livekit-agents`, which lies where LIVEKIT says.

What it imports from the rest of that package is put in its place: a log, and a session that there is none of. Its
limits on what it tells a minute are lifted.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from fastapi import FastAPI
from opentelemetry import trace

from benchmarks.peers_told import Line, Told
from tests.corpus import session

_FRAME = re.compile(r'File "(.+)", line (\d+)')


def _stand_in(name: str, **values: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(values)
    sys.modules[name] = module
    return module


def _load() -> Any:
    package = Path(os.environ["LIVEKIT"]) / "livekit" / "agents"
    _stand_in("livekit", __path__=[str(package.parent)])
    _stand_in("livekit.agents", __path__=[str(package)])
    telemetry = "livekit.agents.telemetry"
    _stand_in("livekit.agents.log", logger=logging.getLogger("livekit"))
    inside = {
        "otel_metrics": _stand_in(f"{telemetry}.otel_metrics", record_event_loop_blocked=_nothing),
        "session_context": _stand_in(f"{telemetry}.session_context", primary_session=_nothing),
        "traces": _stand_in(f"{telemetry}.traces", tracer=trace.get_tracer("livekit")),
    }
    _stand_in(telemetry, __path__=[str(package / "telemetry")], **inside)
    return importlib.import_module(f"{telemetry}.loop_monitor")


def _nothing(*_: object, **__: object) -> None:
    return None


class Peer:
    def __init__(self) -> None:
        self._module = _load()
        self._reports: list[Any] = []

    def install(self, _app: FastAPI) -> None:
        pass

    @asynccontextmanager
    async def on_loop(self) -> AsyncIterator[None]:
        """Only while the loop runs: what is between two runs is a stall to it."""
        monitor = self._module.EventLoopMonitor(asyncio.get_running_loop(), emit_spans=False)
        monitor._on_report = self._reports.append
        monitor._span_limiter = self._module._RateLimiter(sys.maxsize)
        monitor.start()
        try:
            yield
        finally:
            monitor.stop()

    def told(self) -> list[session.Row]:
        told = [_told(report).row() for report in self._reports]
        self._reports.clear()
        return told


def _told(report: Any) -> Told:
    span = report.parent_span_context
    return Told(
        started_at=report.started_at,
        duration=report.duration,
        stack=_stack(report.stacks[-1]) if report.stacks else [],
        trace_id=None if span is None else f"{span.trace_id:032x}",
        causes=_causes(report),
        said=repr(report),
    )


def _causes(report: Any) -> list[str]:
    if report.process_descheduled:
        return ["not_scheduled"]
    if report.importing:
        return ["import"]
    return ["gc"] if report.gc_time >= report.duration / 2 else []


def _stack(text: str) -> list[Line]:
    return [(file, int(line)) for file, line in reversed(_FRAME.findall(text))]


if __name__ == "__main__":
    session.run(Peer(), *sys.argv[1:])
