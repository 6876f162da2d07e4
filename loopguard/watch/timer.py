"""Alarms that wake one thread: a kernel timer for each loop, or where there is none a thread that polls.

An alarm is armed on the loop's thread at each heartbeat, so it must cost little and never block. Only the waiting
thread closes alarms: a number of a file that somebody else closes may belong to a stranger by the time it is used.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import select
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Protocol

from loopguard.capture.small_files import read_small
from loopguard.capture.timer_spec import TimerSpec
from loopguard.clock import monotonic_ns


class Alarm(Protocol):
    """Goes off at a time of CLOCK_MONOTONIC; each call of `arm` replaces the one before it."""

    def arm(self, at_ns: int) -> None:
        """Go off at `at_ns`; at once where that is past, and never where it is 0."""
        ...


class Alarms(Protocol):
    """All alarms, and the wait for them; `kernel` where the kernel keeps the time."""

    kernel: bool

    def new(self) -> Alarm: ...

    def wait(self) -> list[Alarm]:
        """Block until an alarm has gone off or `wake` was called; returns those that have gone off."""
        ...

    def wake(self) -> None: ...

    def drop(self, alarm: Alarm) -> None:
        """Give an alarm up. On the waiting thread only."""
        ...

    def close(self) -> None:
        """Give all up. On the waiting thread, or when it has ended, or in a forked child, where there is none."""
        ...

    @property
    def lost(self) -> bool:
        """Whether somebody has closed their files, as a daemon closes all: who waits for them waits for ever."""
        ...

    def renew(self) -> None:
        """Where they are lost, begin anew, for another thread to wait."""
        ...


_ABSOLUTE = 1  # TFD_TIMER_ABSTIME
_CLOSE_ON_EXEC = (
    os.O_CLOEXEC if hasattr(os, "O_CLOEXEC") else 0
)  # TFD_CLOEXEC, TFD_NONBLOCK: same bits
_NON_BLOCKING = os.O_NONBLOCK if hasattr(os, "O_NONBLOCK") else 0


class _TimerFd:
    """A timerfd. By ctypes on all versions, since Python's own (3.13) lets the GIL go at each call."""

    __slots__ = ("_reference", "_settime", "_spec", "fd")

    def __init__(self, library: Any) -> None:
        self.fd: int = library.timerfd_create(time.CLOCK_MONOTONIC, _CLOSE_ON_EXEC | _NON_BLOCKING)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._settime = library.timerfd_settime
        self._spec = TimerSpec()
        self._reference = ctypes.byref(self._spec)

    def arm(self, at_ns: int) -> None:
        # The loop's thread and the waiting one may both be here, and one arm with the other's time. Both are
        # soon, and the next heartbeat puts it right.
        self._spec.at(at_ns)
        self._settime(self.fd, _ABSOLUTE, self._reference, None)

    def close(self) -> None:
        # A heartbeat may still arm it: that must not reach a stranger who got the same number.
        fd, self.fd = self.fd, -1
        os.close(fd)


_AT_ONCE = 0.05  # seconds that a timer may take which is due; some microseconds, but the machine may be busy
_LONGEST = 1 << 16
_WAITS = re.compile(rb"^tfd:\s*(\d+) events:\s*([0-9a-f]+)", re.MULTILINE)
_strangers: list[select.epoll] = []
"""Epolls whose numbers may be somebody else's by now. They close them when they are collected, so they never are."""


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


class KernelAlarms:
    """Alarms by timerfd_create(2), waited for with epoll: the waiting thread takes no GIL in vain.

    Raises:
        OSError, AttributeError: there is no timerfd or no epoll here.
    """

    kernel = True

    def __init__(self) -> None:
        # PyDLL keeps the GIL during the call, which takes a microsecond; to give it up may cost a switch of threads.
        self._library = ctypes.PyDLL(None, use_errno=True)
        self._begin()
        self.wake()
        if not self._epoll.poll(_AT_ONCE):
            self.close()
            raise OSError(errno.EPERM, "timers are granted and not set")

    def _begin(self) -> None:
        self._epoll = select.epoll()
        self._alarms: dict[int, _TimerFd] = {}
        self._waker = self.new()

    def new(self) -> _TimerFd:
        alarm = _TimerFd(self._library)
        self._alarms[alarm.fd] = alarm
        # Edge-triggered: what went off need not be read, which would let the GIL go before the first look.
        self._epoll.register(alarm.fd, select.EPOLLIN | select.EPOLLET)
        return alarm

    def wait(self) -> list[Alarm]:
        gone_off = [self._alarms.get(fd) for fd, _ in self._epoll.poll()]
        return [alarm for alarm in gone_off if alarm is not None and alarm is not self._waker]

    def wake(self) -> None:
        self._waker.arm(1)

    def drop(self, alarm: Alarm) -> None:
        if not isinstance(alarm, _TimerFd):
            return
        ours = alarm.fd in self._waited_for()
        if self._alarms.pop(alarm.fd, None) is not None and ours:
            alarm.close()

    def close(self) -> None:
        if self.lost:
            _strangers.append(self._epoll)
            return
        for alarm in list(self._alarms.values()):
            self.drop(alarm)
        self._epoll.close()

    @property
    def lost(self) -> bool:
        return self._waker.fd not in self._waited_for()

    def renew(self) -> None:
        _strangers.append(self._epoll)
        self._begin()

    def _waited_for(self) -> Collection[int]:
        """The files that our epoll waits for, as the kernel lists them (proc(5)); where it does not, those that should be.

        By now its number may be that of another epoll, but hardly of one that is edge-triggered for the same number.
        """
        text = read_small(f"/proc/self/fdinfo/{self._epoll.fileno()}", _LONGEST)
        if not text:
            return self._alarms if _is_open(self._epoll.fileno()) else ()
        return [int(fd) for fd, events in _WAITS.findall(text) if int(events, 16) & select.EPOLLET]


class _Deadline:
    """An alarm of `PollingAlarms`: a time to compare with."""

    __slots__ = ("at_ns",)

    def __init__(self) -> None:
        self.at_ns = 0

    def arm(self, at_ns: int) -> None:
        self.at_ns = at_ns


class PollingAlarms:
    """Alarms for every platform: the waiting thread looks at the clock every `interval` seconds.

    Each of these wake-ups takes the GIL from a healthy loop; that is what timerfd saves.
    """

    kernel = False

    def __init__(self, interval: Callable[[], float]) -> None:
        self._interval = interval
        self._asleep = threading.Lock()
        self._asleep.acquire()
        self._alarms: list[_Deadline] = []

    def new(self) -> _Deadline:
        alarm = _Deadline()
        self._alarms.append(alarm)
        return alarm

    def wait(self) -> list[Alarm]:
        while not self._asleep.acquire(timeout=min(self._interval(), threading.TIMEOUT_MAX)):
            now = monotonic_ns()
            gone_off: list[Alarm] = [alarm for alarm in self._alarms if 0 < alarm.at_ns <= now]
            if gone_off:
                for alarm in gone_off:
                    alarm.arm(0)
                return gone_off
        return []

    def wake(self) -> None:
        with suppress(RuntimeError):  # it is awake already
            self._asleep.release()

    def drop(self, alarm: Alarm) -> None:
        if isinstance(alarm, _Deadline) and alarm in self._alarms:
            self._alarms.remove(alarm)

    def close(self) -> None:
        self._alarms.clear()

    @property
    def lost(self) -> bool:
        return False

    def renew(self) -> None:
        pass


def new_alarms(interval: Callable[[], float]) -> Alarms:
    """The best that this platform has; `interval` is in seconds, for the one that polls."""
    try:
        return KernelAlarms()
    except (OSError, AttributeError, TypeError):
        return PollingAlarms(interval)
