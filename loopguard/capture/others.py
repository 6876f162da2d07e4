"""The other threads: which of them computed while the loop waited, and where it stands."""

from __future__ import annotations

import threading
from types import FrameType

from loopguard.capture import stacks
from loopguard.capture.clocks import thread_cpu_ns
from loopguard.evidence import OtherThread

_MOST = 200  # threads whose clocks are read: half a microsecond each
_EVERY_NS = 1_000_000_000
_LEAST_NS = 1_000_000


class OtherThreads:
    """CPU clocks of the threads of this process, noted once in a while to compare with later."""

    def __init__(self) -> None:
        self._noted: dict[int | None, int] = {}
        self._noted_ns = 0

    def note(self, now_ns: int) -> None:
        """Called at each heartbeat; does something once a second."""
        if now_ns - self._noted_ns >= _EVERY_NS:
            self._noted_ns = now_ns
            self._noted = _clocks(_threads())

    def busiest(self, frames: dict[int, FrameType], own: int) -> OtherThread | None:
        """The thread that computed most since the clocks were noted, as it stands in `frames`.

        Neither that with the identifier `own`, nor the one that asks.
        """
        apart = {own, threading.get_ident()}
        threads = [thread for thread in _threads() if thread.ident not in apart]
        clocks = _clocks(threads)
        spent = {
            thread: clocks[thread.native_id] - self._noted.get(thread.native_id, 0)
            for thread in threads
            if thread.native_id in clocks
        }
        busiest = max(spent, key=lambda thread: spent[thread], default=None)
        if busiest is None or spent[busiest] < _LEAST_NS:
            return None
        frame = None if busiest.ident is None else frames.get(busiest.ident)
        stack = stacks.bounded(stacks.walk(frame, None)[0])
        return OtherThread(busiest.name, busiest.native_id, stack, spent[busiest], self._noted_ns)


def _threads() -> list[threading.Thread]:
    """The newest come last, and are the ones looked at where there are too many.

    Without the lock of `threading.enumerate()`, which another thread may have.
    """
    known: dict[int, threading.Thread] = getattr(threading, "_active", {})
    return list(known.values())[-_MOST:]


def _clocks(threads: list[threading.Thread]) -> dict[int | None, int]:
    clocks: dict[int | None, int] = {}
    for each in threads:
        cpu = None if each.native_id is None else thread_cpu_ns(each.native_id)
        if cpu is not None:
            clocks[each.native_id] = cpu
    return clocks
