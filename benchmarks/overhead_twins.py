"""Twins for the overhead benchmark: processes alike but for the guard, that idle side by side.

`overhead.py` runs this several times. It prints, as JSON, what each of them took in each window.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import resource
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NoReturn, TextIO

from fastapi import FastAPI
from starlette.applications import Starlette

from benchmarks.overhead_app import (
    Server,
    make_plain,
    new_runner,
    output_of_its_own,
    use_what_everybody_uses,
)

WARM_UP_REQUESTS = 2000
BEAT_SECONDS = 0.05  # as the heartbeat at the default budget

Reading = dict[str, float]
StallCount = Callable[[], int]


# The contestants: what is done to the app before it runs. Each says how many stalls it has reported.


def bare(app: Starlette, loop: asyncio.AbstractEventLoop) -> StallCount:
    return lambda: 0


def floor(app: Starlette, loop: asyncio.AbstractEventLoop) -> StallCount:
    """The cheapest heartbeat that there could be: one that does nothing but wake the loop up."""

    def beat() -> None:
        loop.call_later(BEAT_SECONDS, beat)

    loop.call_soon(beat)
    return lambda: 0


def guarded(app: Starlette, loop: asyncio.AbstractEventLoop) -> StallCount:
    import loopguard  # only here: the others must not load it

    guard = loopguard.install(app)
    return lambda: int(guard.stats()["stalls"])


def pinged(app: Starlette, loop: asyncio.AbstractEventLoop) -> StallCount:
    """The detector that is usually written: a thread that asks for a sign of life, 50 times a second."""

    def watch() -> None:
        while not loop.is_closed():
            loop.call_soon_threadsafe(alive.set)
            time.sleep(0.02)

    alive = threading.Event()
    threading.Thread(target=watch, daemon=True).start()
    return lambda: 0


CONTESTANTS = {"bare": bare, "planted": bare, "guarded": guarded, "pinged": pinged}


# What a twin can be told to do.


class Meter:
    """CPU seconds of all threads of this process, wall seconds, and how often a thread went to sleep."""

    def __init__(self) -> None:
        self._start = self._now()

    def read(self) -> Reading:
        cpu, wall, sleeps = (now - then for now, then in zip(self._now(), self._start, strict=True))
        return {"cpu": cpu, "wall": wall, "sleeps": sleeps}

    def _now(self) -> tuple[float, float, float]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return time.process_time(), time.perf_counter(), usage.ru_nvcsw


class Work:
    """Each command is a method that takes a number."""

    def __init__(self, server: Server, stalls: StallCount) -> None:
        self.server = server
        self._stalls = stalls

    async def do(self, line: str) -> Reading:
        name, amount = line.split()
        command: Callable[[float], Awaitable[Reading]] = getattr(self, name)
        return await command(float(amount))

    async def requests(self, count: float) -> Reading:
        """Serve so many requests: what a process idles after, and what its memory is used for."""
        await self.server.serve(round(count))
        gc.collect()
        return {}

    async def serving(self, count: float) -> Reading:
        """Serve so many requests, and say what they took."""
        meter = Meter()
        await self.server.serve(round(count))
        return meter.read()

    async def idle(self, seconds: float) -> Reading:
        meter = Meter()
        await asyncio.sleep(seconds)
        return meter.read()

    async def memory(self, _: float) -> Reading:
        """Say how many bytes are resident, and how many of them are this process's own."""
        gc.collect()
        return memory_in_use(Path("/proc/self/smaps_rollup").read_text())

    async def stalls(self, _: float) -> Reading:
        return {"stalls": self._stalls()}


def memory_in_use(rollup: str) -> Reading:
    """Add up what Linux says in `smaps_rollup`, in bytes."""
    rows = [line.split() for line in rollup.splitlines()[1:]]
    kilobytes = {row[0]: int(row[1]) for row in rows}
    own = kilobytes["Private_Clean:"] + kilobytes["Private_Dirty:"]
    return {"rss": kilobytes["Rss:"] * 1024, "pss": kilobytes["Pss:"] * 1024, "uss": own * 1024}


# The twins.


class Twin:
    """A forked process that does as it is told, until it is told nothing more."""

    def __init__(self, live: Callable[[int, int], None]) -> None:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        self._process = os.fork()
        if self._process == 0:
            os.close(ours_out)
            os.close(ours_in)
            _live_and_die(lambda: live(theirs_in, theirs_out))
        os.close(theirs_in)
        os.close(theirs_out)
        self._commands = os.fdopen(ours_out, "w")
        self._readings = os.fdopen(ours_in)

    def __enter__(self) -> Twin:
        return self

    def __exit__(self, *_: object) -> None:
        """See it end. The younger twin must go first: it holds a copy of the elder's pipe."""
        self._commands.close()
        self._readings.close()
        os.waitpid(self._process, 0)

    def tell(self, command: str) -> None:
        print(command, file=self._commands, flush=True)

    def hear(self) -> Reading:
        if not (line := self._readings.readline()):
            raise RuntimeError("a twin has died")
        reading: Reading = json.loads(line)
        return reading


def _live_and_die(life: Callable[[], None]) -> NoReturn:
    """Never let a forked twin go on with what its parent was doing."""
    status = 1
    try:
        life()
        status = 0
    finally:
        if status:
            traceback.print_exc()
        os._exit(status)


def live(
    contestant: Callable[[Starlette, asyncio.AbstractEventLoop], StallCount],
    loop: str,
    app: Starlette,
    commands: int,
    readings: int,
) -> None:
    """Be a contestant: prepare the app, run its loop, obey."""
    with (
        new_runner(loop) as runner,
        os.fdopen(commands) as lines,
        os.fdopen(readings, "w") as answers,
    ):
        stalls = contestant(app, runner.get_loop())
        runner.run(obey(Work(Server(app), stalls), lines, answers))


async def obey(work: Work, commands: TextIO, readings: TextIO) -> None:
    """Do one command after another. While it waits for them, the loop idles as that of a quiet server does."""
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), commands)
    async with work.server.lifespan():
        while line := await lines.readline():
            print(json.dumps(await work.do(line.decode())), file=readings, flush=True)
    pipe.close()


def together(twins: dict[str, Twin], command: str) -> dict[str, Reading]:
    """Let all do it at the same time, so that a change of the machine's pace meets them alike."""
    for twin in twins.values():
        twin.tell(command)
    return {name: twin.hear() for name, twin in twins.items()}


# What is measured.


def warm_up(loop: str) -> None:
    """Run the app's code hot once, on an app of its own, before there are several processes."""

    async def run() -> None:
        server = Server(make_plain())
        async with server.lifespan():
            await server.serve(WARM_UP_REQUESTS)

    with new_runner(loop) as runner:
        runner.run(run())


@contextmanager
def forked(lives: Mapping[str, Callable[[FastAPI, int, int], None]]) -> Iterator[dict[str, Twin]]:
    """Processes forked from this one, with the same memory, and with the same app, not yet started."""
    app = make_plain()
    gc.collect()
    gc.freeze()  # a collection would touch, and so copy, every page that they share
    with ExitStack() as stack:
        twins = {
            name: stack.enter_context(Twin(partial(life, app))) for name, life in lives.items()
        }
        together(twins, f"requests {WARM_UP_REQUESTS}")
        yield twins


def measure(arguments: argparse.Namespace) -> dict[str, list[dict[str, Reading]]]:
    kinds = {"bare": bare, "floor": floor, "contestant": CONTESTANTS[arguments.contestant]}
    lives = {name: partial(live, kind, arguments.loop) for name, kind in kinds.items()}
    with forked(lives) as twins:
        return {
            "idle": [
                together(twins, f"idle {arguments.seconds}") for _ in range(arguments.windows)
            ],
            "memory": [together(twins, "memory 0")],
            "stalls": [together(twins, "stalls 0")],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant", choices=CONTESTANTS)
    parser.add_argument("loop", choices=["asyncio", "uvloop"])
    parser.add_argument("--windows", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    use_what_everybody_uses()
    with output_of_its_own() as result:
        warm_up(arguments.loop)
        json.dump(measure(arguments), result)


if __name__ == "__main__":
    main()
