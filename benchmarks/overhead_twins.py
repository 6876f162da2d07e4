"""One pair of twins for the overhead benchmark: processes alike but for the guard, that take turns at the same work.

`overhead.py` runs this several times. It prints, as JSON, what each turn took.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import resource
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import structlog
import uvloop
from fastapi import Depends, FastAPI, Header
from opentelemetry import context, metrics, trace
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

IN_FLIGHT = 20
WARM_UP_REQUESTS = 2000
LEAD_IN_SHARE = 0.1
PLANTED_SHARE = 0.03
CALLS_AT_A_TIME = 500  # a few milliseconds: far below any budget

Reading = dict[str, float]
Pair = tuple[Reading, Reading]  # bare, contestant
StallCount = Callable[[], int]


# The app: a route as people write them, with a path parameter, a dependency and a JSON answer.


class User(BaseModel):
    name: str
    admin: bool


class Order(BaseModel):
    id: int
    owner: str
    items: list[str]
    paid: bool


async def current_user(authorization: Annotated[str, Header()]) -> User:
    await asyncio.sleep(0)  # one turn of the loop, in place of a look into a database
    return User(name=authorization.removeprefix("Bearer "), admin=False)


async def show_order(order_id: int, user: Annotated[User, Depends(current_user)]) -> Order:
    await asyncio.sleep(0)
    return Order(id=order_id, owner=user.name, items=["tea", "milk", "sugar"], paid=True)


def make_route() -> Starlette:
    app = FastAPI()
    app.get("/orders/{order_id}")(show_order)
    return app


class AnswersAtOnce:
    """An ASGI app in the guise of a middleware, so that little stands around the layer under test."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def make_shell() -> Starlette:
    return Starlette(middleware=[Middleware(AnswersAtOnce)])


# The contestants: what is done to the app before it runs. Each says how many stalls it has reported.


def leave_bare(app: Starlette, loop: asyncio.AbstractEventLoop) -> StallCount:
    return lambda: 0


def guard(app: Starlette, loop: asyncio.AbstractEventLoop) -> StallCount:
    import loopguard  # only here: the bare twin must not load it

    guard = loopguard.install(app)
    return lambda: int(guard.stats()["stalls"])


def ping(app: Starlette, loop: asyncio.AbstractEventLoop) -> StallCount:
    """Add the detector that is usually written: a thread that asks for a sign of life, 50 times a second."""

    def watch() -> None:
        while not loop.is_closed():
            loop.call_soon_threadsafe(alive.set)
            time.sleep(0.02)

    alive = threading.Event()
    threading.Thread(target=watch, daemon=True).start()
    return lambda: 0


CONTESTANTS = {"bare": leave_bare, "planted": leave_bare, "guarded": guard, "pinged": ping}


def work_now_and_then() -> NoReturn:
    """The app's other thread: about 50 µs of Python, 200 times a second."""
    while True:
        sum(range(3000))
        time.sleep(0.005)


# The server: what uvicorn does for each request, without a socket and a parser.


class Exchange:
    """One request of a client and the app's answer to it."""

    __slots__ = ("scope", "status")

    def __init__(self, number: int, state: dict[str, Any]) -> None:
        path = f"/orders/{number}"
        self.status = 0
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 50000),
            "scheme": "http",
            "root_path": "",
            "headers": [(b"host", b"shop"), (b"authorization", b"Bearer me"), (b"accept", b"*/*")],
            "state": state.copy(),
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
        }

    async def receive(self) -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]

    async def run(self, app: ASGIApp) -> None:
        await app(self.scope, self.receive, self.send)
        if self.status != 200:
            raise RuntimeError(f"the app answered {self.status}")


class Server:
    """Drives an ASGI app as a server does: lifespan, connections, a task for each request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.state: dict[str, Any] = {}

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        told: asyncio.Queue[Message] = asyncio.Queue()
        answered: asyncio.Queue[Message] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": self.state}
        running = asyncio.ensure_future(self.app(scope, told.get, answered.put))
        await told.put({"type": "lifespan.startup"})
        if (answer := await answered.get())["type"] != "lifespan.startup.complete":
            raise RuntimeError(f"the app did not start: {answer}")
        yield
        await told.put({"type": "lifespan.shutdown"})
        await running

    async def serve(self, requests: int) -> None:
        """Answer so many requests, 20 at a time."""
        numbers = iter(range(requests))
        await asyncio.gather(*(self._connection(numbers) for _ in range(min(IN_FLIGHT, requests))))

    async def _connection(self, numbers: Iterator[int]) -> None:
        """Answer one request after another: each in a task, so in its own copy of the connection's context.

        Being woken by the end of the task stands for the next request's data coming in.
        """
        for number in numbers:
            await asyncio.create_task(Exchange(number, self.state).run(self.app))

    def call(self, times: int) -> None:
        """Call the app and nothing else, one request like the other, each in a context of its own as in a task."""
        exchange = Exchange(0, self.state)
        app, scope, receive, send = self.app, exchange.scope, exchange.receive, exchange.send
        for _ in range(times):
            copy_context().run(_finish, app, scope, receive, send)


def _finish(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run an app that never waits."""
    with suppress(StopIteration):
        app(scope, receive, send).__await__().__next__()


# What a twin can be told to do.


class Meter:
    """CPU seconds of all threads of this process, wall seconds, and how often a thread went to sleep."""

    def __init__(self) -> None:
        self._start = self._now()

    def read(self, count: float) -> Reading:
        cpu, wall, sleeps = (now - then for now, then in zip(self._now(), self._start, strict=True))
        return {"cpu": cpu, "wall": wall, "sleeps": sleeps, "count": count}

    def _now(self) -> tuple[float, float, float]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return time.process_time(), time.perf_counter(), usage.ru_nvcsw


class Work:
    """Each command is a method that takes a number."""

    def __init__(self, server: Server, stalls: StallCount, extra_requests: float) -> None:
        self.server = server
        self._stalls = stalls
        self._extra = extra_requests

    async def do(self, line: str) -> Reading:
        name, amount = line.split()
        command: Callable[[float], Awaitable[Reading]] = getattr(self, name)
        return await command(float(amount))

    async def requests(self, count: float) -> Reading:
        """Serve so many requests. The planted contestant serves 3 % more, and does not say so."""
        await self.server.serve(round(count * LEAD_IN_SHARE) + 1)
        meter = Meter()
        await self.server.serve(round(count * (1 + self._extra)))
        return meter.read(count)

    async def calls(self, count: float) -> Reading:
        self.server.call(CALLS_AT_A_TIME)
        meter = Meter()
        for _ in range(round(count / CALLS_AT_A_TIME)):
            self.server.call(CALLS_AT_A_TIME)
            await asyncio.sleep(0)
        return meter.read(count)

    async def idle(self, seconds: float) -> Reading:
        meter = Meter()
        await asyncio.sleep(seconds)
        return meter.read(seconds)

    async def neighbour(self, threads: float) -> Reading:
        """From now on other threads of this process do some work too."""
        for _ in range(round(threads)):
            threading.Thread(target=work_now_and_then, daemon=True).start()
        return {}

    async def freeze(self, _: float) -> Reading:
        """Take what lives by now out of the collector's sight.

        A full collection costs as much as a hundred requests, and falls into one block in ten.
        """
        gc.collect()
        gc.freeze()
        return {}

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

    def ask(self, command: str) -> Reading:
        self.tell(command)
        return self.hear()


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


@dataclass(frozen=True, slots=True)
class Twins:
    """A bare process and its contestant."""

    bare: Twin
    contestant: Twin

    def alternate(self, command: str, blocks: int) -> list[Pair]:
        """Let one work while the other waits; who begins changes each time."""
        self.together(
            command
        )  # not counted: the first block pays for caches and specialised bytecode
        self.together("freeze 0")
        pairs = []
        for block in range(blocks):
            if block % 2 == 0:
                bare = self.bare.ask(command)
                contestant = self.contestant.ask(command)
            else:
                contestant = self.contestant.ask(command)
                bare = self.bare.ask(command)
            pairs.append((bare, contestant))
        return pairs

    def together(self, command: str, windows: int = 1) -> list[Pair]:
        """Let both do it at the same time: for what leaves the machine idle."""
        pairs = []
        for _ in range(windows):
            self.bare.tell(command)
            self.contestant.tell(command)
            pairs.append((self.bare.hear(), self.contestant.hear()))
        return pairs


@contextmanager
def twins(contestant: str, loop: str, make_app: Callable[[], Starlette]) -> Iterator[Twins]:
    """Fork two processes from this one, with the same memory, and with the same app, not yet started."""
    app = make_app()

    def life(kind: str) -> Callable[[int, int], None]:
        return lambda commands, readings: live(kind, loop, app, commands, readings)

    with Twin(life("bare")) as bare, Twin(life(contestant)) as other:
        yield Twins(bare, other)


def live(kind: str, loop: str, app: Starlette, commands: int, readings: int) -> None:
    """Be a contestant: prepare the app, run its loop, obey."""
    with (
        new_runner(loop) as runner,
        os.fdopen(commands) as lines,
        os.fdopen(readings, "w") as answers,
    ):
        stalls = CONTESTANTS[kind](app, runner.get_loop())
        extra = PLANTED_SHARE if kind == "planted" else 0.0
        runner.run(obey(Work(Server(app), stalls, extra), lines, answers))


def new_runner(loop: str) -> asyncio.Runner:
    return asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None)


async def obey(work: Work, commands: TextIO, readings: TextIO) -> None:
    """Do one command after another. While it waits for them, the loop idles as that of a quiet server does."""
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), commands)
    async with work.server.lifespan():
        while line := await lines.readline():
            print(json.dumps(await work.do(line.decode())), file=readings, flush=True)


# What is measured.


def use_what_everybody_uses() -> None:
    """Load structlog and OpenTelemetry as any app with logs and traces does: neither is loopguard's cost."""
    structlog.wrap_logger(structlog.PrintLogger(sys.stderr)).info("ready")
    with trace.get_tracer("benchmark").start_as_current_span("ready"):
        context.get_current()
    metrics.get_meter("benchmark").create_counter("ready").add(1)


def warm_up(loop: str) -> None:
    """Run the app's code hot once, on an app of its own, before there are two processes."""

    async def run() -> None:
        server = Server(make_route())
        async with server.lifespan():
            await server.serve(WARM_UP_REQUESTS)

    with new_runner(loop) as runner:
        runner.run(run())


def measure(arguments: argparse.Namespace) -> dict[str, list[Pair]]:
    requests = f"requests {arguments.requests}"
    with twins(arguments.contestant, arguments.loop, make_route) as pair:
        measured = {"request": pair.alternate(requests, arguments.blocks)}
        measured["idle"] = pair.together(f"idle {arguments.idle_seconds}", arguments.idle_windows)
        measured["memory"] = pair.together("memory 0")
        pair.together("neighbour 1")
        measured["request_beside_thread"] = pair.alternate(requests, arguments.blocks)
        measured["stalls"] = pair.together("stalls 0")
    with twins(arguments.contestant, arguments.loop, make_shell) as pair:
        measured["layer"] = pair.alternate(f"calls {arguments.calls}", arguments.blocks)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant", choices=CONTESTANTS)
    parser.add_argument("loop", choices=["asyncio", "uvloop"])
    for name in ("--blocks", "--requests", "--calls", "--idle-windows"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--idle-seconds", type=float, required=True)
    arguments = parser.parse_args()

    # The result has standard output to itself: whatever else is printed here is a complaint.
    result = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    use_what_everybody_uses()
    warm_up(arguments.loop)
    json.dump(measure(arguments), result)
    result.close()


if __name__ == "__main__":
    main()
