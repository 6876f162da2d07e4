"""What the soak serves: a quick route, one that holds the loop in as many ways as there are causes, and what it sees of itself."""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

import loopguard

BUDGET = 0.04
HOLD = 0.08  # seconds: over budget and beat, and no longer than it must be
DIRECTORY = Path(os.environ["SOAK_DIRECTORY"])


class Counter(SpanExporter):
    """Counts the spans of stalls."""

    seen = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        Counter.seen += sum(span.name == "event_loop.stall" for span in spans)
        return SpanExportResult.SUCCESS


provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(Counter()))
trace.set_tracer_provider(provider)

app = FastAPI()
heard = 0


def listen(_stall: loopguard.Stall) -> None:
    global heard
    heard += 1


guard = loopguard.install(app, budget=BUDGET, jsonl=DIRECTORY / "stalls.jsonl", on_stall=listen)

# One way to hold the loop for each cause. What they need is made once, here.


def seconds_of(work: Callable[[], object]) -> float:
    """On a CPU: the machine may be busy."""
    began = time.thread_time()
    work()
    return time.thread_time() - began


def backtrack(length: int) -> object:
    return re.match(r"(a+)+$", "a" * length + "b")


LENGTH = 16
while seconds_of(partial(backtrack, LENGTH)) < HOLD:
    LENGTH += 1
POPULATION: list[list[object]] = []
while not POPULATION or seconds_of(gc.collect) < 1.3 * HOLD:
    POPULATION += [[] for _ in range(200_000)]
gc.freeze()  # so that no collection but ours goes through them
NEVER, (READER, WRITER) = threading.Lock(), socket.socketpair()
NEVER.acquire()
READER.settimeout(HOLD)
(DIRECTORY / "soaked.py").write_text(f"import time\ntime.sleep({HOLD})\n")
sys.path.insert(0, str(DIRECTORY))


async def sleeps() -> None:
    time.sleep(HOLD)


async def receives() -> None:
    try:
        READER.recv(1)
    except TimeoutError:
        return


async def locks() -> None:
    NEVER.acquire(timeout=HOLD)


async def computes() -> None:
    until = time.thread_time() + HOLD
    while time.thread_time() < until:
        pass


async def keeps_the_gil() -> None:
    backtrack(LENGTH)


async def waits_for_the_gil() -> None:
    thread = threading.Thread(target=backtrack, args=(LENGTH,))
    thread.start()
    thread.join()


async def collects() -> None:
    gc.unfreeze()
    gc.collect()
    gc.freeze()


async def imports() -> None:
    sys.modules.pop("soaked", None)
    importlib.import_module("soaked")


def nap() -> None:
    time.sleep(0.01)


async def crowds() -> None:
    """None of them is over the budget, and together they are over twice the budget."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    for _ in range(16):
        loop.call_soon(nap)
    loop.call_soon(done.set)
    await done.wait()


WAYS: dict[str, Callable[[], Awaitable[None]]] = {
    way.__name__: way
    for way in (
        *(sleeps, receives, locks, computes, keeps_the_gil, waits_for_the_gil, collects, imports),
        crowds,
    )
}
truth = (DIRECTORY / "truth.jsonl").open("a", buffering=1)


@app.get("/items/{item}")
async def items(item: int) -> int:
    return item


@app.get("/hold/{way}")
async def hold(way: str) -> None:
    began = time.time()
    await WAYS[way]()
    print(json.dumps({"way": way, "began": began, "ended": time.time()}), file=truth)


@app.get("/state")
async def state() -> dict[str, object]:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "stats": guard.stats(),
        "heard": heard,
        "spans": Counter.seen,
        "memory_mb": pages * os.sysconf("SC_PAGESIZE") / 1e6,
        "threads": threading.active_count(),
        "files": len(list(Path("/proc/self/fd").iterdir())) - 1,
    }


@app.get("/flush")
async def flush() -> bool:
    flushed = await asyncio.to_thread(guard.flush, 20)
    return flushed and await asyncio.to_thread(provider.force_flush)
