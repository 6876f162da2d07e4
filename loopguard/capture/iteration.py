"""When the running iteration of a loop began, and which of its callbacks is running."""

from __future__ import annotations

import asyncio
import ctypes
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

from loopguard.capture.small_files import read_memory
from loopguard.capture.variables import local
from loopguard.evidence import Iteration

RUN_ONCE = asyncio.BaseEventLoop._run_once.__code__  # type: ignore[attr-defined]  # private: CPython 3.11 to 3.15

Reader = Callable[[FrameType | None], Iteration | None]


def from_run_once(frame: FrameType | None) -> Iteration | None:
    """asyncio: out of the locals of `BaseEventLoop._run_once`, in mid-stall.

    `end_time` is the loop's clock after its wait, `i` counts the callbacks of this iteration. Neither is public;
    where a name is missing, less is known.
    """
    if frame is None:
        return None
    end_time, index = local(frame, "end_time"), local(frame, "i")
    if type(end_time) is not float:
        return None
    return Iteration(int(end_time * 1e9), 100_000, index if type(index) is int else None)


class _Layout(NamedTuple):
    """Where in a uvloop.Loop lies the pointer to its uv_loop_t, and where in that the time of the iteration."""

    uv_loop: int
    time: int


_WORD = 8
_LOOP_BYTES, _UV_LOOP_BYTES = 256, 1024
# libuv takes a coarse clock where its resolution is at most 1 ms, and cuts to milliseconds.
_UV_ERROR_NS = 2_000_000


def uvloop_reader(loop: Any, layout: _Layout | None) -> Reader | None:
    """uvloop: out of libuv's memory, where the time at each iteration's start is cached (`uv_now`).

    None where that cannot be read. `loop.time()` would refresh that time and so destroy the evidence.
    """
    if layout is None:
        return None
    uv_loop = _word_at(id(loop) + layout.uv_loop)
    if read_memory(uv_loop, _WORD) != id(loop).to_bytes(_WORD, "little"):
        return None
    cached = ctypes.c_uint64.from_address(uv_loop + layout.time)
    return lambda _frame: Iteration(cached.value * 1_000_000, _UV_ERROR_NS, None)


def find_layout() -> _Layout | None:
    """Find the layout on a private loop, by comparing its memory with its clock.

    It sleeps for milliseconds, so not on a thread that runs a loop, and for no longer than the clock takes to move: a
    native call that keeps the GIL meanwhile is not looked at.
    """
    try:
        import uvloop
    except ImportError:
        return None
    loop = uvloop.new_event_loop()
    try:
        return _calibrate(loop)
    finally:
        loop.close()


def _calibrate(loop: Any) -> _Layout | None:
    own = id(loop).to_bytes(_WORD, "little")
    words = range(16, min(_LOOP_BYTES, type(loop).__basicsize__), _WORD)
    # uv_loop_t begins with `void* data`, which uvloop points back at the loop.
    pointers = [
        offset for offset in words if read_memory(_word_at(id(loop) + offset), _WORD) == own
    ]
    if len(pointers) != 1:
        return None
    uv_loop = _word_at(id(loop) + pointers[0])
    times = set(range(0, _UV_LOOP_BYTES, _WORD))
    for moved in (0, _UV_ERROR_NS):
        time.sleep(moved / 1e9)
        now = round(loop.time() * 1000).to_bytes(_WORD, "little")
        memory = read_memory(uv_loop, _UV_LOOP_BYTES)
        times = {at for at in times if memory[at : at + _WORD] == now}
    return _Layout(pointers[0], times.pop()) if len(times) == 1 else None


def _word_at(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value
