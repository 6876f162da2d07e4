"""One look at a thread: what it runs, what it waits in, and nothing that it did not."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
import threading
import weakref
from collections.abc import Callable
from contextvars import Context
from typing import Any

import pytest

from loopguard.capture import system_calls
from loopguard.capture.contexts import ContextReader
from loopguard.capture.looks import Observer, Subject
from loopguard.capture.others import OtherThreads
from loopguard.evidence import ActiveRequest, Look, RawFrame, Wait
from loopguard.explain.call import name_of
from tests.threads import Blocked, blocked, wait_until

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(sys.platform != "linux", reason="blocked threads are told by /proc"),
]


def _is_own(frame: RawFrame) -> bool:
    return frame.module == __name__


def too_late(thread: Blocked) -> Look:
    """The same, but what it ran is over."""
    loop = asyncio.new_event_loop()
    try:
        subject = Subject(loop, thread.thread_id, thread.native_id, "blocked", None, 0, None)
        observer = Observer(ContextReader(), lambda _: None, True, True, OtherThreads(), _is_own)
        return observer.too_late(subject, 1, 2)
    finally:
        loop.close()


def observe(
    thread: Blocked, request_of: Callable[[Context], ActiveRequest | None] = lambda _context: None
) -> Look:
    """A look at a thread all of whose frames are the callback's."""
    loop = asyncio.new_event_loop()
    try:
        subject = Subject(loop, thread.thread_id, thread.native_id, "blocked", None, 0, None)
        observer = Observer(ContextReader(), request_of, True, True, OtherThreads(), _is_own)
        [look] = observer.look(subject, 1, None)
        return look
    finally:
        loop.close()


@pytest.fixture
def pipe() -> Any:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_a_look_at_a_thread_that_waits_sees_its_stack_callee_and_wait(pipe: Any) -> None:
    def work() -> None:
        os.read(pipe[0], 1)

    with blocked(work, lambda: os.write(pipe[1], b"x")) as thread:
        look = observe(thread)
    assert look.stack[0].code is work.__code__
    assert look.callee is not None
    assert look.callee.function is os.read
    assert look.wait == Wait("read", "pipe")
    assert look.cpu_ns is not None


def test_where_c_code_called_python_it_is_known_what_was_called_in_c() -> None:
    """It has no frame; what it called has one, in the library."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("rb") as file:

        def work() -> None:
            file.readline()

        with blocked(work, theirs.close) as thread:
            look = observe(thread)
    assert look.through is not None
    assert look.stack[look.through.place].code is work.__code__
    assert look.through.place > 0
    assert name_of(look.through.callee) == "io.BufferedReader.readline"


def test_where_python_called_python_nothing_stands_between() -> None:
    """Whatever name it has there."""
    alias = threading.Event()
    wait = alias.wait

    def work() -> None:
        wait()

    with blocked(work, alias.set) as thread:
        look = observe(thread)
    assert len(look.stack) > 1
    assert look.through is None


def test_a_look_keeps_nothing_of_the_thread_alive(pipe: Any) -> None:
    """Not until the next collection either: an application's objects go when it lets them go."""

    class Local:
        pass

    held = list[weakref.ref[Local]]()

    def work() -> None:
        local = Local()
        held.append(weakref.ref(local))
        os.read(pipe[0], 1)

    gc.disable()
    try:
        with blocked(work, lambda: os.write(pipe[1], b"x")) as thread:
            look = observe(thread)
            too_late(thread)
        assert look.stack[0].code is work.__code__
        assert held[0]() is None
    finally:
        gc.enable()


def test_a_wait_that_the_thread_got_into_while_it_was_asked_for_is_not_this_looks(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To read the system's file lets the GIL go, and code that waited for it runs on."""
    later = threading.Lock()
    later.acquire()

    def work() -> None:
        os.read(pipe[0], 1)
        later.acquire()

    def release() -> None:
        os.write(pipe[1], b"x")
        later.release()

    with blocked(work, release) as thread:

        def ask_too_late(native_id: int) -> Wait | None:
            stood = thread.frame.f_lasti
            os.write(pipe[1], b"x")
            wait_until(lambda: thread.frame.f_lasti != stood)
            return Wait("futex", "")

        monkeypatch.setattr(system_calls, "waiting_in", ask_too_late)
        look = observe(thread)
    assert look.wait is None
    assert look.callee is not None
    assert look.callee.function is os.read
