"""The other threads: which of them kept the GIL while the loop waited for it, and where it stands."""

from __future__ import annotations

import threading
import time
from types import FrameType

from loopguard.capture import stacks
from loopguard.capture.clocks import native_threads, thread_cpu_ns, threads_of_process
from loopguard.capture.gil import Gil
from loopguard.capture.handover import kept_at
from loopguard.evidence import OtherThread

_MOST = 200  # threads whose clocks are read: half a microsecond each
_EVERY_NS = 1_000_000_000
_LEAST_NS = 1_000_000
KEPT_WAITING_NS = 20_000_000
"""Who waited no longer than this for the GIL was kept from it by nobody: so long a busy machine takes to wake it."""
_ASKED = 64  # threads whose system calls are read: ten microseconds each


class OtherThreads:
    """CPU clocks of the threads of this process, noted once in a while to compare with later.

    `watchdog` is the native identifier of the thread that is never in the way: it waits for the GIL as the loop does.
    """

    def __init__(self) -> None:
        self.watchdog: int | None = None
        self.gil = Gil()
        self._noted: dict[int, int] = {}
        self._noted_all = 0
        self._noted_ns = 0
        self._foreign: list[int] = []
        self._foreign_known = False

    def note(self, now_ns: int) -> None:
        """Called at each heartbeat; does something once a second."""
        if now_ns - self._noted_ns >= _EVERY_NS:
            self._noted_ns = now_ns
            self._noted = _clocks([*_ids(_threads()), *self._foreign])
            self._noted_all = time.process_time_ns()

    def find_foreign(self) -> None:
        """Find the threads that Python knows nothing of, if that is to be done: it lets the GIL go."""
        if self._foreign_known:
            return
        self._foreign_known = True
        known = set(_ids(_threads()))
        self._foreign = [each for each in native_threads() if each not in known][:_MOST]

    def in_the_way(
        self, frames: dict[int, FrameType], own: int, late_ns: int
    ) -> OtherThread | None:
        """The thread that kept the GIL of late for so long, as it stands in `frames`; not that with the identifier `own`.

        None where it was not for long, or nothing tells. The one that computed most since the
        clocks were noted. Where none computed for much of the time, the only one that wants the GIL back now: who kept
        it and was made to hand it over does, and all others rest in calls of their own. One that has ended
        since is known by the CPU time that it left to the process.
        """
        if late_ns <= KEPT_WAITING_NS:
            return None
        known = _threads()
        since = {
            native_id: clock - self._noted.get(native_id, 0)
            for native_id, clock in _clocks([*_ids(known), *self._foreign]).items()
        }
        threads = [
            thread
            for thread in known
            if thread.ident != own and thread.native_id not in (None, self.watchdog)
        ]
        spent = {thread: since[thread.native_id] for thread in threads if thread.native_id in since}
        busiest = max(spent, key=lambda thread: spent[thread], default=None)
        if busiest is not None and spent[busiest] >= max(_LEAST_NS, late_ns // 4):
            return self._as_it_stands(busiest, frames, spent[busiest])
        wanting = self._wanting(threads)
        if len(wanting) == 1:
            return self._as_it_stands(wanting[0], frames, spent.get(wanting[0], 0), alone=True)
        gone_ns = self._spent_by_the_gone(since)
        if gone_ns >= max(_LEAST_NS, late_ns // 4):
            return OtherThread("", None, (), gone_ns, self._noted_ns, ended=True)
        if busiest is None or spent[busiest] < _LEAST_NS:
            return None
        return self._as_it_stands(busiest, frames, spent[busiest])

    def _spent_by_the_gone(self, since: dict[int, int]) -> int:
        """CPU nanoseconds of the process that none of its threads has spent; 0 where not all threads are known."""
        unknown = (threads_of_process() or 0) - len(since)
        self._foreign_known = unknown == 0
        # One that has just ended for Python may be among the system's for a millisecond more.
        if unknown not in (0, 1):
            return 0
        return time.process_time_ns() - self._noted_all - sum(since.values())

    def _wanting(self, threads: list[threading.Thread]) -> list[threading.Thread]:
        """Those that wait for the GIL; none where that is not to be seen, or there are too many threads to ask.

        Our own never keep it without computing.
        """
        if len(threads) > _ASKED:
            return []
        return [
            thread
            for thread in threads
            if not thread.name.startswith("loopguard-")
            and self.gil.wanted_by(thread.native_id or 0)
        ]

    def _as_it_stands(
        self,
        thread: threading.Thread,
        frames: dict[int, FrameType],
        cpu_ns: int,
        alone: bool = False,
    ) -> OtherThread:
        stack = kept_at(stacks.walk(frames.get(thread.ident or 0), None)[0])
        return OtherThread(
            *(thread.name, thread.native_id, stacks.bounded(stack)),
            *(cpu_ns, self._noted_ns, alone),
        )


def _threads() -> list[threading.Thread]:
    """The newest come last, and are the ones looked at where there are too many.

    Without the lock of `threading.enumerate()`, which another thread may have.
    """
    known: dict[int, threading.Thread] = getattr(threading, "_active", {})
    return list(known.values())[-_MOST:]


def _ids(threads: list[threading.Thread]) -> list[int]:
    return [thread.native_id for thread in threads if thread.native_id is not None]


def _clocks(native_ids: list[int]) -> dict[int, int]:
    """CPU nanoseconds of each of these threads that still runs."""
    clocks = {native_id: thread_cpu_ns(native_id) for native_id in native_ids}
    return {native_id: clock for native_id, clock in clocks.items() if clock is not None}
