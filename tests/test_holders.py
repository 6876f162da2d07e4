"""Who was in the way: the thread that kept the GIL, and the one that must release what the loop waits for."""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import re
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

import loopguard
from loopguard.capture.callee import callee_of
from loopguard.capture.clocks import threads_of_process
from loopguard.capture.others import OtherThreads
from loopguard.capture.owners import owner_of
from loopguard.evidence import OtherThread
from loopguard.record import Stall
from tests.holding import BUDGET, LONG, LOOPS, REST, run, told
from tests.threads import blocked

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(sys.platform != "linux", reason="the clocks of other threads are Linux's"),
]


KEEPING = ctypes.PyDLL(None)


def keep_the_gil() -> object:
    time.sleep(0.01)  # lets the loop go on first
    return re.match(r"(a+)+$", "a" * 24 + "b")


def keep_busy(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(100))


def one_stall(guard: loopguard.Guard) -> Stall:
    stalls = [stall for stall in told(guard) if stall.cause in ("gil_wait", "lock")]
    assert len(stalls) == 1, told(guard)
    return stalls[0]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("idle", [True, False], ids=["idle", "in a callback"])
def test_the_thread_that_keeps_the_gil_is_named(loop: str, idle: bool) -> None:
    guard = loopguard.install(budget=BUDGET, log=False)
    thread = threading.Thread(target=keep_the_gil, name="greedy")

    async def main() -> None:
        await asyncio.sleep(1.2)  # the clocks of all threads are noted once a second
        thread.start()
        if not idle:
            keep_busy(2 * REST)
        await asyncio.sleep(REST)
        await asyncio.to_thread(thread.join)
        await asyncio.sleep(REST)

    run(main(), loop)
    stall = one_stall(guard)
    assert stall.cause == "gil_wait"
    assert stall.culprit is None
    assert stall.holder is not None
    assert stall.holder.thread == "greedy"
    assert stall.holder.native_id == thread.native_id
    assert stall.holder.culprit is not None
    assert stall.holder.culprit.function == "keep_the_gil"
    assert stall.holder.culprit.code == 're.match(r"(a+)+$", "a" * 24 + "b")'


def usleep(seconds: float) -> None:
    """Wait, and keep the GIL all the while."""
    KEEPING.usleep(int(seconds * 1e6))


def sleep_with_the_gil() -> None:
    time.sleep(0.02)  # lets the loop go on first
    usleep(3 * LONG)
    time.sleep(LONG)


async def ended(thread: threading.Thread) -> None:
    while thread.is_alive():
        await asyncio.sleep(REST)
    await asyncio.sleep(REST)


def known(main: Callable[[], Coroutine[Any, Any, None]], loop: str) -> Stall:
    """The one stall of the first run in which it is known why; on a busy machine that may not be the first of all."""
    stalls: list[Stall] = []
    for _ in range(8):
        guard = loopguard.install(budget=BUDGET, log=False)
        run(main(), loop)
        stalls = [stall for stall in told(guard) if stall.cause != "unknown"]
        loopguard.uninstall()
        if stalls:
            break
    [stall] = stalls
    return stall


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("idle", [True, False], ids=["idle", "in a callback"])
def test_so_is_one_that_keeps_it_and_waits(loop: str, idle: bool) -> None:
    """No clock of it runs: but of all others it alone wants the GIL back, and the loop asked for it too."""

    async def main() -> None:
        thread = threading.Thread(target=sleep_with_the_gil, name="greedy")
        await asyncio.sleep(REST)
        thread.start()
        if not idle:
            keep_busy(2 * REST)
        await ended(thread)

    stall = known(main, loop)
    assert (stall.cause, stall.culprit) == ("gil_wait", None)
    assert stall.holder is not None
    assert stall.holder.thread == "greedy"
    assert stall.holder.culprit is not None
    assert stall.holder.culprit.function == "usleep"


@pytest.mark.parametrize("loop", LOOPS)
def test_a_wait_of_the_loops_own_that_keeps_the_gil_is_a_blocking_call(loop: str) -> None:
    """Though another thread computes meanwhile, which wants no GIL for that."""

    def compute() -> None:
        hashlib.pbkdf2_hmac("sha256", b"word", b"salt", 3_000_000)

    async def main() -> None:
        thread = threading.Thread(target=compute)
        await asyncio.sleep(REST)
        thread.start()
        await asyncio.sleep(REST)
        usleep(2 * LONG)
        await ended(thread)

    stall = known(main, loop)
    assert (stall.cause, stall.waited_on, stall.holder) == ("blocking_call", None, None)
    assert stall.culprit is not None
    assert stall.culprit.function == "usleep"


def wait_for_rlock() -> Callable[[], None]:
    lock = threading.RLock()
    taken = threading.Event()

    def own() -> None:
        with lock:
            taken.set()
            time.sleep(LONG)

    def wait() -> None:
        threading.Thread(target=own, name="owner").start()
        taken.wait()
        with lock:
            pass

    return wait


def wait_for_thread() -> Callable[[], None]:
    def work() -> None:
        time.sleep(LONG)

    def wait() -> None:
        thread = threading.Thread(target=work, name="owner")
        thread.start()
        thread.join()

    return wait


def wait_for_future() -> Callable[[], None]:
    def work() -> None:
        time.sleep(LONG)

    def wait() -> None:
        with ThreadPoolExecutor(1, thread_name_prefix="owner") as pool:
            pool.submit(work).result()

    return wait


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    "case, function",
    [(wait_for_rlock, "own"), (wait_for_thread, "work"), (wait_for_future, "work")],
    ids=["rlock", "join", "future"],
)
def test_the_owner_of_what_is_waited_for_is_named(
    case: Callable[[], Callable[[], None]], function: str, loop: str
) -> None:
    guard = loopguard.install(budget=BUDGET, log=False)
    wait = case()

    async def main() -> None:
        await asyncio.sleep(REST)
        wait()
        await asyncio.sleep(REST)

    run(main(), loop)
    stall = one_stall(guard)
    assert stall.cause == "lock"
    assert stall.holder is not None
    assert stall.holder.thread.startswith("owner")
    assert stall.holder.culprit is not None
    assert stall.holder.culprit.function.endswith(function)
    assert stall.holder.culprit.code == "time.sleep(LONG)"


def test_of_a_plain_lock_nobody_is_named() -> None:
    lock = threading.Lock()
    lock.acquire()

    def work() -> None:
        lock.acquire()

    with blocked(work, lock.release) as thread:
        frame = thread.frame
        assert owner_of(frame, frame.f_lasti, callee_of(frame, frame.f_lasti), {}) is None


def test_of_a_thread_that_has_ended_it_is_known_that_it_was_there_and_no_name() -> None:
    others = OtherThreads()
    others.find_foreign()
    others.note(10**15)

    def in_the_way() -> OtherThread | None:
        return others.in_the_way({}, threading.get_ident(), late_ns=100_000_000)

    assert in_the_way() is None
    before = threads_of_process()
    thread = threading.Thread(target=keep_the_gil)
    thread.start()
    thread.join()
    seen = in_the_way()
    assert seen is not None
    assert (seen.ended, seen.name, seen.native_id, seen.stack) == (True, "", None, ())
    assert seen.cpu_ns >= 25_000_000
    while threads_of_process() != before:  # for the system it ends a little later
        time.sleep(0.001)
    with thread_of_c(), thread_of_c():
        assert in_the_way() is None, "they may have spent that time, and need no GIL"
        others.find_foreign()
        seen = in_the_way()
        assert seen is not None
        assert seen.ended


@contextmanager
def thread_of_c() -> Iterator[None]:
    """One that Python knows nothing of, such as those of a numeric library."""
    library = ctypes.CDLL(None, use_errno=True)
    number, lock = ctypes.c_ulong(), ctypes.create_string_buffer(64)
    library.sem_init(lock, 0, 0)
    assert library.pthread_create(ctypes.byref(number), None, library.sem_wait, lock) == 0
    try:
        yield
    finally:
        library.sem_post(lock)
        library.pthread_join(number, None)
