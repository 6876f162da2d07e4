"""anyio's default thread limiter, in which the `def` routes of an application wait for their turn."""

from __future__ import annotations

import asyncio
import sys
from contextvars import Context
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

_EVERY_NS = 1_000_000_000
_BACKEND = "anyio._backends._asyncio"


class Threadpool(NamedTuple):
    """How many calls wait for a thread, and the share (0 to 1) of the threads that are taken."""

    waiting: int
    utilization: float


class ThreadLimiters:
    """The default limiter of each loop, read on the loop's own thread once a second.

    anyio is never imported here: a limiter can only be in use where somebody else has done so.
    """

    def __init__(self) -> None:
        self._read: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[int, Threadpool]] = (
            WeakKeyDictionary()
        )

    def note(self, now_ns: int) -> None:
        """Called on a loop's thread at each of its heartbeats; does something once a second."""
        if _BACKEND not in sys.modules:
            return
        loop = asyncio.get_running_loop()
        last_ns, _ = self._read.get(loop, (0, None))
        if now_ns - last_ns >= _EVERY_NS:
            self._read[loop] = now_ns, Context().run(_read_default)

    def read(self) -> Threadpool | None:
        """Of all loops that are alive, as last seen: the waiting summed up, the highest utilization."""
        seen = [pool for _, pool in list(self._read.values())]
        if not seen:
            return None
        return Threadpool(
            sum(pool.waiting for pool in seen), max(pool.utilization for pool in seen)
        )


def _read_default() -> Threadpool:
    sniffio: Any = sys.modules.get("sniffio")
    if sniffio is not None:
        # In a callback there is no task by which it would tell that this is asyncio. In a context of our own.
        sniffio.current_async_library_cvar.set("asyncio")
    to_thread: Any = sys.modules["anyio.to_thread"]
    limiter = to_thread.current_default_thread_limiter()
    waiting = int(limiter.statistics().tasks_waiting)
    total = limiter.total_tokens
    return Threadpool(waiting, min(1.0, limiter.borrowed_tokens / total) if total else 1.0)
