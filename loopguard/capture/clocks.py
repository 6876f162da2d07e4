"""Clocks of threads: CPU time, and time spent ready to run without a CPU."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from loopguard.capture.small_files import open_small, read_at, read_small

try:
    import resource

    _THREAD: int | None = getattr(resource, "RUSAGE_THREAD", None)
except ImportError:  # Windows
    _THREAD = None


_PER_THREAD_CPU = 6  # CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED, linux/posix-timers.h


def thread_clock(native_id: int) -> int:
    """The number of a thread's CPU clock."""
    return (~native_id << 3) | _PER_THREAD_CPU


def thread_cpu_ns(native_id: int) -> int | None:
    """Nanoseconds that a thread of this process has spent on a CPU; None where the system does not tell.

    By the clock id that Linux gives every thread: pthread_getcpuclockid is undefined for a thread that has ended,
    this answers EINVAL.
    """
    try:
        return time.clock_gettime_ns(thread_clock(native_id))
    except (OSError, AttributeError, OverflowError):
        return None


def native_threads() -> list[int]:
    """The threads of this process, those that Python knows nothing of among them; none where nobody tells."""
    try:
        return [int(each.name) for each in Path("/proc/self/task").iterdir()]
    except OSError:
        return []


def threads_of_process() -> int | None:
    """How many they are, without letting the GIL go; None where nobody counts.

    The 20th field of proc_pid_stat(5); the second is a name that may hold anything, and ends with the last bracket.
    """
    try:
        return int(read_small("/proc/self/stat", 512).rpartition(b")")[2].split()[17])
    except (ValueError, IndexError):
        return None


def own_cpu_ns() -> int | None:
    """Nanoseconds that this thread has spent on a CPU; None where a sandbox refuses to tell."""
    try:
        return time.thread_time_ns()
    except OSError:
        return None


def thread_cpu_works() -> bool:
    """Whether `thread_cpu_ns` tells the truth here: it must agree with this thread's own clock."""
    before, seen = own_cpu_ns(), thread_cpu_ns(threading.get_native_id())
    after = own_cpu_ns()
    if before is None or seen is None or after is None:
        return False
    return before <= seen <= after


class RunDelay:
    """How long a thread was ready to run without getting a CPU: the second field of its schedstat (proc(5))."""

    def __init__(self, native_id: int) -> None:
        self._fd = open_small(f"/proc/self/task/{native_id}/schedstat")
        if self.read() is None:
            self.close()

    def read(self) -> int | None:
        """Nanoseconds since the thread began; None where the system does not tell."""
        if self._fd is None:
            return None
        try:
            return int(read_at(self._fd, 64).split()[1])
        except (ValueError, IndexError):
            return None

    def close(self) -> None:
        ours = self._fd is not None and _is_schedstat(self._fd)
        # Given up first: a child forked in the middle of this would close a stranger's.
        fd, self._fd = self._fd, None
        if ours and fd is not None:
            os.close(fd)

    __del__ = close  # a thread of ours may be struck before it can


def _is_schedstat(fd: int) -> bool:
    """Whether that is still what the number leads to: a daemon may have closed all files since."""
    try:
        return Path(f"/proc/self/fd/{fd}").readlink().name == "schedstat"
    except OSError:
        return False


def run_delay_works(native_id: int) -> bool:
    """Whether the system tells how long this thread of ours was kept waiting for a CPU."""
    delay = RunDelay(native_id)
    try:
        return delay.read() is not None
    finally:
        delay.close()


def process_switches() -> int | None:
    """How often threads of this process have given up their CPU to wait: each such time one was woken up later.

    None where nobody counts.
    """
    return None if _THREAD is None else resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


def voluntary_switches() -> int:
    """How often this thread has given up its CPU to wait (getrusage(2), RUSAGE_THREAD); 0 where nobody counts.

    A thread that waits for the GIL wakes once in every switch interval to ask for it again.
    """
    if _THREAD is None:
        return 0
    try:
        return resource.getrusage(_THREAD).ru_nvcsw
    except OSError:  # a sandbox refuses it
        return 0
