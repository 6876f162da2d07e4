"""What the guard costs on this machine: measured, and each figure beside what an unguarded process takes.

Only what a healthy process pays. `benchmarks/` in the source measures more, and more exactly.
"""

from __future__ import annotations

import asyncio
import importlib.util
import statistics
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from loopguard.capture.clocks import process_switches
from loopguard.capture.lifespan import Lifespan
from loopguard.capture.requests import RequestTable
from loopguard.config import Config
from loopguard.guard import Guard
from loopguard.integrations.asgi import layer_around

_ROUNDS, _CALLS = 15, 4000
_WARM = 0.3  # seconds before it counts


@dataclass(frozen=True, slots=True)
class Idle:
    """An idle process with one loop: percent of a core, and how often it woke up in a second."""

    percent: float
    wakeups: float | None


@dataclass(frozen=True, slots=True)
class IdleCost:
    """The same process without a guard and with one."""

    loop: str
    bare: Idle
    guarded: Idle


def layer_us() -> float:
    """Microseconds that the ASGI layer adds to a request; the median of rounds in which both take turns."""
    table = RequestTable()
    layer = layer_around(_app, table, Lifespan(_no_end, _nothing), _raise)
    pairs = [(_seconds(_app), _seconds(layer)) for _ in range(_ROUNDS)]
    return statistics.median(guarded - bare for bare, guarded in pairs) / _CALLS * 1e6


def idle_costs(budget: float, seconds: float) -> Iterator[IdleCost]:
    """What an idle process takes, on each kind of loop that is installed; each takes twice that many seconds."""
    for name, new_loop in _loops():
        bare = _idle(new_loop, seconds)
        config = Config(budget=budget, log=False, traces=False, metrics=False)
        with Guard(config) as guard:
            guard.start(on_uninstall=_nothing)
            guarded = _idle(new_loop, seconds)
        yield IdleCost(name, bare, guarded)


def _loops() -> Iterator[tuple[str, Callable[[], asyncio.AbstractEventLoop]]]:
    yield "asyncio", asyncio.new_event_loop
    if importlib.util.find_spec("uvloop") is not None:
        import uvloop

        yield "uvloop", uvloop.new_event_loop


def _idle(new_loop: Callable[[], asyncio.AbstractEventLoop], seconds: float) -> Idle:
    async def rest() -> Idle:
        await asyncio.sleep(_WARM)
        began, cpu, switches = time.monotonic(), time.process_time(), process_switches()
        await asyncio.sleep(seconds)
        took = time.monotonic() - began
        spent = time.process_time() - cpu
        woken = process_switches()
        wakeups = None if woken is None or switches is None else (woken - switches) / took
        return Idle(100 * spent / took, wakeups)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(rest())


async def _app(scope: Any, receive: Any, send: Any) -> None:
    return None


def _seconds(app: Callable[[Any, Any, Any], Coroutine[Any, Any, None]]) -> float:
    """CPU seconds that so many requests take, without a server."""
    scope = {"type": "http"}
    began = time.thread_time()
    for _ in range(_CALLS):
        try:
            app(scope, None, None).send(None)
        except StopIteration:
            continue
    return time.thread_time() - began


async def _no_end() -> None:
    return None


def _nothing() -> None:
    return None


def _raise(error: BaseException) -> None:
    raise error
