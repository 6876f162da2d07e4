"""Runs cases on one loop, in a process of its own, and writes what was told of each: by loopguard, or by another.

Arguments: the loop, the file for the rows, how many times, and the cases' names.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import uvicorn
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider

from tests.corpus import label
from tests.corpus.cases import CASES
from tests.corpus.label import BLOCK, Case, rest
from tests.withheld import most_withheld, run_delays

if TYPE_CHECKING:
    from loopguard.record import Stall

Row = dict[str, Any]

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


class Watcher(Protocol):
    """What watches the loop, and tells of stalls; each told of is an object that JSON can hold."""

    def install(self, app: FastAPI) -> None:
        """Before the loop runs."""

    def on_loop(self) -> AbstractAsyncContextManager[object]:
        """Entered on the loop before each case, and left behind it."""

    def told(self) -> list[Row]:
        """All that was told since the last time, complete."""


class Loopguard:
    def __init__(self) -> None:
        self._stalls: list[Stall] = []

    def install(self, app: FastAPI) -> None:
        import loopguard  # only here: the other watchers must not load it

        self._guard = loopguard.install(app, budget=0.1, log=False, on_stall=self._stalls.append)

    def on_loop(self) -> AbstractAsyncContextManager[object]:
        return nullcontext()

    def told(self) -> list[Row]:
        assert self._guard.flush(10)
        told = [stall.to_dict() for stall in self._stalls]
        self._stalls.clear()
        return told


class Served:
    """An app under uvicorn, on a loop that is run again and again."""

    def __init__(self, runner: asyncio.Runner, app: FastAPI) -> None:
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
    def __init__(self, runner: asyncio.Runner, watcher: Watcher) -> None:
        self.runner = runner
        self.watcher = watcher
        self.served = Served(runner, app)
        self.count = 0

    def take(self, case: Case) -> Row:
        """Run a case, and give what is known of it: the truth, and what was told; or why it could not be run."""
        if lacking := case.unable():
            return {"lacking": lacking}
        label.aim, took = BLOCK, 0.0
        for _ in range(_TRIES):
            row = self._once(case)
            took = row["left"] - row["entered"]
            if case.innocent or took >= _LEAST:
                return row
            label.aim = min(label.aim * BLOCK / took, 8 * BLOCK)
        return {"lacking": f"it takes {took:.3f} s, whatever was measured before: too little"}

    def _once(self, case: Case) -> Row:
        self.watcher.told()  # of an earlier case, too late
        label.truths.clear()
        self.count += 1
        trace_id = f"{self.count:032x}"
        arguments = () if case.given is None else (case.given(),)
        delays, began = run_delays(), time.time()
        self.runner.run(self._live(case, trace_id, arguments))
        ended = time.time()
        told = self.watcher.told()
        del arguments
        label.kept.clear()
        gc.enable()
        [(entered, left)] = label.truths or [(began, ended)]
        return {
            "case": case.name,
            "entered": entered,
            "left": left,
            "withheld": most_withheld(delays, run_delays()),
            "trace_id": trace_id if case.served else None,
            "records": told,
        }

    async def _live(self, case: Case, trace_id: str, arguments: tuple[object, ...]) -> None:
        async with self.watcher.on_loop():
            await rest()
            if case.served:
                given[case.name] = arguments
                await self.served.ask(case.name, trace_id)
            else:
                await case.work(*arguments)
            await rest()


@contextmanager
def new_runner(loop: str) -> Iterator[asyncio.Runner]:
    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner


def run(watcher: Watcher, loop: str, file: str, times: str, *names: str) -> None:
    trace.set_tracer_provider(TracerProvider())
    FastAPIInstrumentor.instrument_app(app)
    watcher.install(app)
    with new_runner(loop) as runner, open(file, "a", buffering=1) as rows:
        session = Session(runner, watcher)
        for turn in range(int(times)):
            for name in names:
                row = session.take(CASES[name])
                rows.write(json.dumps({"case": name, "turn": turn, "loop": loop, **row}) + "\n")
        runner.run(session.served.stop())


if __name__ == "__main__":
    run(Loopguard(), *sys.argv[1:])
