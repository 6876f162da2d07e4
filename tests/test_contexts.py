"""The context that a thread runs in is read from another thread, on both loops, with and without a task."""

from __future__ import annotations

import asyncio
import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any

import pytest
import uvloop

from loopguard.capture import contexts
from loopguard.capture.contexts import ContextReader
from tests.threads import PATIENCE

pytestmark = pytest.mark.core

NAME: ContextVar[str] = ContextVar("name")
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


@pytest.fixture(params=LOOPS)
def new_loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    return LOOPS[request.param]


class Block:
    """Work that blocks its thread, and says when it does and where its thread's context lies."""

    def __init__(self, reader: ContextReader) -> None:
        self.reader = reader
        self.address: int | None = None
        self.entered = threading.Event()
        self.release = threading.Event()

    def __call__(self) -> None:
        self.address = self.reader.address()
        self.entered.set()
        assert self.release.wait(PATIENCE)

    async def in_a_task(self, name: str) -> None:
        NAME.set(name)
        self()


@contextmanager
def blocking(
    loop: asyncio.AbstractEventLoop, block: Block, start: Callable[[], object]
) -> Iterator[None]:
    """Run a loop in a thread until `block` blocks it."""

    def run() -> None:
        loop.call_soon(start)
        loop.run_forever()
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert block.entered.wait(PATIENCE)
        yield
    finally:
        block.release.set()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE)


def test_the_context_of_a_callback_without_a_task_is_read_from_outside(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    reader, loop, context = ContextReader(), new_loop(), Context()
    assert reader.reads_threads
    context.run(NAME.set, "callback")
    block = Block(reader)
    with blocking(loop, block, lambda: loop.call_soon(block, context=context)):
        assert asyncio.current_task(loop) is None
        running = reader.running(block.address, None)
        assert running is context
        assert running.get(NAME) == "callback"


def test_the_context_of_a_timer_is_read_from_outside(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    reader, loop, context = ContextReader(), new_loop(), Context()
    block = Block(reader)
    with blocking(loop, block, lambda: loop.call_later(0.001, block, context=context)):
        assert reader.running(block.address, None) is context


def test_the_context_inside_a_context_is_the_inner_one() -> None:
    reader, loop, inner = ContextReader(), asyncio.new_event_loop(), Context()
    block = Block(reader)
    with blocking(loop, block, lambda: inner.run(block)):
        assert reader.running(block.address, None) is inner


def test_the_context_of_a_task_is_read_from_outside(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    reader, loop = ContextReader(), new_loop()
    block = Block(reader)
    with blocking(loop, block, lambda: loop.create_task(block.in_a_task("task"))):
        running = reader.running(block.address, None)
        assert running is not None
        assert running.get(NAME) == "task"


def test_where_the_calibration_fails_it_is_the_tasks_context(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    reader, loop = ContextReader(find_offset=lambda: None), new_loop()
    assert not reader.reads_threads
    block = Block(reader)
    with blocking(loop, block, lambda: loop.create_task(block.in_a_task("task"))):
        assert block.address is None
        running = reader.running(None, asyncio.current_task(loop))
        assert running is not None
        assert running.get(NAME) == "task"
        assert reader.running(None, None) is None


async def with_variable() -> None:
    NAME.set("its own")
    await asyncio.sleep(0)


@pytest.mark.parametrize("kind", [asyncio.Task, asyncio.tasks._PyTask], ids=["C", "Python"])  # type: ignore[attr-defined]
def test_on_python_3_11_a_tasks_context_is_the_first_that_it_refers_to(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the task waits for one that has a context too."""

    async def main() -> Context | None:
        NAME.set("of the creator")
        task = kind(with_variable(), loop=asyncio.get_running_loop())
        await asyncio.sleep(0)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "version_info", (3, 11, 7))
            found = contexts.of_task(task)
        await task
        return found

    found = asyncio.run(main())
    if kind is asyncio.Task:
        assert found is not None
        assert found.get(NAME) == "its own"
    else:  # a task in Python keeps it in its __dict__: unknown is allowed, another's is not
        assert found is None or found.get(NAME) == "its own"


def test_a_thread_that_runs_in_no_context_has_none() -> None:
    found = []
    reader = ContextReader()

    def ask() -> None:
        found.append(reader.running(reader.address(), None))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    # 3.14 may start a thread in a copy of the caller's
    assert found[0] is None or len(found[0]) == len(copy_context())


def test_what_lies_there_and_is_no_context_is_none() -> None:
    """The offset of another build would point anywhere."""
    something = ctypes.py_object("no context")
    reader = ContextReader()
    assert reader.running(ctypes.addressof(something), None) is None


@pytest.mark.parametrize("part, broken", [("thread_state", lambda: None), ("_SCAN", range(0))])
def test_a_thread_state_that_cannot_be_had_or_is_laid_out_otherwise_is_not_read(
    monkeypatch: pytest.MonkeyPatch, part: str, broken: object
) -> None:
    monkeypatch.setattr(contexts, part, broken)
    assert not ContextReader().reads_threads


def test_free_threaded_builds_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """There another thread may free the context while it is read."""
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    assert not ContextReader().reads_threads
