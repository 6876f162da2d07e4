"""Runs cases on one loop, in a process of its own, and writes what loopguard told of each.

Arguments: the loop, the file for the rows, how many times, and the cases' names.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider

import loopguard
from loopguard.record import Stall
from tests.corpus import label
from tests.corpus.cases import CASES
from tests.corpus.label import BLOCK, Case, rest

ROUTE = "/cases/{name}"
_LEAST = (
    0.2  # what takes less, because the machine is quicker now than it was, is done again with more
)
_TRIES = 4

app = FastAPI()
given: dict[str, tuple[object, ...]] = {}


@app.get(ROUTE)
async def serve(name: str) -> str:
    await CASES[name].work(*given.pop(name))
    return name


class Served:
    """The app under uvicorn, on a loop that is run again and again."""

    def __init__(self, runner: asyncio.Runner) -> None:
        config = uvicorn.Config(app, port=0, log_level="warning", access_log=False, loop="none")
        self.server = uvicorn.Server(config)
        runner.run(self._start())

    async def _start(self) -> None:
        self.task = asyncio.create_task(self.server.serve())
        while not self.server.started:
            await asyncio.sleep(0.01)
        [listener] = self.server.servers[0].sockets
        self.port = listener.getsockname()[1]

    async def ask(self, name: str, trace_id: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"GET /cases/{name} HTTP/1.1\r\nHost: corpus\r\nConnection: close\r\n"
        writer.write(f"{head}traceparent: 00-{trace_id}-{1:016x}-01\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 200 "), answer

    async def stop(self) -> None:
        self.server.should_exit = True
        await self.task


class Session:
    def __init__(self, runner: asyncio.Runner, records: list[Stall]) -> None:
        self.runner = runner
        self.records = records
        self.served = Served(runner)
        self.count = 0

    def take(self, case: Case, guard: loopguard.Guard) -> dict[str, Any]:
        """Run a case, and give what is known of it: the truth, and what was told."""
        label.aim = BLOCK
        for _ in range(_TRIES):
            row = self._once(case, guard)
            took = row["left"] - row["entered"]
            if case.innocent or took >= _LEAST:
                return row
            label.aim = min(label.aim * BLOCK / took, 8 * BLOCK)
        raise AssertionError(f"{case.name} always takes too little time")

    def _once(self, case: Case, guard: loopguard.Guard) -> dict[str, Any]:
        self.records.clear()
        label.truths.clear()
        self.count += 1
        trace_id = f"{self.count:032x}"
        arguments = () if case.given is None else (case.given(),)
        delays, began = _run_delays(), time.time()
        self.runner.run(self._live(case, trace_id, arguments))
        ended = time.time()
        assert guard.flush(10)
        del arguments
        label.kept.clear()
        gc.enable()
        [(entered, left)] = label.truths or [(began, ended)]
        return {
            "case": case.name,
            "entered": entered,
            "left": left,
            "withheld": _most_withheld(delays, _run_delays()),
            "trace_id": trace_id if case.served else None,
            "records": [record.to_dict() for record in self.records],
        }

    async def _live(self, case: Case, trace_id: str, arguments: tuple[object, ...]) -> None:
        await rest()
        if case.served:
            given[case.name] = arguments
            await self.served.ask(case.name, trace_id)
        else:
            await case.work(*arguments)
        await rest()


def _run_delays() -> dict[str, int]:
    """Of each thread, the nanoseconds for which it was ready to run and got no CPU; nothing where nobody tells."""
    delays = {}
    for task in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # it has ended
            delays[task.parent.name] = int(task.read_text().split()[1])
    return delays


def _most_withheld(before: dict[str, int], after: dict[str, int]) -> float:
    """Seconds for which the machine gave no CPU to the thread that lacked it most."""
    return max((after[task] - before.get(task, 0) for task in after), default=0) / 1e9


@contextmanager
def new_runner(loop: str) -> Iterator[asyncio.Runner]:
    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner


def run(loop: str, file: str, times: str, *names: str) -> None:
    trace.set_tracer_provider(TracerProvider())
    FastAPIInstrumentor.instrument_app(app)
    records: list[Stall] = []
    guard = loopguard.install(app, budget=0.1, log=False, on_stall=records.append)
    with new_runner(loop) as runner, open(file, "a", buffering=1) as rows:
        session = Session(runner, records)
        for turn in range(int(times)):
            for name in names:
                lacking = CASES[name].unable()
                row = {"lacking": lacking} if lacking else session.take(CASES[name], guard)
                rows.write(json.dumps({"case": name, "turn": turn, "loop": loop, **row}) + "\n")
        runner.run(session.served.stop())


if __name__ == "__main__":
    run(*sys.argv[1:])
