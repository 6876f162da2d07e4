"""When an iteration of the loop began, and which of its callbacks runs, read in mid-callback."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from time import monotonic_ns

import pytest
import uvloop

from loopguard.capture import iteration, stacks
from loopguard.capture.small_files import read_memory
from loopguard.evidence import Iteration

pytestmark = pytest.mark.core


def run(loop: asyncio.AbstractEventLoop, *callbacks: Callable[[], object]) -> int:
    """Run these in one iteration of a loop; returns a time just before it."""
    before = []

    def begin() -> None:
        for callback in callbacks:
            loop.call_soon(callback)
        loop.call_soon(loop.stop)
        before.append(monotonic_ns())

    loop.call_soon(begin)
    try:
        loop.run_forever()
    finally:
        loop.close()
    return before[0]


def in_run_once() -> Iteration | None:
    _, run_once = stacks.walk(sys._getframe(), iteration.RUN_ONCE)
    return iteration.from_run_once(run_once)


def test_asyncio_tells_when_the_iteration_began_and_the_place_of_the_callback() -> None:
    seen: list[tuple[int, Iteration]] = []

    def look() -> None:
        found = in_run_once()
        assert found is not None
        seen.append((monotonic_ns(), found))
        time.sleep(0.005)

    before = run(asyncio.new_event_loop(), look, look, look)
    assert [found.index for _, found in seen] == [0, 1, 2]
    assert len({found.started_ns for _, found in seen}) == 1
    at_ns, found = seen[0]
    assert before - found.error_ns <= found.started_ns <= at_ns + found.error_ns


def test_asyncio_in_debug_mode_tells_it_too() -> None:
    seen = []
    loop = asyncio.new_event_loop()
    loop.set_debug(True)
    run(loop, lambda: seen.append(in_run_once()))
    assert seen[0] is not None
    assert seen[0].index == 0


def test_outside_of_a_loop_there_is_no_iteration() -> None:
    assert in_run_once() is None


def test_where_the_loop_names_its_variables_otherwise_less_is_known() -> None:
    def run_once(end_time: object, **_: object) -> Iteration | None:
        return iteration.from_run_once(sys._getframe())

    assert run_once(end_time="late") is None
    assert run_once(end_time=1.5) == Iteration(1_500_000_000, 100_000, None)

    def other() -> Iteration | None:
        return iteration.from_run_once(sys._getframe())

    assert other() is None


@pytest.fixture(scope="module")
def layout() -> iteration._Layout:
    found = iteration.find_layout()
    assert found is not None
    return found


def test_uvloop_tells_when_the_iteration_began(layout: iteration._Layout) -> None:
    loop = uvloop.new_event_loop()
    read = iteration.uvloop_reader(loop, layout)
    assert read is not None
    seen: list[tuple[int, Iteration]] = []

    def look() -> None:
        found = read(None)
        assert found is not None
        seen.append((monotonic_ns(), found))
        time.sleep(0.005)

    before = run(loop, lambda: time.sleep(0.01), look, look, look)
    assert len({found.started_ns for _, found in seen}) == 1
    at_ns, found = seen[0]
    assert found.index is None
    assert before - 10 * found.error_ns <= found.started_ns <= at_ns - 8_000_000 + found.error_ns


def test_on_uvloop_the_loops_own_time_moves_it(layout: iteration._Layout) -> None:
    """Which is why the detector wants all looks at a callback to agree."""
    loop = uvloop.new_event_loop()
    read = iteration.uvloop_reader(loop, layout)
    assert read is not None
    seen = []

    def look() -> None:
        seen.append(read(None))
        time.sleep(0.01)
        seen.append(read(None))
        loop.time()
        seen.append(read(None))

    run(loop, look)
    first, second, moved = [found.started_ns for found in seen if found is not None]
    assert first == second < moved


def test_where_the_layout_is_not_found_nothing_is_read(layout: iteration._Layout) -> None:
    loop = uvloop.new_event_loop()
    try:
        assert iteration.uvloop_reader(loop, None) is None
        wrong = layout._replace(uv_loop=layout.uv_loop + 8)
        assert iteration.uvloop_reader(loop, wrong) is None
    finally:
        loop.close()


def test_another_layout_of_the_memory_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """No place, or more than one, that always shows the loop's time."""
    monkeypatch.setattr(iteration, "read_memory", lambda _address, _size: b"")
    assert iteration.find_layout() is None


def test_without_uvloop_there_is_no_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert iteration.find_layout() is None


def test_a_bad_address_is_an_empty_answer() -> None:
    assert read_memory(8, 8) == b""
    assert read_memory(-1, 8) == b""
    assert read_memory(2**64, 8) == b""
