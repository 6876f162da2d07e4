"""Whatever runs loops, how often, and in how many threads: each run is guarded, and what lies between runs is no stall."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import loopguard
from tests.holding import BUDGET, LONG, LOOPS, REST, hold, new_loop, run, told
from tests.real.server import read_rows

pytestmark = pytest.mark.core

ROOT = Path(__file__).parent.parent


def install() -> loopguard.Guard:
    return loopguard.install(budget=BUDGET, log=False)


def functions(guard: loopguard.Guard) -> list[str | None]:
    return [
        None if stall.culprit is None else stall.culprit.function.split(".")[-1]
        for stall in told(guard)
    ]


async def at_once() -> None:
    """Hold the loop in the very first callback that it runs."""
    time.sleep(LONG)


async def at_once_and_on() -> None:
    time.sleep(LONG)
    await asyncio.sleep(REST)


# One after the other


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("main", [at_once, at_once_and_on, hold])
def test_a_stall_is_found_from_the_first_callback_of_a_run_to_its_last(
    main: Any, loop: str
) -> None:
    guard = install()
    began = time.time()
    run(main(), loop)
    (stall,) = told(guard)
    assert stall.culprit is not None
    assert (stall.culprit.function, stall.call) == (main.__name__, "time.sleep")
    assert stall.started_at + stall.duration_error > began
    assert [frame.library for frame in stall.stack] == [False]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_that_stops_and_runs_again_is_guarded_in_each_run_and_not_between(loop: str) -> None:
    guard = install()
    looped = new_loop(loop)
    for main in (hold, at_once, hold):
        looped.run_until_complete(main())
        time.sleep(LONG)
    assert functions(guard) == ["hold", "at_once", "hold"]
    assert guard.stats()["loops"] == 0
    looped.close()
    time.sleep(LONG)
    assert len(told(guard)) == 3
    assert guard.flush(1)


def run_by_asyncio() -> None:
    asyncio.run(hold())


def run_by_uvloop() -> None:
    uvloop = pytest.importorskip("uvloop")
    uvloop.run(hold())


def run_by_runner() -> None:
    with asyncio.Runner() as runner:
        runner.run(hold())


def run_by_callbacks() -> None:
    loop = asyncio.new_event_loop()
    loop.call_later(REST, time.sleep, LONG)
    loop.call_later(3 * REST + LONG, loop.stop)
    loop.run_forever()
    loop.close()


def run_by_anyio() -> None:
    anyio = pytest.importorskip("anyio")
    anyio.run(hold)


def run_by_anyio_on_uvloop() -> None:
    anyio = pytest.importorskip("anyio")
    pytest.importorskip("uvloop")
    anyio.run(hold, backend_options={"use_uvloop": True})


def run_by_portal() -> None:
    from_thread = pytest.importorskip("anyio.from_thread")
    with from_thread.start_blocking_portal() as portal:
        portal.call(hold)


@pytest.mark.parametrize(
    "run_once",
    [
        run_by_asyncio,
        run_by_uvloop,
        run_by_runner,
        run_by_callbacks,
        run_by_anyio,
        run_by_anyio_on_uvloop,
        run_by_portal,
    ],
)
def test_every_way_to_run_a_loop_is_guarded_each_time(run_once: Callable[[], None]) -> None:
    guard = install()
    for _ in range(2):
        run_once()
        time.sleep(LONG)
    assert len(told(guard)) == 2, (list(guard.stalls), guard.stats())
    assert all(stall.call == "time.sleep" or stall.task is None for stall in told(guard))
    assert guard.stats()["loops"] == 0


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("leaves", ["returns", "exits"])
def test_a_loop_that_ran_before_the_install_is_guarded_in_its_next_run_too(
    leaves: str, loop: str
) -> None:
    """Nobody tells of its stop; be it in good order or by an exception that leaves run_forever."""
    guards: list[loopguard.Guard] = []
    looped = new_loop(loop)

    async def main() -> None:
        guards.append(install())
        await hold()
        if leaves == "exits":
            raise SystemExit(7)

    if leaves == "exits":
        with pytest.raises(SystemExit):
            looped.run_until_complete(main())
    else:
        looped.run_until_complete(main())
    time.sleep(LONG)
    assert functions(guards[0]) == ["hold"]
    for _ in range(2):
        looped.run_until_complete(hold())
        time.sleep(LONG)
    assert functions(guards[0]) == ["hold"] * 3
    looped.close()
    assert guards[0].stats()["loops"] == 0


@pytest.mark.parametrize("loop", LOOPS)
def test_an_exception_that_leaves_a_run_ends_it_as_any_stop_does(loop: str) -> None:
    guard = install()
    looped = new_loop(loop)

    async def main() -> None:
        time.sleep(LONG)
        raise SystemExit(7)

    for _ in range(2):
        with pytest.raises(SystemExit):
            looped.run_until_complete(main())
        time.sleep(LONG)
    looped.run_until_complete(hold())
    looped.close()
    assert functions(guard) == ["main", "main", "hold"]


# Beside each other


def test_loops_in_several_threads_are_blocked_at_the_same_time_and_each_is_told_of() -> None:
    guard = install()
    kinds = {"first": "asyncio", "second": "asyncio"}
    if importlib.util.find_spec("uvloop") is not None:
        kinds |= {"third": "uvloop", "fourth": "uvloop"}
    together = threading.Barrier(len(kinds))
    blocked: dict[str, tuple[float, float]] = {}

    async def main() -> None:
        await asyncio.sleep(REST)
        together.wait(30)
        began = time.time()
        time.sleep(2 * LONG)
        blocked[threading.current_thread().name] = began, time.time()
        await asyncio.sleep(REST)

    threads = [
        threading.Thread(target=lambda kind=kind: run(main(), kind), name=name)
        for name, kind in kinds.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(began for began, _ in blocked.values()) < min(ended for _, ended in blocked.values())
    found = {stall.thread: stall for stall in told(guard)}
    assert len(told(guard)) == len(found) == len(kinds)
    for name, kind in kinds.items():
        stall, (began, ended) = found[name], blocked[name]
        assert stall.loop.startswith(kind)
        assert stall.culprit is not None
        assert stall.culprit.function.endswith("main")
        assert stall.started_at - stall.duration_error < (began + ended) / 2
        assert stall.started_at + stall.duration > (began + ended) / 2


@pytest.mark.parametrize("loop", LOOPS)
def test_loops_in_a_pool_of_threads_leave_the_one_that_started_them_alone(loop: str) -> None:
    """They run in its threads, one after the other; the loop that waits for them without blocking is innocent."""
    guard = install()

    async def main() -> None:
        running = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "pool") as pool:
            for _ in range(2):
                await running.run_in_executor(pool, run, hold(), loop)

    run(main(), loop)
    assert [stall.thread for stall in told(guard)] == ["pool_0", "pool_0"]
    assert functions(guard) == ["hold", "hold"]


# Loops of test suites

CONFTEST = f"""
import os
import loopguard
import pytest

guard = loopguard.install(budget={BUDGET}, log=False, jsonl=os.environ["SUITE_JSONL"])

def pytest_sessionfinish():
    assert guard.flush(10)
"""

PYTEST_ASYNCIO = f"""
import asyncio
import time
import pytest
import pytest_asyncio

def block():
    time.sleep({LONG})

@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def resource():
    await asyncio.sleep({REST})
    block()  # once
    yield 1

@pytest.mark.asyncio
async def test_of_its_own_loop():
    block()

def test_of_no_loop():
    block()

@pytest.mark.asyncio(loop_scope="session")
async def test_of_the_sessions_loop(resource):
    await asyncio.sleep({REST})
    block()

def test_of_no_loop_again():
    block()

@pytest.mark.asyncio(loop_scope="session")
async def test_of_the_sessions_loop_again(resource):
    block()
    await asyncio.sleep({REST})
"""

ANYIO = f"""
import time
import anyio
import pytest
from anyio.from_thread import start_blocking_portal

pytestmark = pytest.mark.anyio

def block():
    time.sleep({LONG})

@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request):
    return "asyncio", {{"use_uvloop": request.param == "uvloop"}}

async def test_at_once():
    block()

async def test_later():
    await anyio.sleep({REST})
    block()
    await anyio.sleep({REST})

def test_of_no_loop():
    block()
"""


def suite(directory: Path, text: str, *options: str) -> list[dict[str, Any]]:
    """Run a test suite with a guard in its conftest; give the records of it."""
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "test_suite.py").write_text(text)
    stalls = directory / "stalls.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *options],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SUITE_JSONL": str(stalls)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [row for row in read_rows(stalls) if row["cause"] != "not_scheduled"]


def callers(record: dict[str, Any]) -> list[str]:
    """The functions of the suite itself on the stack."""
    return [frame["function"] for frame in record["stack"] if frame["module"] == "test_suite"]


def test_pytest_asyncio_with_loops_of_functions_and_of_the_session(tmp_path: Path) -> None:
    pytest.importorskip("pytest_asyncio")
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_default_fixture_loop_scope = function\n"
    )
    records = suite(tmp_path, PYTEST_ASYNCIO)
    assert [callers(record) for record in records] == [
        ["test_of_its_own_loop", "block"],
        ["resource", "block"],
        ["test_of_the_sessions_loop", "block"],
        ["test_of_the_sessions_loop_again", "block"],
    ]
    assert {record["call"] for record in records} == {"time.sleep"}


def test_the_plugin_of_anyio_on_both_loops(tmp_path: Path) -> None:
    pytest.importorskip("anyio")
    pytest.importorskip("uvloop")
    records = suite(tmp_path, ANYIO, "-p", "anyio", "-p", "no:asyncio")
    kinds = [record["loop"].partition(".")[0] for record in records]
    assert [callers(record) for record in records] == [
        ["test_at_once", "block"],
        ["test_at_once", "block"],
        ["test_later", "block"],
        ["test_later", "block"],
    ]
    assert sorted(kinds) == ["asyncio", "asyncio", "uvloop", "uvloop"]
