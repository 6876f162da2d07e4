"""Which threads want the GIL: real ones, that are kept from it, and others that rest."""

from __future__ import annotations

import ctypes
import os
import sys
import threading

import pytest

from loopguard.capture import system_calls
from loopguard.capture.gil import Gil
from tests.threads import blocked, open_files

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(
        not system_calls.works(threading.get_native_id()),
        reason="this system does not show the calls of a thread",
    ),
    pytest.mark.skipif(
        not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="this Python has no GIL"
    ),
]


def found() -> Gil:
    gil = Gil()
    gil.find()
    return gil


def test_a_thread_that_is_kept_from_the_gil_wants_it_and_one_that_rests_does_not() -> None:
    gil, library = found(), ctypes.PyDLL(None)  # its functions keep the GIL
    reader, writer = os.pipe()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(10)  # nobody is made to hand it over meanwhile
    with blocked(lambda: os.read(reader, 1), lambda: None) as thread:
        at_rest = gil.wanted_by(thread.native_id)
        library.write(writer, b"x", 1)
        library.usleep(50_000)
        released = gil.wanted_by(thread.native_id)
        sys.setswitchinterval(interval)
    os.close(reader)
    os.close(writer)
    assert (at_rest, released) == (False, True)


def test_a_wait_for_a_lock_is_none_for_the_gil() -> None:
    lock = threading.Lock()
    lock.acquire()
    with blocked(lock.acquire, lock.release) as thread:
        assert not found().wanted_by(thread.native_id)


def test_a_thread_that_never_runs_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one that an exception from outside reaches before its first line."""
    monkeypatch.setattr("loopguard.capture.gil._pass", lambda *_given: None)
    assert not found().wanted_by(threading.get_native_id())


def test_a_thread_that_has_ended_wants_nothing() -> None:
    assert not found().wanted_by(2**30)


def test_finding_it_leaves_no_thread_and_no_file() -> None:
    before = open_files(), threading.active_count()
    found()
    assert (open_files(), threading.active_count()) == before


def test_where_the_system_does_not_show_it_nobody_is_seen_to_want_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(system_calls, "read_small", lambda _path: b"")
    assert not found().wanted_by(threading.get_native_id())
