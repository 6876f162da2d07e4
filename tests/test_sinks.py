"""Whatever a sink does, or somebody does to our threads, the others go on, and nothing waits for it without end."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog

import loopguard
from loopguard.tell import outlet
from tests.holding import BUDGET, changes_since, hold, left_in_process, run
from tests.reliability import Say
from tests.threads import strike, wait_until

ROOT = Path(__file__).resolve().parents[1]
SDK = importlib.util.find_spec("opentelemetry.sdk") is not None
NEEDS_DEV_FULL = pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
NEEDS_SDK = pytest.mark.skipif(not SDK, reason="OpenTelemetry's SDK is missing")
BROKEN = [
    pytest.param(
        *("jsonl", "raises"),
        marks=[NEEDS_DEV_FULL, pytest.mark.fault("disk full", "`jsonl=/dev/full`")],
    ),
    pytest.param(
        *("jsonl", "hangs"),
        marks=[
            NEEDS_DEV_FULL,
            pytest.mark.fault("a JSONL file that takes nothing", "a named pipe that nobody reads"),
        ],
    ),
    pytest.param(
        *("on_stall", "raises"),
        marks=pytest.mark.fault("`on_stall` raises", "a listener that raises each time"),
    ),
    pytest.param(
        *("on_stall", "hangs"),
        marks=pytest.mark.fault("`on_stall` hangs", "a listener that never returns"),
    ),
    pytest.param(
        *("on_ongoing", "raises"),
        marks=pytest.mark.fault("`on_ongoing` raises", "a listener that raises each time"),
    ),
    pytest.param(
        *("on_ongoing", "hangs"),
        marks=pytest.mark.fault("`on_ongoing` hangs", "a listener that never returns"),
    ),
    pytest.param(
        *("log", "raises"),
        marks=pytest.mark.fault("the log raises", "a processor of structlog that raises"),
    ),
    pytest.param(
        *("log", "hangs"),
        marks=pytest.mark.fault("the log hangs", "a processor of structlog that never returns"),
    ),
    pytest.param(
        *("spans", "raises"),
        marks=[NEEDS_SDK, pytest.mark.fault("tracing raises", "a span processor that raises")],
    ),
    pytest.param(
        *("spans", "hangs"),
        marks=[
            NEEDS_SDK,
            pytest.mark.fault("tracing hangs", "a span processor that never returns"),
        ],
    ),
]
NAMES = ("jsonl", "on_stall", "on_ongoing", "log", "spans")
LASTING = 6 * BUDGET  # so long that it is told of while it lasts
PATIENCE = 0.5


@dataclass
class World:
    """A guard with all sinks, one of which raises or hangs; what the others heard, as ids of stalls."""

    broken: str
    manner: str
    path: Path
    heard: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in NAMES})
    troubles: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def hear(self, sink: str, stall: str) -> None:
        if sink == self.broken:
            if self.manner == "raises":
                raise RuntimeError("no more of this")
            self.released.wait(60)
        self.heard[sink].append(stall)

    def log(self, _logger: object, _method: str, event: Any) -> Any:
        """A processor of structlog's."""
        if event["event"] == "event_loop.stall":
            self.hear("log", event["stall_id"])
        if event["event"] == "event_loop.guard.trouble":
            self.troubles.append(event["error"])
        raise structlog.DropEvent

    def guard(self) -> loopguard.Guard:
        with self.jsonl() as path:
            return loopguard.install(
                budget=BUDGET,
                jsonl=path,
                on_stall=lambda stall: self.hear("on_stall", stall.id),
                on_ongoing=lambda stall: self.hear("on_ongoing", stall.id),
            )

    @contextmanager
    def jsonl(self) -> Iterator[Path]:
        """A file; or one on a full disk; or a pipe that nobody reads any more."""
        if self.broken == "jsonl" and self.manner == "raises":
            yield Path("/dev/full")
        elif self.broken == "jsonl":
            os.mkfifo(self.path)
            reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
            yield self.path
            os.close(reader)
        else:
            yield self.path

    def all_heard(self) -> dict[str, list[str]]:
        if self.broken == "jsonl":
            return self.heard
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        return {**self.heard, "jsonl": [line["id"] for line in lines if not line["ongoing"]]}

    def release(self) -> None:
        """Let what hangs go on."""
        self.released.set()
        if self.path.is_fifo():
            os.close(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK))
        wait_until(lambda: not [t for t in threading.enumerate() if "loopguard" in t.name])


@pytest.fixture(scope="module", autouse=True)
def _everything_loaded() -> None:
    """What is made once in a process and stays: imported modules, libuv's pipe for signals."""
    with loopguard.install(log=False):
        run(asyncio.sleep(0))


@contextmanager
def spans_to(world: World) -> Iterator[None]:
    if not SDK:
        yield
        return
    from opentelemetry import trace
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

    class Processor(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            world.hear("spans", str((span.attributes or {})["loopguard.stall.id"]))

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Processor())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "get_tracer_provider", lambda: provider)
        yield


@pytest.fixture
def world(
    broken: str, manner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    monkeypatch.setattr(outlet, "PATIENCE", PATIENCE)
    made = World(broken, manner, tmp_path / "stalls.jsonl")
    structlog.configure(processors=[made.log])
    with ExitStack() as stack:
        stack.callback(structlog.reset_defaults)
        stack.enter_context(spans_to(made))
        stack.callback(made.release)
        yield made


@pytest.mark.parametrize("broken, manner", BROKEN)
def test_a_broken_sink_costs_its_own_records_and_no_others(world: World, row: Say) -> None:
    """They are counted, it is said once, and to end costs about a second at most."""
    before = left_in_process()
    guard = world.guard()
    run(hold(LASTING, times=3))
    began = time.monotonic()
    assert guard.flush(30)
    stats, ids = guard.stats(), [stall.id for stall in guard.stalls]
    others = {name for name in NAMES if name not in (world.broken, "on_ongoing")}
    if not SDK:
        others.discard("spans")
    assert len(ids) >= 3
    assert {name: world.all_heard()[name] for name in others} == dict.fromkeys(others, ids)
    assert world.heard.get(world.broken, []) == []
    assert stats["stalls"] == stats["logged"] + stats["suppressed"] + stats["dropped"] == len(ids)
    if world.broken in ("on_stall", "spans"):
        assert stats["sink_errors"] == len(ids)
    assert stats["sink_errors"] > 0
    if (world.broken, world.manner) != ("log", "hangs"):
        assert len(world.troubles) == 1
    guard.uninstall()
    took = time.monotonic() - began
    assert took < PATIENCE + 5
    world.release()
    assert changes_since(before) == {}
    row(
        f"all other sinks told each of the {len(ids)} stalls; flushed and ended within {took:.2f} s",
        f"{stats['sink_errors']} records of that sink, counted as `sink_errors`",
    )


HANGING = """
import asyncio, sys, threading, time
import loopguard
from tests.holding import hold

def hang(stall):
    threading.Event().wait()

guard = loopguard.install(budget=0.05, jsonl=sys.argv[1], on_stall=hang)
asyncio.run(hold(times=2))
before = time.monotonic()
flushed = guard.flush(0.2)
print(flushed, time.monotonic() - before, time.time())
"""


def test_a_process_whose_sink_hangs_for_ever_ends_in_about_a_second(tmp_path: Path) -> None:
    """And its records are where they could be brought to."""
    stalls = tmp_path / "stalls.jsonl"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", HANGING, str(stalls)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    ended = time.time()
    assert done.returncode == 0, done.stderr
    flushed, took, last = done.stdout.split()
    assert flushed == "False"
    assert 0.2 <= float(took) < 2
    assert ended - float(last) < 3
    assert len(stalls.read_text().splitlines()) >= 2
    assert "Traceback" not in done.stderr


LAST = """
import asyncio, sys, time
import loopguard

async def main():
    await asyncio.sleep(0.1)
    time.sleep(0.2)
    sys.exit(7)

loopguard.install(budget=0.05, jsonl=sys.argv[1])
asyncio.run(main())
"""


def test_a_first_stall_that_ends_with_its_process_is_told(tmp_path: Path) -> None:
    """Where the interpreter ends it starts no thread any more: those that tell of it must run already."""
    stalls = tmp_path / "stalls.jsonl"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LAST, str(stalls)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 7
    assert [json.loads(line)["call"] for line in stalls.read_text().splitlines()] == ["time.sleep"]
    assert "Traceback" not in done.stderr
    assert '"event_loop.stall"' in done.stderr


# Threads that somebody kills


@pytest.mark.fault(
    "our threads killed",
    "`SystemExit` or `RuntimeError` raised in each of them from outside, again and again",
)
@pytest.mark.skipif(sys.implementation.name != "cpython", reason="needs CPython's C API")
# It may be struck between the opening of a file and its `with`: then the file is closed as it is collected.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
# The exception may reach a thread that the struck one has just begun to start (CPython knows it by its starter until then).
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "thread, kind",
    [
        *(("watchdog", SystemExit), ("watchdog", RuntimeError), ("reporter", SystemExit)),
        *(("reporter", RuntimeError), ("jsonl", SystemExit), ("on_stall", RuntimeError)),
    ],
)
def test_a_thread_that_is_killed_goes_on(
    thread: str, kind: type[BaseException], tmp_path: Path, row: Say
) -> None:
    """Once, and then again and again: what comes later is found and told by every sink."""
    heard: list[loopguard.Stall] = []
    path = tmp_path / "stalls.jsonl"
    before = left_in_process()
    guard = loopguard.install(budget=BUDGET, jsonl=path, on_stall=heard.append, log=False)
    for times in (1, 3):
        for _ in range(times):
            strike(f"loopguard-{thread}", kind)
            run(hold())
        assert guard.flush(30)
    stats = guard.stats()
    run(hold())
    assert guard.flush(30)
    last = guard.stalls[-1].id
    assert guard.stats()["stalls"] > stats["stalls"]
    assert heard[-1].id == last
    assert json.loads(path.read_text().splitlines()[-1])["id"] == last
    assert (stats["watchdog_restarts"] > 0) is (thread == "watchdog")
    assert stats["troubles"] > 0
    assert stats["stalls"] == stats["logged"] + stats["suppressed"] + stats["dropped"]
    guard.uninstall()
    assert changes_since(before) == {}
    row(
        "each goes on with its work; later stalls are found and told by every sink",
        "what it was doing then, counted in `troubles`, `dropped` or `sink_errors`",
    )


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="needs CPython's C API")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_death_of_the_watchdog_is_said_once() -> None:
    logged: list[dict[str, Any]] = []

    def process(_logger: object, _method: str, event: Any) -> Any:
        logged.append(event)
        raise structlog.DropEvent

    structlog.configure(processors=[process])
    try:
        guard = loopguard.install(budget=BUDGET)
        run(hold())
        for _ in range(3):
            strike("loopguard-watchdog", SystemExit)
            run(hold())
            assert guard.flush(30)
        assert guard.stats()["watchdog_restarts"] == guard.stats()["troubles"] == 3
        said = [each["trouble"] for each in logged if each["event"] == "event_loop.guard.trouble"]
        assert len(said) == 1
        assert said[0].startswith("SystemExit in ")
        found = [each for each in logged if each["event"] == "event_loop.stall"]
        assert len(found) == guard.stats()["stalls"] >= 3
    finally:
        structlog.reset_defaults()


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="needs CPython's C API")
def test_a_watchdog_that_is_struck_as_it_begins_watches_all_the_same() -> None:
    """It starts a thread of its own then, which the exception may reach instead, so that it never runs."""
    for _ in range(12):
        with loopguard.install(budget=BUDGET, log=False) as guard:
            strike("loopguard-watchdog", SystemExit)
            run(hold(times=2))  # the exception may reach it in its first look at the first
            assert guard.flush(10)
            assert guard.stalls[-1].call == "time.sleep"
