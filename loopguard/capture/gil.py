"""Where threads wait for the GIL, so that it can be seen which of them want it."""

from __future__ import annotations

import _thread
import ctypes
import sys
import threading
import time
from typing import Any

from loopguard.capture import system_calls

_AROUND = (
    256  # bytes: the interpreter's two condition variables and their mutexes lie beside each other
)
_STEP_US, _STEPS = 100, 50  # so long, at most, is the GIL kept in one try
_TRIES = 3  # on a busy machine the thread may not even wake in that time
_PATIENCE = 0.2


class Gil:
    """The futex of the GIL: found, once, with a thread that is made to wait for it."""

    def __init__(self) -> None:
        self._address: int | None = None
        self._tries = _TRIES if getattr(sys, "_is_gil_enabled", lambda: True)() else 0

    def find(self) -> None:
        """Look for it, if it is not found yet; where the system does not show it, nobody is ever seen to want the GIL."""
        while self._address is None and self._tries:
            self._tries -= 1
            self._address = _find()

    def wanted_by(self, native_id: int) -> bool:
        """Whether this thread waits for the GIL, or is about to: those that go on in anything else need it too."""
        if self._address is None:
            return False
        waits = system_calls.futex_of(native_id)
        return waits is None or abs(waits - self._address) < _AROUND


def _find() -> int | None:
    try:
        sleep = ctypes.PyDLL(None).usleep  # keeps the GIL
    except (OSError, TypeError, AttributeError):  # Windows
        return None
    lock = threading.Lock()
    waiter: list[int] = []
    with lock:
        try:
            # Not threading.Thread: who starts one waits until it runs, which it never does if an exception is raised
            # in the starting thread from outside, for that may strike the new one.
            _thread.start_new_thread(_pass, (lock, waiter))
        except RuntimeError:  # no more threads, or the interpreter is about to end
            return None
        waits_on = _waits_on(waiter)
    return None if waits_on is None else _next_futex(waiter[0], waits_on, sleep)


def _pass(lock: threading.Lock, waiter: list[int]) -> None:
    waiter.append(threading.get_native_id())
    with lock:
        pass


def _waits_on(waiter: list[int]) -> int | None:
    """What the thread waits on for the lock: it is the same for a while, where the GIL is to be had."""
    until = time.monotonic() + _PATIENCE
    last: int | None = None
    while time.monotonic() < until:
        time.sleep(_STEP_US / 1e6)
        if not waiter:
            continue
        if not system_calls.works(waiter[0]):
            return None
        futex = system_calls.futex_of(waiter[0])
        if futex and futex == last:
            return futex
        last = futex
    return None


def _next_futex(waiter: int, lock: int, sleep: Any) -> int | None:
    """What the thread waits on now that it has the lock and cannot have the GIL."""
    for _ in range(_STEPS):
        sleep(_STEP_US)
        futex = system_calls.futex_of(waiter)
        if futex and futex != lock:
            return futex
    return None
