"""The context that a thread is running in, read from another thread."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys
from collections.abc import Callable
from contextvars import Context
from typing import Any

_SCAN = range(64, 400, 8)


def thread_state() -> int | None:
    """The address of this thread's own state; None where that is not to be had."""
    try:
        get = ctypes.PyDLL(None).PyThreadState_Get
    except (OSError, AttributeError, TypeError):
        return None
    get.restype = ctypes.c_void_p
    get.argtypes = ()
    address = get()
    return address if isinstance(address, int) else None


def _find_offset() -> int | None:
    """Where in a thread state the pointer to its running context lies.

    That is no public interface, so it is found out on the spot: run in three contexts and one nested in another,
    and take the one place that always held the right pointer (224 on CPython 3.11, 208 on 3.12 and 3.13).
    """
    if not getattr(sys, "_is_gil_enabled", lambda: True)() or sys.implementation.name != "cpython":
        return None
    state = thread_state()
    if state is None:
        return None

    def matches(context: Context) -> set[int]:
        wanted = id(context)
        return {
            offset
            for offset in _SCAN
            if ctypes.c_size_t.from_address(state + offset).value == wanted
        }

    first, second, third = Context(), Context(), Context()
    common = first.run(matches, first) & second.run(matches, second) & third.run(matches, third)
    common &= first.run(lambda: second.run(matches, second))
    return common.pop() if len(common) == 1 else None


class ContextReader:
    """Copies the context that a thread is running in, without that thread's help.

    Where the thread's own state cannot be read, the task's context is taken; that is right except in callbacks
    which have no task.
    """

    def __init__(self, find_offset: Callable[[], int | None] = _find_offset) -> None:
        self._offset = find_offset()

    @property
    def reads_threads(self) -> bool:
        return self._offset is not None

    def address(self) -> int | None:
        """Where this thread's context pointer lies. To be asked on the thread itself; valid while it lives."""
        state = thread_state() if self._offset is not None else None
        return None if state is None or self._offset is None else state + self._offset

    def running(self, address: int | None, task: asyncio.Task[Any] | None) -> Context | None:
        """The live context at `address`; else that of the task; None where neither is known."""
        if address is not None:
            try:
                # One call into C: it reads the pointer and takes a reference without letting the GIL go.
                context: object = ctypes.py_object.from_address(address).value
            except ValueError:  # a null pointer: the thread runs in no context
                return None
            return context if isinstance(context, Context) else None
        return None if task is None else of_task(task)


def of_task(task: asyncio.Task[Any]) -> Context | None:
    """The live context of a task; None where it cannot be told."""
    if sys.version_info >= (3, 12):
        return task.get_context()
    # CPython 3.11 has no get_context(); a task refers to its own context first.
    return next((found for found in gc.get_referents(task) if type(found) is Context), None)
