"""Clocks of threads, read from other threads."""

from __future__ import annotations

import gc
import sys
import threading
import time
from pathlib import Path

import pytest

from loopguard.capture import clocks
from loopguard.capture.clocks import RunDelay, thread_cpu_ns, thread_cpu_works, voluntary_switches
from loopguard.capture.collector import CollectorClock
from tests.threads import blocked, open_files

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(sys.platform != "linux", reason="these clocks are Linux's"),
]


def test_the_clock_of_this_thread_agrees_with_its_own() -> None:
    before = time.thread_time_ns()
    seen = thread_cpu_ns(threading.get_native_id())
    assert seen is not None
    assert before <= seen <= time.thread_time_ns()
    assert thread_cpu_works()


def test_the_clock_of_a_thread_that_waits_stands_still() -> None:
    lock = threading.Lock()
    lock.acquire()
    with blocked(lock.acquire, lock.release) as thread:
        first = thread_cpu_ns(thread.native_id)
        sum(range(200_000))
        assert first is not None
        assert thread_cpu_ns(thread.native_id) == first


def test_the_clock_of_a_thread_that_computes_goes_on() -> None:
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        assert thread.native_id is not None
        start = thread_cpu_ns(thread.native_id)
        assert start is not None
        while (thread_cpu_ns(thread.native_id) or 0) <= start:
            time.sleep(0.001)
    finally:
        stop.set()
        thread.join()


def test_the_clock_of_a_thread_that_has_ended_is_unknown() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    assert thread.native_id is not None
    # join() may return just before the kernel's thread is gone
    while Path(f"/proc/self/task/{thread.native_id}").exists():
        time.sleep(0.001)
    assert thread_cpu_ns(thread.native_id) is None
    assert RunDelay(thread.native_id).read() is None


def test_a_clock_that_lies_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it may in a sandbox that makes up its own clock ids."""
    monkeypatch.setattr(clocks, "thread_cpu_ns", lambda _native_id: 0)
    assert not thread_cpu_works()
    monkeypatch.setattr(clocks, "thread_cpu_ns", lambda _native_id: None)
    assert not thread_cpu_works()


def test_the_run_delay_never_goes_back_and_is_unknown_once_closed() -> None:
    delay = RunDelay(threading.get_native_id())
    first = delay.read()
    if first is None:
        pytest.skip("this kernel keeps no schedstat")
    sum(range(100_000))
    second = delay.read()
    assert second is not None
    assert 0 <= first <= second
    delay.close()
    delay.close()
    assert delay.read() is None


def test_the_run_delay_leaves_no_file_open() -> None:
    before = open_files()
    RunDelay(threading.get_native_id()).close()
    RunDelay(2**30)
    assert open_files() == before


def test_each_wait_is_a_voluntary_switch() -> None:
    before = voluntary_switches()
    for _ in range(5):
        time.sleep(0.001)
    assert voluntary_switches() >= before + 5


def test_a_collection_counts_also_while_it_runs() -> None:
    times = iter([100, 130, 150, 1000])
    clock = CollectorClock(clock=lambda: next(times))
    assert clock.read() == 0
    clock._on_collection("start", {})
    assert clock.read() == 30
    clock._on_collection("stop", {})
    assert clock.read() == 50
    clock._on_collection("start", {})
    clock._clock = lambda: 1007
    clock._on_collection("stop", {})
    assert clock.read() == 57


def test_the_end_of_a_collection_whose_start_was_not_seen_counts_nothing() -> None:
    """The guard was installed by a finalizer, in mid-collection."""
    clock = CollectorClock()
    clock._on_collection("stop", {})
    assert clock.read() == 0


def test_a_real_collection_is_timed_and_nothing_is_left_behind() -> None:
    callbacks = list(gc.callbacks)
    clock = CollectorClock()
    clock.start()
    try:
        gc.collect()
        assert clock.read() > 0
    finally:
        clock.stop()
    assert gc.callbacks == callbacks
    clock.stop()
