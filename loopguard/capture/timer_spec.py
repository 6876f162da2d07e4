"""When a timer of the kernel is to go off, as both kinds of them want to be told."""

from __future__ import annotations

import ctypes


class TimerSpec(ctypes.Structure):
    """struct itimerspec of timerfd_settime(2) and timer_settime(2), for timers that go off once."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("s", ctypes.c_long),
        ("ns", ctypes.c_long),
    )

    def at(self, time_ns: int) -> None:
        self.s, self.ns = divmod(time_ns, 1_000_000_000)
