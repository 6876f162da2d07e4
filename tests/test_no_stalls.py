"""`no_stalls`: for unittest, Hypothesis, scripts and notebooks."""

from __future__ import annotations

import asyncio
import importlib
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

import loopguard
from loopguard.testing import StallError, StallWarning, no_stalls
from tests.holding import LOOPS, changes_since, left_in_process, new_loop, run

pytestmark = pytest.mark.core


def block(seconds: float = 0.4) -> None:
    time.sleep(seconds)


async def blocks() -> None:
    await asyncio.sleep(0.01)
    block()


def _only(error: pytest.ExceptionInfo[StallError]) -> loopguard.Stall:
    (stall,) = error.value.stalls
    return stall


@pytest.mark.parametrize("kind", LOOPS)
def test_around_code_that_runs_a_loop(kind: str) -> None:
    with pytest.raises(StallError) as error, no_stalls():
        run(blocks(), kind)
    assert _only(error).call == "time.sleep"
    assert " s (budget 0.100 s) by time.sleep in block" in str(error.value).splitlines()[0]
    assert isinstance(error.value, AssertionError)


@pytest.mark.parametrize("kind", LOOPS)
def test_inside_of_a_coroutine_even_where_it_never_awaits(kind: str) -> None:
    async def inside() -> None:
        with no_stalls():
            block()

    with pytest.raises(StallError) as error:
        run(inside(), kind)
    assert _only(error).culprit is not None
    assert _only(error).duration == pytest.approx(0.4, abs=0.2)


@pytest.mark.parametrize("kind", LOOPS)
def test_async_with_and_both_kinds_of_functions(kind: str) -> None:
    async def within() -> None:
        async with no_stalls(0.2):
            await blocks()

    @no_stalls(0.2)
    async def coroutine() -> None:
        await blocks()

    @no_stalls(budget=0.2)
    def function(answer: int) -> int:
        run(asyncio.sleep(0.3), kind)
        return answer

    for main in (within, coroutine):
        with pytest.raises(StallError, match=r"budget 0\.200 s"):
            run(main(), kind)
    assert function(42) == 42


@pytest.mark.parametrize("kind", LOOPS)
def test_a_loop_that_another_thread_runs_already(kind: str) -> None:
    loop = new_loop(kind)
    ready = threading.Event()

    def serve() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(main())

    async def main() -> None:
        ready.set()
        await finished.wait()

    finished = asyncio.Event()
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        ready.wait(10)
        with pytest.raises(StallError) as error, no_stalls():
            asyncio.run_coroutine_threadsafe(blocks(), loop).result(10)
        assert _only(error).thread == thread.name
    finally:
        loop.call_soon_threadsafe(finished.set)
        thread.join(10)


def test_an_error_of_the_codes_own_goes_on_with_a_note() -> None:
    @no_stalls()
    def fails() -> float:
        asyncio.run(blocks())
        return 1 / 0

    with pytest.raises(ZeroDivisionError) as error:
        fails()
    assert "by time.sleep in block" in error.value.__notes__[0]


def test_what_is_allowed_and_what_only_waits_passes() -> None:
    with no_stalls():
        asyncio.run(loopguard.allow_blocking("for the test")(blocks)())
    with no_stalls(2):
        asyncio.run(blocks())
    with no_stalls():
        block()  # on no loop


def test_an_import_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_to_import_here.py").write_text("import time\ntime.sleep(0.3)\n")
    monkeypatch.syspath_prepend(tmp_path)

    async def imports() -> None:
        importlib.import_module("slow_to_import_here")

    with pytest.warns(StallWarning, match="cause: import"), no_stalls():
        asyncio.run(imports())


def test_it_leaves_nothing_behind() -> None:
    before = left_in_process()
    with pytest.raises(StallError), no_stalls():
        asyncio.run(blocks())
    assert changes_since(before) == {}


def test_it_works_beside_an_installed_guard() -> None:
    with loopguard.install(budget=0.15, log=False) as guard:
        with pytest.raises(StallError), no_stalls():
            asyncio.run(blocks())
        assert guard.flush(10)
        assert [stall.call for stall in guard.stalls] == ["time.sleep"]


def test_the_environment_changes_no_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """`LOOPGUARD_…` is for the application."""
    monkeypatch.setenv("LOOPGUARD_BUDGET", "5")
    monkeypatch.setenv("LOOPGUARD_ENABLED", "0")
    with pytest.raises(StallError), no_stalls():
        asyncio.run(blocks())


def test_what_cannot_be_used_is_refused_where_it_is_written() -> None:
    with pytest.raises(loopguard.ConfigError, match=r"0\.005"):
        no_stalls(0.001)
    with pytest.raises(TypeError, match="not generators"):

        @no_stalls()
        def numbers() -> object:
            yield 1


def test_examples_of_hypothesis_are_held_one_by_one() -> None:
    hypothesis: Any = pytest.importorskip("hypothesis")

    @no_stalls()
    def check(number: int) -> None:
        async def main() -> None:
            if number == 3:
                block()

        asyncio.run(main())

    settings = hypothesis.settings(max_examples=5, deadline=None, database=None)
    examples = settings(hypothesis.given(hypothesis.strategies.integers(0, 3))(check))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(StallError, match=r"by time\.sleep in block"):
            examples()
