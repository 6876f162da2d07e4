"""The frames that threads stand in, asked for so that it is safe also beside sub-interpreters."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any


class _Uncollected:
    """While any thread is in here, nothing is collected: entered by several of them, it ends with the last."""

    def __init__(self) -> None:
        self._entered = 0
        self._was_on = False

    def __enter__(self) -> None:
        self._entered += 1
        if self._entered == 1:
            self._was_on = gc.isenabled()
            gc.disable()

    def __exit__(self, *_raised: object) -> None:
        self._entered -= 1
        if not self._entered and self._was_on:
            gc.enable()


# A frame object is made when a frame is first asked for. CPython 3.11 may collect amid that, and what a collection runs
# may let the GIL go: the other thread goes on, and what was to be its frame is other memory by then. From 3.12 on
# collections wait for the next bytecode.
UNCOLLECTED: AbstractContextManager[None] = (
    _Uncollected() if sys.version_info < (3, 12) else nullcontext()
)
"""In here the frames of other threads can be asked for, and their outer ones and variables. For a millisecond."""


def _interface() -> Any:
    """What of CPython's C API is needed; None where it is not to be had."""
    try:
        api = ctypes.pythonapi
        newest, first, frame = (
            api.PyInterpreterState_Head,
            api.PyInterpreterState_Main,
            api.PyThreadState_GetFrame,
        )
        current = api.PyInterpreterState_Get
    except (OSError, AttributeError):
        return None
    newest.restype = first.restype = current.restype = ctypes.c_void_p
    newest.argtypes = first.argtypes = current.argtypes = ()
    frame.restype, frame.argtypes = ctypes.py_object, (ctypes.c_void_p,)
    return newest, first, current, frame


_API = _interface()


def alone() -> bool:
    """Whether there are no sub-interpreters: new ones come before the first in the list of all."""
    if _API is None:
        return True
    newest, first, _, _ = _API
    return bool(newest() == first())


def in_main_interpreter() -> bool:
    if _API is None:
        return True
    _, first, current, _ = _API
    return bool(current() == first())


def frames_of_threads(thread_id: int, thread_state: int | None) -> dict[int, FrameType]:
    """The innermost frame of each thread, by its identifier.

    `sys._current_frames` walks the threads of all interpreters, also of those whose GIL somebody else has, and crashes
    on what it finds half-made there. So where there are any, this gives that one thread's, whose state (an address of
    this interpreter's, valid while the thread lives) is known. It never lets the GIL go. To be called `UNCOLLECTED`.
    """
    if alone():
        return sys._current_frames()
    if thread_state is None:
        return {}
    try:
        frame: object = _API[3](thread_state)
    except ValueError:  # it runs nothing
        return {}
    return {thread_id: frame} if isinstance(frame, FrameType) else {}


def frames_of_others(thread_id: int, thread_state: int | None) -> dict[int, FrameType]:
    """The same without the thread that asks: its frame would hold the answer, and with it all those frames, which keep
    the user's objects alive, in a circle that only the next collection frees.
    """
    frames = frames_of_threads(thread_id, thread_state)
    frames.pop(threading.get_ident(), None)
    return frames
