"""While it runs: pausing, another budget, exemptions, counts, and listeners that fail."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from contextvars import Context
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import loopguard
from loopguard.capture import clocks, contexts, system_calls
from loopguard.evidence import Held, Incident, LateBeat
from loopguard.record import Stall
from loopguard.tell.report import Report, Subscription
from loopguard.tell.reporter import LONGEST_QUEUE, REMEMBERED, Reporter
from loopguard.watch import timer
from tests.holding import (
    BUDGET,
    LONG,
    LOOPS,
    REST,
    changes_since,
    hold,
    left_in_process,
    run,
    told,
)
from tests.records import make_stall
from tests.reliability import Say

pytestmark = pytest.mark.core

ROOT = Path(__file__).parent.parent


def install(**options: Any) -> loopguard.Guard:
    return loopguard.install(**{"budget": BUDGET, "log": False, **options})


def balanced(guard: loopguard.Guard) -> bool:
    """Whether every stall is accounted for."""
    stats = guard.stats()
    return stats["stalls"] == stats["logged"] + stats["suppressed"] + stats["dropped"]


# Pausing, and another budget


@pytest.mark.parametrize("loop", LOOPS)
def test_a_stall_while_paused_is_not_reported(loop: str) -> None:
    guard = install()

    async def main() -> None:
        guard.pause()
        await hold()
        assert told(guard) == []
        guard.resume()
        await hold()

    run(main(), loop)
    assert len(told(guard)) == 1


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("order", ["pause", "resume", "both"])
def test_a_stall_that_lasts_when_it_is_paused_or_resumed_is_not_reported(
    order: str, loop: str
) -> None:
    guard = install()

    async def main() -> None:
        if order == "resume":
            guard.pause()
        await asyncio.sleep(REST)
        time.sleep(LONG / 2)
        if order != "resume":
            guard.pause()
        if order != "pause":
            guard.resume()
        time.sleep(LONG / 2)
        await asyncio.sleep(REST)
        assert told(guard) == []
        guard.resume()
        await hold()

    run(main(), loop)
    assert len(told(guard)) == 1


@pytest.mark.parametrize("loop", LOOPS)
def test_a_stall_before_the_pause_is_reported_in_it(loop: str) -> None:
    guard = install()

    async def main() -> None:
        await hold()
        guard.pause()

    run(main(), loop)
    assert len(told(guard)) == 1


@pytest.mark.parametrize("loop", LOOPS)
def test_the_budget_can_be_raised_and_lowered_while_it_runs(loop: str) -> None:
    guard = install()

    async def main() -> None:
        guard.budget = 4 * LONG
        await hold()
        assert told(guard) == []
        guard.budget = BUDGET
        time.sleep(LONG)
        await asyncio.sleep(REST)
        guard.budget = 3600
        await asyncio.sleep(REST)
        await asyncio.to_thread(setattr, guard, "budget", BUDGET)
        await hold()

    run(main(), loop)
    assert [stall.budget for stall in told(guard)] == [BUDGET, BUDGET]
    assert guard.budget == BUDGET


@pytest.mark.parametrize("value", [0, -1, 0.001, 3601, float("nan"), "soon", True, None])
def test_a_bad_budget_is_refused_and_the_old_one_stays(value: Any) -> None:
    guard = install()
    with pytest.raises(loopguard.ConfigError, match=r"from assignment to Guard\.budget"):
        guard.budget = value
    assert guard.budget == BUDGET


def test_severity_follows_the_error_budget() -> None:
    """Five budgets unless given, also after the budget was changed; 3600 means never."""

    def severity_of(**options: Any) -> str:
        with install(**options) as guard:
            run(hold(0.3))
            (stall,) = told(guard)
            return stall.severity

    assert severity_of() == "error"
    assert severity_of(budget=0.1) == "warning"
    assert severity_of(error_budget=3600) == "warning"
    assert severity_of(budget=0.1, error_budget=0.2) == "error"


# Exemptions


@loopguard.allow_blocking("sync")
def blocks(seconds: float) -> str:
    """A decorated function."""
    time.sleep(seconds)
    return "done"


@loopguard.allow_blocking("async")
async def blocks_later(seconds: float) -> str:
    """A decorated coroutine function, which blocks after a first step."""
    await asyncio.sleep(REST)
    time.sleep(seconds)
    return "done"


async def blocks_within(seconds: float) -> str:
    with loopguard.allow_blocking("outer"), loopguard.allow_blocking("inner"):
        await asyncio.sleep(0)
        time.sleep(seconds)
    return "done"


async def calls(seconds: float) -> str:
    return blocks(seconds)


@pytest.mark.parametrize("allowed", [calls, blocks_later, blocks_within])
def test_what_is_allowed_to_block_is_counted_and_not_reported(
    allowed: Callable[[float], Any], tmp_path: Path
) -> None:
    heard: list[Stall] = []
    guard = install(on_stall=heard.append, jsonl=tmp_path / "x")

    async def main() -> None:
        await asyncio.sleep(REST)
        assert await allowed(LONG) == "done"
        await asyncio.sleep(REST)

    run(main())
    assert told(guard) == []
    assert heard == []
    assert (tmp_path / "x").read_text() == ""
    assert (guard.stats()["exempt"], guard.stats()["stalls"]) == (1, 0)


def test_what_comes_after_the_allowed_block_is_reported() -> None:
    guard = install()

    async def main() -> None:
        await blocks_within(LONG)
        await hold()
        await blocks_later(0.0)
        time.sleep(LONG)
        await asyncio.sleep(REST)

    run(main())
    assert [stall.culprit.function for stall in told(guard) if stall.culprit] == [
        "hold",
        "test_what_comes_after_the_allowed_block_is_reported.<locals>.main",
    ]


def test_one_allowance_serves_several_tasks_at_a_time() -> None:
    """Entered by both before either leaves, and left in the order of entering."""
    allowed = loopguard.allow_blocking("shared")
    guard = install()

    async def task(seconds: float) -> None:
        with allowed:
            await asyncio.sleep(seconds)
        time.sleep(LONG)

    async def main() -> None:
        await asyncio.gather(task(0.05), task(0.2))
        await asyncio.sleep(REST)

    run(main())
    assert len(told(guard)) == 2, "each left it before it blocked"


def test_an_allowance_gives_errors_and_names_through() -> None:
    @loopguard.allow_blocking("reason")
    def fails() -> None:
        """What it says."""
        raise KeyError("theirs")

    with pytest.raises(KeyError, match="theirs"):
        fails()
    assert (fails.__name__, fails.__doc__) == ("fails", "What it says.")
    assert asyncio.iscoroutinefunction(blocks_later)


def generates() -> Iterator[int]:
    """A generator: its body runs on whoever asks it for the next."""
    yield 1


async def generates_later() -> AsyncIterator[int]:
    """The same, asynchronous."""
    yield 1


@pytest.mark.parametrize("function", [generates, generates_later])
def test_generators_cannot_be_decorated(function: Callable[..., object]) -> None:
    with pytest.raises(TypeError, match="not generators"):
        loopguard.allow_blocking("reason")(function)


@pytest.mark.parametrize("reason", ["", " ", None, 7, generates])
def test_an_allowance_needs_a_reason_in_words(reason: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="needs a reason in words"):
        loopguard.allow_blocking(reason)


@pytest.mark.parametrize(
    "pattern, exempt",
    [
        (f"{hold.__module__}.hold", True),
        ("tests.hold*", True),
        ("*.hold", True),
        ("nothing,*hold*", True),
        ("hold", False),
        ("tests.holding", False),
        ("TESTS.HOLDING.HOLD", False),
        ("serving", False),
    ],
)
def test_what_the_patterns_name_is_exempt(pattern: str, exempt: bool) -> None:
    guard = install(ignore=pattern)
    run(hold())
    assert len(told(guard)) == (not exempt)
    assert guard.stats()["exempt"] == exempt
    assert balanced(guard)


@pytest.mark.parametrize(
    "pattern, kept",
    [
        ("/slow/{item}", ["startup", "fast"]),
        ("/slow*", ["startup", "fast"]),
        ("startup", ["slow", "fast"]),
        ("serving", ["startup"]),
        (["/slow/4711"], ["startup", "slow", "fast"]),
    ],
)
def test_routes_and_phases_are_exempt_by_name(pattern: Any, kept: list[str]) -> None:
    """By the route's template and never by the path that was asked for."""
    from tests.test_install import lifespan_of, request

    fastapi = pytest.importorskip("fastapi")

    async def startup(app: object) -> AsyncIterator[None]:
        time.sleep(LONG)
        await asyncio.sleep(REST)
        yield

    async def slow() -> None:
        time.sleep(LONG)

    async def fast() -> None:
        time.sleep(LONG)

    app = fastapi.FastAPI(lifespan=asynccontextmanager(startup))
    app.add_api_route("/slow/{item}", slow)
    app.add_api_route("/fast", fast)
    guard = install(app=app, ignore=pattern)

    async def main() -> None:
        async with lifespan_of(app):
            for path in ("/slow/4711", "/fast"):
                await asyncio.sleep(REST)
                assert await request(app, path) == 200
                await asyncio.sleep(REST)

    run(main())
    names = [stall.culprit.function.split(".")[-1] for stall in told(guard) if stall.culprit]
    assert names == kept
    assert guard.stats()["exempt"] == 3 - len(kept)


# Counts and listeners


def test_every_stall_reaches_the_listener_and_the_file(tmp_path: Path) -> None:
    """Also those of one line that the log leaves out."""
    heard: list[Stall] = []
    guard = install(on_stall=heard.append, jsonl=tmp_path / "x", budget=0.01)
    run(hold(0.04, times=14))
    assert guard.flush(10)
    assert len(guard.stalls) >= 14
    lines = [json.loads(line) for line in (tmp_path / "x").read_text().splitlines()]
    assert [stall.id for stall in heard] == [stall.id for stall in guard.stalls]
    final = [line["id"] for line in lines if not line["ongoing"]]
    assert final == [stall.id for stall in guard.stalls]
    stats = guard.stats()
    assert balanced(guard)
    assert stats["stalls"] == len(heard)
    assert stats["suppressed"] >= 4


def test_the_listener_is_called_off_the_loops_thread() -> None:
    threads: list[str] = []
    guard = install(on_stall=lambda _: threads.append(threading.current_thread().name))
    run(hold())
    assert len(told(guard)) == 1
    assert set(threads) == {"loopguard-on_stall"}


class UnluckyError(Exception):
    """What a listener raises."""


@pytest.mark.parametrize("error", [UnluckyError("not today"), SystemExit("not today")])
def test_a_listener_that_raises_is_contained_counted_and_said_once(
    error: BaseException, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def unlucky(stall: Stall) -> None:
        raise error

    caplog.set_level(logging.INFO, "loopguard")
    guard = install(on_stall=unlucky, jsonl=tmp_path / "x", log=True)
    run(hold(times=3))
    assert len(told(guard)) == 3
    assert guard.stats()["sink_errors"] == guard.stats()["stalls"]
    assert len((tmp_path / "x").read_text().splitlines()) == guard.stats()["stalls"]
    said = [vars(record) for record in caplog.records if "trouble" in record.message]
    assert [record["error"] for record in said] == ["not today"]
    assert said[0]["trouble"].startswith(f"{type(error).__name__} in {__name__}:")
    assert balanced(guard)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_full_disk_is_contained_and_counted() -> None:
    heard: list[Stall] = []
    guard = install(jsonl="/dev/full", on_stall=heard.append)
    run(hold(times=2))
    assert len(told(guard)) == 2
    assert guard.stats()["sink_errors"] == guard.stats()["stalls"] == len(heard)
    assert balanced(guard)


def test_flush_gives_up_on_a_listener_that_hangs_and_the_loop_runs_on() -> None:
    release = threading.Event()
    guard = install(on_stall=lambda _: release.wait(10))

    async def main() -> None:
        await hold()
        assert not guard.flush(0.01)
        before = time.monotonic()
        await asyncio.sleep(0.01)
        assert time.monotonic() - before < 5

    run(main())
    release.set()
    assert len(told(guard)) == 1


def test_a_flushed_record_outlives_the_process(tmp_path: Path) -> None:
    """It ends the moment that flush() has answered, without any cleaning up."""
    script = f"""
import asyncio, os, sys
import loopguard
from tests.holding import hold
guard = loopguard.install(budget={BUDGET}, jsonl=sys.argv[1], log=False)
asyncio.run(hold(times=2))
os._exit(7 if guard.flush(10) else 8)
"""
    stalls = tmp_path / "stalls.jsonl"
    done = subprocess.run([sys.executable, "-c", script, str(stalls)], cwd=ROOT, timeout=60)
    assert done.returncode == 7
    assert len([line for line in stalls.read_text().splitlines() if '"hold"' in line]) == 2


@dataclass
class Explained:
    """What an explainer gives."""

    stall: Stall
    context: Context
    request_context: Context | None = None


def incident() -> Incident:
    beat = LateBeat(0, 1, 2, 0, 0, 0, None)
    held = Held(start_ns=0, error_ns=0, end_ns=2, looks=(), beat=beat)
    return Incident(
        id="4711", ongoing=False, held=held, budget_ns=1, thread="MainThread", thread_id=1, loop="asyncio.Loop",
        phase=None, in_flight=0, wall_offset_ns=0,
    )  # fmt: skip


class Records:
    """A reporter without a loop: its incidents come as fast as they can, and its clock is ours."""

    def __init__(self, **changes: Any) -> None:
        self.told: list[Report] = []
        self.now = 0.0
        self.count = 0
        self._changes = changes
        self.reporter = Reporter(
            self.explain,
            [Subscription("told", self.told.append)],
            ignore=(),
            log=False,
            clock=lambda: self.now,
        )

    def explain(self, _incident: Incident) -> Explained:
        self.count += 1
        return Explained(make_stall(id=str(self.count), **self._changes), Context())

    def put(self, times: int) -> None:
        for _ in range(times):
            self.reporter.put(incident())
        assert self.reporter.flush(10)


@pytest.fixture
def records() -> Iterator[Records]:
    made = Records()
    made.reporter.start()
    yield made
    made.reporter.stop(5)


def test_the_latest_256_records_are_kept(records: Records) -> None:
    records.put(400)
    assert REMEMBERED == 256
    assert [stall.id for stall in records.reporter.stalls] == [str(n) for n in range(145, 401)]
    assert len(records.told) == 400


def test_the_next_record_let_in_says_how_many_were_left_out(records: Records) -> None:
    records.put(25)
    counts = records.reporter.counts
    assert (counts.stalls, counts.logged, counts.suppressed) == (25, 10, 15)
    records.now = 60.0
    records.put(1)
    assert (records.told[-1].allowed, records.told[-1].stall.suppressed) == (True, 15)
    assert [report.stall.suppressed for report in records.told[:-1]] == [0] * 25


def test_what_is_for_the_black_box_pushes_nothing_out_of_a_full_queue() -> None:
    made = Records()
    for _ in range(LONGEST_QUEUE):
        made.reporter.put(incident())
        made.reporter.put(replace(incident(), ongoing=True, boxed=True))
    made.reporter.start()
    assert made.reporter.flush(30)
    made.reporter.stop(5)
    assert (made.reporter.counts.dropped, len(made.told)) == (0, LONGEST_QUEUE)


@pytest.mark.fault("the reporter's queue full", "5 more incidents than it holds, before it begins")
def test_what_a_full_queue_loses_is_counted(row: Say) -> None:
    """The oldest give way: the newest are the ones that somebody looks for."""
    made = Records()
    incidents = [incident() for _ in range(LONGEST_QUEUE + 5)]
    for each in incidents:
        made.reporter.put(each)
    assert [id(each) for each in made.reporter._queue] == [id(each) for each in incidents[5:]]
    made.reporter.start()
    assert made.reporter.flush(30)
    made.reporter.stop(5)
    counts = made.reporter.counts
    assert (counts.dropped, len(made.told)) == (5, LONGEST_QUEUE)
    assert counts.stalls == counts.logged + counts.suppressed + counts.dropped
    row(f"the newest {LONGEST_QUEUE} are told", "the oldest 5, counted as `dropped`")


# What is written, and where


def module_at(path: Path, name: str) -> ModuleType:
    """A module whose coroutine `work` holds the loop."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("import time\nasync def work():\n    time.sleep(0.2)  # hush\n")
    module = ModuleType(name)
    exec(compile(path.read_text(), str(path), "exec"), vars(module))
    return module


async def work_of(module: ModuleType) -> None:
    await asyncio.sleep(REST)
    await module.work()
    await asyncio.sleep(REST)


def test_a_packaged_app_is_somebodys_own_where_it_is_named(tmp_path: Path) -> None:
    module = module_at(tmp_path / "site-packages" / "shop" / "work.py", "shop.work")
    with install() as guard:
        run(work_of(module))
        assert [s.culprit.function for s in told(guard) if s.culprit] == ["work_of"]
    with install(in_app=["shop"]) as guard:
        run(work_of(module))
        (stall,) = told(guard)
    assert stall.culprit is not None
    assert (stall.culprit.function, stall.culprit.library) == ("work", False)


def test_paths_are_shown_relative_to_the_root(tmp_path: Path) -> None:
    module = module_at(tmp_path / "app" / "work.py", "app.work")
    with install(root=tmp_path) as guard:
        run(work_of(module))
        (inside,) = told(guard)
    with install(root=tmp_path / "app" / "..") as guard:
        run(work_of(module))
        (dotted,) = told(guard)
    with install() as guard:
        run(work_of(module))
        (outside,) = told(guard)
    files = [stall.culprit.file for stall in (inside, dotted, outside) if stall.culprit]
    assert files == ["app/work.py", "app/work.py", str(tmp_path / "app" / "work.py")]


@pytest.mark.parametrize("source", [True, False])
def test_without_source_no_source_text_is_written(
    source: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = module_at(tmp_path / "work.py", "work")
    caplog.set_level(logging.INFO, "loopguard")
    guard = install(source=source, jsonl=tmp_path / "x", log=True)
    run(work_of(module))
    (stall,) = told(guard)
    logged = "".join(str(vars(record)) for record in caplog.records)
    assert "event_loop.stall" in logged
    for written in (str(stall), (tmp_path / "x").read_text(), logged):
        assert ("time.sleep(0.2)" in written) == source
        assert ("await module.work()" in written) <= source
        assert "hush" not in written
    assert stall.call == "time.sleep"


def test_each_signal_can_be_switched_off(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    caplog.set_level(logging.INFO, "loopguard")
    spans = InMemorySpanExporter()
    provider = sdk.TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)

    def seen(**options: bool) -> tuple[set[str], set[str]]:
        caplog.clear()
        spans.clear()
        with install(**options) as guard:
            run(hold())
            assert len(told(guard)) == 1
        return (
            {record.message for record in caplog.records if record.name == "loopguard"},
            {span.name for span in spans.get_finished_spans()},
        )

    events = {"event_loop.guard", "event_loop.stall", "event_loop.summary"}
    assert seen(log=True) == (events, {"event_loop.stall"})
    assert seen(log=True, traces=False) == (events, set())
    assert seen(log=False) == (set(), {"event_loop.stall"})
    assert seen(log=False, traces=False) == (set(), set())


# With less evidence


def introduction(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    (record,) = (record for record in caplog.records if record.message == "event_loop.guard")
    assert record.levelno == logging.INFO
    return vars(record)


def test_the_guard_introduces_itself(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "loopguard")
    guard = install(log=True)
    assert guard.flush(5)
    said = introduction(caplog)
    assert said["budget_ms"] == 50.0
    assert "kernel_timer" in said["evidence"] or "kernel_timer" in said["evidence_missing"]
    assert "loop" not in said, "none runs yet"


@pytest.mark.parametrize("loop", LOOPS)
def test_the_guard_says_which_loop_it_found(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "loopguard")

    async def main() -> None:
        install(log=True).flush(5)

    run(main(), loop)
    assert introduction(caplog)["loop"].startswith(f"{loop}.")


def no_kernel_timer(patch: pytest.MonkeyPatch) -> None:
    def refuse() -> object:
        raise OSError(38, "Function not implemented")

    patch.setattr(timer, "KernelAlarms", refuse)


def no_thread_clock(patch: pytest.MonkeyPatch) -> None:
    """As in a sandbox that refuses the clock of another thread."""
    patch.setattr(clocks, "thread_cpu_ns", lambda _native_id: None)


def no_system_calls(patch: pytest.MonkeyPatch) -> None:
    """As on a processor whose numbers nobody wrote down."""
    patch.setattr(system_calls, "_NAMES", {})


def no_contexts(patch: pytest.MonkeyPatch) -> None:
    """As on a Python that keeps its threads' states to itself."""
    patch.setattr(contexts, "thread_state", lambda: None)


LESS = {
    "kernel_timer": no_kernel_timer,
    "thread_cpu": no_thread_clock,
    "system_calls": no_system_calls,
    "contexts": no_contexts,
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("missing", [*LESS, "everything"])
def test_with_less_evidence_a_stall_is_reported_with_nulls(
    missing: str,
    loop: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """And the guard says what it lacks."""
    lacks = list(LESS) if missing == "everything" else [missing]
    for kind in lacks:
        LESS[kind](monkeypatch)
    caplog.set_level(logging.INFO, "loopguard")
    guard = install(log=True, jsonl=tmp_path / "x")
    run(hold(), loop)
    (stall,) = told(guard)
    assert stall.culprit is not None
    assert (stall.culprit.function, stall.call) == ("hold", "time.sleep")
    assert stall.duration == pytest.approx(LONG, abs=0.1)
    if "system_calls" in lacks:
        assert stall.waited_on is None
    assert set(lacks) <= set(introduction(caplog)["evidence_missing"])
    assert guard.stats()["troubles"] == 0
    assert json.loads((tmp_path / "x").read_text().splitlines()[-1])["id"] == stall.id


def test_the_portable_timer_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    with install():
        run(asyncio.sleep(0))
    before = left_in_process()
    no_kernel_timer(monkeypatch)
    for _ in range(3):
        with install() as guard:
            run(hold())
            assert len(told(guard)) == 1
    assert changes_since(before) == {}
