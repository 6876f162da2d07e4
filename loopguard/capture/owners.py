"""Which thread must release what the loop's thread waits for, where the interpreter knows it."""

from __future__ import annotations

import concurrent.futures._base
import concurrent.futures.thread
import re
import threading
from types import CodeType, FrameType
from typing import Any

from loopguard.capture import stacks
from loopguard.capture.callee import receiver_of
from loopguard.capture.variables import UNKNOWN, local
from loopguard.evidence import Callee, OtherThread

_OWNER = re.compile(r"owner=(\d+) ")
_RLOCK: type = type(threading.RLock())


def _code(function: Any) -> CodeType | None:
    """The code of a function of the standard library; None where this version writes it in C."""
    return getattr(function, "__code__", None)


_JOIN = _code(threading.Thread.join)
_RESULTS = {
    _code(concurrent.futures._base.Future.result),
    _code(concurrent.futures._base.Future.exception),
}
_WORK = _code(concurrent.futures.thread._WorkItem.run)  # private: CPython 3.11 to 3.15


def owner_of(
    frame: FrameType, lasti: int, callee: Callee | None, frames: dict[int, FrameType]
) -> OtherThread | None:
    """The thread that the innermost frames wait for; None where that cannot be known.

    A thread that is joined, one that owns an RLock, a pool's thread that works out a future. Of a plain lock nobody
    knows the owner.
    """
    inner: FrameType | None = frame
    while inner is not None and _is_threading(inner):
        code = inner.f_code
        if code is _JOIN:
            return _thread(getattr(local(inner, "self"), "ident", None), frames)
        if code in _RESULTS:
            return _thread(_worker_on(local(inner, "self"), frames), frames)
        inner = inner.f_back
    if callee is None or callee.owner is not _RLOCK:
        return None
    return _thread(_owner_of_lock(receiver_of(frame, lasti)), frames)


def _is_threading(frame: FrameType) -> bool:
    name = dict.get(frame.f_globals, "__name__")
    return type(name) is str and name.partition(".")[0] in ("threading", "concurrent")


def _owner_of_lock(lock: object) -> int | None:
    """The identifier of the thread that has the RLock; its `repr`, written in C, is the only one to tell."""
    if type(lock) is not _RLOCK:
        return None
    found = _OWNER.search(repr(lock))
    return int(found[1]) if found and int(found[1]) else None


def _worker_on(future: object, frames: dict[int, FrameType]) -> int | None:
    """The identifier of the pool's thread that runs the work of a future."""
    for ident, innermost in frames.items():
        for frame in stacks.frames_of(innermost):
            if frame.f_code is _WORK:
                item = local(frame, "self")
                if item is not UNKNOWN and getattr(item, "future", None) is future:
                    return ident
    return None


def _thread(ident: object, frames: dict[int, FrameType]) -> OtherThread | None:
    known: dict[int, threading.Thread] = getattr(threading, "_active", {})
    thread = known.get(ident) if isinstance(ident, int) else None
    if thread is None:
        return None
    stack = stacks.walk(frames.get(thread.ident or 0), None)[0]
    return OtherThread(thread.name, thread.native_id, stacks.bounded(stack), 0, 0)
