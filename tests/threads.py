"""A thread that is blocked for real, to be looked at from outside."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

PATIENCE = 20.0


@dataclass(frozen=True)
class Blocked:
    """A thread that rests in a call."""

    thread_id: int
    native_id: int

    @property
    def frame(self) -> FrameType:
        """Its innermost frame."""
        return sys._current_frames()[self.thread_id]


@contextmanager
def blocked(work: Callable[[], object], release: Callable[[], object]) -> Iterator[Blocked]:
    """Run `work` in a thread until it rests; `release` lets it end, which is waited for."""
    thread = threading.Thread(target=work, name="blocked", daemon=True)
    thread.start()
    try:
        assert thread.ident is not None
        assert thread.native_id is not None
        subject = Blocked(thread.ident, thread.native_id)
        wait_until(lambda: _rests(subject))
        yield subject
    finally:
        release()
        thread.join(PATIENCE)
    assert not thread.is_alive()


def strike(name: str, kind: type[BaseException]) -> None:
    """Raise an exception in each thread of that name, as some supervisors do: at any point, from outside."""
    struck = [thread for thread in threading.enumerate() if thread.name == name]
    assert struck, f"no thread is called {name}"
    for thread in struck:
        set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
        assert set_exception(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(kind)) == 1


def wait_until(true: Callable[[], object]) -> None:
    """Ask until it is true."""
    until = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < until, "it did not come true in time"
        time.sleep(0.001)


def open_files() -> set[str]:
    """The numbers of the files that this process has open."""
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the shorter way to ask for names


def _rests(subject: Blocked) -> bool:
    """Whether the thread sleeps, and did not move while the GIL was free."""
    before = _place(subject)
    for _ in range(3):
        time.sleep(0.001)
        if _state(subject.native_id) != "S" or _place(subject) != before:
            return False
    return True


def _place(subject: Blocked) -> tuple[object, int] | None:
    frame = sys._current_frames().get(subject.thread_id)
    return None if frame is None else (frame.f_code, frame.f_lasti)


def _state(native_id: int) -> str:
    """One letter, of proc(5)."""
    text = Path(f"/proc/self/task/{native_id}/stat").read_text()
    return text.rpartition(")")[2].split()[0]
