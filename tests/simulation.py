"""A loop, its heartbeat and its watchdog as they would run, on paper: random but repeatable, with known truth.

All times are nanoseconds; the beat before the one that comes late is at 0.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterator
from contextvars import Context
from dataclasses import dataclass
from typing import Literal

from loopguard.evidence import ActiveRequest, Iteration, LateBeat, Look, Wait
from tests.evidence import BUDGET, MS, STACK, SWITCH

INTERVAL = BUDGET // 2
SLACK = BUDGET // 20
LATENCY = MS // 5  # of a prompt watchdog

Kind = Literal["asyncio", "uvloop", "nothing"]


@dataclass(frozen=True)
class Callback:
    """What truly ran. `iteration_ns` is when its iteration began, `index` its place there."""

    name: int
    start_ns: int
    end_ns: int
    iteration_ns: int
    index: int
    waits: bool
    keeps_gil: bool
    request_ns: int | None

    @property
    def duration_ns(self) -> int:
        return self.end_ns - self.start_ns


@dataclass(frozen=True)
class World:
    """The time between two beats."""

    callbacks: tuple[Callback, ...]
    beat: LateBeat
    looks: tuple[Look, ...]

    def running(self, at_ns: int) -> Callback | None:
        return next((c for c in self.callbacks if c.start_ns <= at_ns < c.end_ns), None)

    def cpu_ns(self, until_ns: int) -> int:
        return sum(
            max(0, min(c.end_ns, until_ns) - c.start_ns) for c in self.callbacks if not c.waits
        )


def simulate(seed: int, kind: Kind) -> World:
    """Callbacks in iterations, until an iteration that began when the beat was due has come to it."""
    chance = random.Random(seed)
    callbacks = tuple(_callbacks(chance))
    end_ns = max(callbacks[-1].end_ns, INTERVAL) + chance.randrange(MS // 10)
    world = World(callbacks, _beat(end_ns, 0), ())
    world = World(callbacks, _beat(end_ns, world.cpu_ns(end_ns)), ())
    return World(callbacks, world.beat, tuple(_looks(world, kind, chance)))


def _beat(end_ns: int, cpu_ns: int) -> LateBeat:
    return LateBeat(0, INTERVAL, end_ns, 0, cpu_ns, 0, 0)


def _callbacks(chance: random.Random) -> Iterator[Callback]:
    now = chance.randrange(1, MS)
    began = -chance.randrange(1, MS)  # the first iteration is the one that the beat was in
    index = chance.randrange(1, 4)
    name = 0
    while True:
        last = began >= INTERVAL
        for _ in range(chance.choice((0, 1, 1, 2, 3) if began > 0 else (0, 0, 1, 2))):
            length = _length(chance)
            waits = chance.random() < 0.5
            request = None
            if chance.random() < 0.5:
                lead = min(chance.randrange(3 * MS), length // 4)
                request = now + lead if chance.random() < 0.6 else -chance.randrange(500 * MS)
            keeps = length > 20 * MS and chance.random() < 0.2
            yield Callback(name, now, now + length, began, index, waits, keeps, request)
            now += length
            index += 1
            name += 1
        if last and name:
            return
        now += chance.choice((10_000, 10_000, chance.randrange(30 * MS)))
        if now < INTERVAL and chance.random() < 0.3:
            now = INTERVAL  # the loop waits for the beat itself
        began, index = now, 0
        now += chance.randrange(5_000, 50_000)


def _length(chance: random.Random) -> int:
    """Around the budget, mostly, with the small ones that lie between."""
    longest = chance.choice((1, 5, 60, 99, 130, 180, 500)) * MS
    return chance.randrange(MS // 10, longest)


def _looks(world: World, kind: Kind, chance: random.Random) -> Iterator[Look]:
    """As the watchdog plans them, each answered promptly, or as soon as a callback lets the GIL go."""
    asked = INTERVAL + SLACK
    while asked < world.beat.at_ns:
        served = asked + chance.randrange(LATENCY // 10, LATENCY)
        callback = world.running(served)
        if callback is not None and callback.keeps_gil:
            served = callback.end_ns - 1  # it is served as the native call returns
        if served >= world.beat.at_ns:
            return
        yield _look(world, kind, asked, served)
        gap = BUDGET // 12 if served < 2 * BUDGET else served // 16
        asked = served + max(gap, MS)


def _look(world: World, kind: Kind, asked: int, served: int) -> Look:
    callback = world.running(served)
    if callback is None:
        return Look(asked, served, None, ())
    return Look(
        asked,
        served,
        (callback.iteration_ns, callback.index) if kind == "asyncio" else callback.name,
        STACK,
        request=_request(callback.request_ns, served),
        serves=True,
        iteration=_iteration(callback, kind),
        cpu_ns=world.cpu_ns(served),
        wait=Wait("poll", "") if callback.waits else None,
        gil_waits=(served - asked) // SWITCH,
    )


def _request(started_ns: int | None, served: int) -> ActiveRequest | None:
    if started_ns is None or started_ns > served:  # our layer has not been called yet
        return None
    return ActiveRequest({}, started_ns, Context(), weakref.ref(_Coroutine))


class _Coroutine:
    """Stands for that of a request."""


def _iteration(callback: Callback, kind: Kind) -> Iteration | None:
    if kind == "asyncio":
        return Iteration(callback.iteration_ns, 100_000, callback.index)
    if kind == "uvloop":  # libuv cuts the time to milliseconds
        return Iteration(callback.iteration_ns // MS * MS, 2 * MS, None)
    return None
