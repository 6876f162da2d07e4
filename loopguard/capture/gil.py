"""Where threads wait for the GIL, so that it can be seen which of them want it."""

from __future__ import annotations

import ctypes
import os
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
        library = ctypes.PyDLL(None)  # its functions keep the GIL
        write, sleep = library.write, library.usleep
        reader, writer = os.pipe()
    except (OSError, TypeError, AttributeError):  # Windows
        return None
    waiter = threading.Thread(target=os.read, args=(reader, 1), name="loopguard-gil", daemon=True)
    try:
        waiter.start()
        return _futex_of(waiter, lambda: write(writer, b"x", 1), sleep)
    except RuntimeError:  # the interpreter is about to end
        return None
    finally:
        if waiter.ident is not None:
            os.write(writer, b"x")
            waiter.join(_PATIENCE)
        os.close(reader)
        os.close(writer)


def _futex_of(waiter: threading.Thread, release: Any, sleep: Any) -> int | None:
    """What the thread waits on, once it is released from its read and cannot have the GIL."""
    native_id, until = waiter.native_id or 0, time.monotonic() + _PATIENCE
    # Of what, is not asked for: a sandbox may refuse to tell, and this would wait in the midst of a stall.
    while getattr(system_calls.waiting_in(native_id), "call", None) != "read":
        if time.monotonic() > until or not system_calls.works(native_id):
            return None
        waiter.join(_STEP_US / 1e6)
    release()
    for _ in range(_STEPS):
        sleep(_STEP_US)
        futex = system_calls.futex_of(native_id)
        if futex:
            return futex
    return None
