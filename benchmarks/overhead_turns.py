"""One process of the overhead benchmark, in which an app is served bare and guarded by turns of 3 ms.

`overhead.py` runs this several times. It prints, as JSON, what each turn took.

The guard is installed for the whole time, on the running loop, as where uvicorn imports the app. What is put in and
taken out for a turn is all of it that lies on a request's way: the layer in the chain of middleware and the callback
in `gc.callbacks`. To install it anew for each turn would measure what follows an installation, not a guard at work:
it changes the class of the loop, so CPython specialises its bytecode again, for longer than a turn lasts, and no
heartbeat falls into 3 ms.

The heartbeat has turns of its own: the bare app, with a beat before each eighth request, brought about by
`Heartbeat.renew`, for by its timer it beats too seldom. That cancels the timer besides, so the sum is a little too high.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from benchmarks.overhead_app import (
    APPS,
    Server,
    new_runner,
    output_of_its_own,
    use_what_everybody_uses,
)

WARM_UP_REQUESTS = 2000
STEADY_REQUESTS_A_ROUND = 10
LEAD_IN = 20
REQUESTS = 33
REQUESTS_A_BEAT = 8
CALLS = 200
PLANTED_SHARE = 0.03

Turns = list[dict[str, float]]


def nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Contestant:
    """What is compared with the bare app: how it gets on a request's way and off it, and what it does beside that."""

    enter: Callable[[], None] = nothing
    leave: Callable[[], None] = nothing
    beat: Callable[[], None] = nothing
    beats_per_second: float = 0
    threads: tuple[threading.Thread, ...] = ()
    extra_requests: float = 0
    stalls: Callable[[], int] = lambda: 0


# The contestants.


def bare(_: Starlette) -> Contestant:
    return Contestant()


def planted(_: Starlette) -> Contestant:
    """Serve 3 % more requests than it admits."""
    return Contestant(extra_requests=PLANTED_SHARE)


def guarded(app: Starlette) -> Contestant:
    import loopguard
    from loopguard.watch.heartbeat import Heartbeat

    threads, callbacks, links = threading.enumerate(), list(gc.callbacks), list(chain(app))
    guard = loopguard.install(app)
    heart = next(each for each in gc.get_objects() if isinstance(each, Heartbeat))
    layer = next(link for link in chain(app) if link not in links)
    inside = [(link, "app") for link in chain(app) if getattr(link, "app", None) is layer]
    holder, place = (*inside, (app, "middleware_stack"))[0]
    on_collection = [callback for callback in gc.callbacks if callback not in callbacks]

    def enter() -> None:
        setattr(holder, place, layer)
        gc.callbacks.extend(on_collection)

    def leave() -> None:
        setattr(holder, place, layer.app)
        for callback in on_collection:
            gc.callbacks.remove(callback)

    leave()
    return Contestant(
        enter=enter,
        leave=leave,
        beat=heart.renew,
        beats_per_second=2 / guard.budget,
        threads=tuple(each for each in threading.enumerate() if each not in threads),
        stalls=lambda: int(guard.stats()["stalls"]),
    )


def chain(app: Starlette) -> Iterator[Any]:
    """Each ASGI app of a stack, from outside to inside."""
    link: Any = app.middleware_stack
    while link is not None:
        yield link
        link = getattr(link, "app", None)


def pinged(_: Starlette) -> Contestant:
    """The detector that is usually written: a thread that asks for a sign of life, 50 times a second."""
    loop, alive = asyncio.get_running_loop(), threading.Event()

    def ping() -> None:
        loop.call_soon_threadsafe(alive.set)

    def watch() -> None:
        while not loop.is_closed():
            ping()
            time.sleep(0.02)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return Contestant(beat=ping, beats_per_second=50, threads=(thread,))


CONTESTANTS = {"bare": bare, "planted": planted, "guarded": guarded, "pinged": pinged}


def work_now_and_then() -> NoReturn:
    """The app's other thread: about 50 µs of Python, 200 times a second."""
    while True:
        sum(range(3000))
        time.sleep(0.005)


# The turns.


class Match:
    """An app and a contestant, and the turns that they take. Each says how many microseconds of CPU one request took."""

    def __init__(self, server: Server, contestant: Contestant) -> None:
        self.server = server
        self.contestant = contestant

    async def requests(self, rounds: int) -> Turns:
        return await alternate([self.bare, self.guarded, self.beating], rounds)

    async def calls(self, rounds: int) -> Turns:
        """The same for an app that answers at once, called without a task."""
        return await alternate([self.bare_calls, self.guarded_calls], rounds)

    async def bare(self) -> float:
        await self.server.serve(LEAD_IN)
        start = time.process_time()
        await self.server.serve(REQUESTS)
        return (time.process_time() - start) / REQUESTS * 1e6

    async def guarded(self) -> float:
        count = round(REQUESTS * (1 + self.contestant.extra_requests))
        self.contestant.enter()
        await self.server.serve(LEAD_IN)
        start = time.process_time()
        await self.server.serve(count)
        end = time.process_time()
        self.contestant.leave()
        return (end - start) / REQUESTS * 1e6

    async def beating(self) -> float:
        """The bare app, with a beat before each eighth request."""
        app = self.server.app
        numbers = itertools.count()

        def with_beats(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
            if next(numbers) % REQUESTS_A_BEAT == 0:
                self.contestant.beat()
            return app(scope, receive, send)

        self.server.app = with_beats
        took = await self.bare()
        self.server.app = app
        return took

    async def bare_calls(self) -> float:
        return self._call(CALLS)

    async def guarded_calls(self) -> float:
        self.contestant.enter()
        took = self._call(round(CALLS * (1 + self.contestant.extra_requests)))
        self.contestant.leave()
        return took

    def _call(self, count: int) -> float:
        self.server.call(LEAD_IN)
        start = time.process_time()
        self.server.call(count)
        return (time.process_time() - start) / CALLS * 1e6

    async def threads_share(self, requests: int) -> float:
        """How much of the CPU time at full load the contestant's own threads take."""
        self.contestant.enter()
        own, all_of_it = self._threads_cpu(), time.process_time()
        await self.server.serve(requests)
        share = (self._threads_cpu() - own) / (time.process_time() - all_of_it)
        self.contestant.leave()
        return share

    def _threads_cpu(self) -> float:
        identifiers = [thread.ident for thread in self.contestant.threads if thread.ident]
        return sum(time.clock_gettime(time.pthread_getcpuclockid(each)) for each in identifiers)


async def alternate(turns: list[Callable[[], Awaitable[float]]], rounds: int) -> Turns:
    """Take turns; who begins changes each time.

    What lives by now is taken out of the collector's sight: a full collection costs as much as a hundred requests.
    """
    gc.collect()
    gc.freeze()
    taken = []
    for number in range(rounds):
        order = turns if number % 2 == 0 else turns[::-1]
        taken.append({turn.__name__: await turn() for turn in order})
        await asyncio.sleep(0)
    return taken


# What is measured.


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    app = APPS[arguments.app]()
    server = Server(app)
    async with server.lifespan():
        await server.serve(WARM_UP_REQUESTS)
        contestant = CONTESTANTS[arguments.contestant](app)
        match = Match(server, contestant)
        if arguments.app == "shell":
            return {"calls": await match.calls(arguments.rounds), "stalls": contestant.stalls()}
        alone = await condition(match, arguments.rounds)
        threading.Thread(target=work_now_and_then, daemon=True).start()
        beside = await condition(match, arguments.rounds)
        return {"alone": alone, "beside_thread": beside, "stalls": contestant.stalls()}


async def condition(match: Match, rounds: int) -> dict[str, Any]:
    return {
        "turns": await match.requests(rounds),
        "requests_a_beat": REQUESTS_A_BEAT,
        "beats_per_second": match.contestant.beats_per_second,
        "threads_share": await match.threads_share(rounds * STEADY_REQUESTS_A_ROUND),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant", choices=CONTESTANTS)
    parser.add_argument("loop", choices=["asyncio", "uvloop"])
    parser.add_argument("app", choices=APPS)
    parser.add_argument("--rounds", type=int, required=True)
    arguments = parser.parse_args()
    use_what_everybody_uses()
    with output_of_its_own() as result, new_runner(arguments.loop) as runner:
        json.dump(runner.run(measure(arguments)), result)


if __name__ == "__main__":
    main()
