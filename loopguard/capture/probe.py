"""The probe: the stack of a thread that keeps the GIL, written from inside the native call that keeps it.

A POSIX timer on the CPU clock of a loop's thread sends that thread a real-time signal, and faulthandler writes the
stack, without the GIL, into a file in memory. The clock only runs while the thread computes, and whoever is served in
time arms it anew, so it goes off only inside native code that keeps the GIL. That is what makes it safe: faulthandler
may crash where it interrupts bytecode.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import re
import signal
import struct
import sys
import threading
from typing import Any, NamedTuple

from loopguard.capture.clocks import thread_clock
from loopguard.capture.small_files import read_at
from loopguard.capture.timer_spec import TimerSpec
from loopguard.clock import monotonic_ns, unix_ns

_SIGEV_THREAD_ID = 4  # linux/signal.h
# statx(2), whose struct is the same on every machine: where size, device and inode, and the time of change lie in it.
_THIS_FILE, _BASIC = 0x1000, 0x7FF  # AT_EMPTY_PATH, STATX_BASIC_STATS
_INODE, _SIZE, _CHANGED, _DEVICE = 32, 40, 112, 136
_POINTER = ctypes.sizeof(ctypes.c_void_p)
_LONGEST = 1 << 16
# Printable ASCII, and no line that no file has: what else stands there is damaged.
_FRAME = re.compile(r'  File "([ -~]*)", line ([0-9]{1,6}|\?\?\?) in ([ -~]*)')


class SeenFrame(NamedTuple):
    """One line of a dump, as faulthandler writes it: non-ASCII is escaped, long texts are cut."""

    file: str
    line: int
    function: str


class Dump(NamedTuple):
    """What the probe wrote: frames innermost first, `whole` where none was left out, and when (CLOCK_MONOTONIC)."""

    frames: tuple[SeenFrame, ...]
    whole: bool
    at_ns: int


class _Event(ctypes.Structure):
    """struct sigevent of timer_create(2), with `sigev_notify_thread_id`."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("thread_id", ctypes.c_int),
        ("pad", ctypes.c_int * 11),
    )


def new_probe(file: int | None = None) -> Probe | None:
    """The probe, where this platform has all that it needs; it writes into `file`, else into one in memory."""
    try:
        return Probe(file)
    except (OSError, AttributeError, ValueError, RuntimeError, TypeError):
        return None


class Probe:
    """The signal, the file, and what makes timers for them. One for a process. Of a `file` given it has its own number.

    Raises:
        OSError, AttributeError, ValueError, RuntimeError: there is no such thing here.
    """

    def __init__(self, file: int | None = None) -> None:
        if not getattr(sys, "_is_gil_enabled", lambda: True)():
            raise RuntimeError("without a GIL nothing keeps it")
        # PyDLL keeps the GIL during the call, which takes a microsecond.
        self._library = ctypes.PyDLL(None, use_errno=True)
        self._action = ctypes.create_string_buffer(256)  # struct sigaction begins with the handler
        self._status = ctypes.create_string_buffer(256)  # struct statx
        if file is None:
            self._file = os.memfd_create("loopguard-probe", os.MFD_CLOEXEC)
        else:
            self._file = os.dup(file)
        self._identity = self._identify()
        self.signal = self._handler = 0
        try:
            self.signal = self._free_signal()
            faulthandler.register(self.signal, self._file, all_threads=False, chain=False)
            self._handler = self._disposition(self.signal)
            if not self._handler:  # to try it now would kill the process
                raise RuntimeError("faulthandler did not take the signal")
            self._try()
        except BaseException:
            self.close()
            raise

    def timer(self, native_id: int) -> ProbeTimer:
        """A timer on the CPU clock of a thread, not armed.

        Raises:
            OSError: the system grants none.
        """
        event = _Event(signal=self.signal, notify=_SIGEV_THREAD_ID, thread_id=native_id)
        timer = ctypes.c_void_p()
        clock = ctypes.c_int(thread_clock(native_id))
        if self._library.timer_create(clock, ctypes.byref(event), ctypes.byref(timer)):
            raise OSError(ctypes.get_errno(), "timer_create")
        return ProbeTimer(self, self._library, timer)

    def is_ours(self) -> bool:
        """Whether signal and file are still what they were: a stranger's file may have the number by now."""
        return (
            self._disposition(self.signal) == self._handler and self._identify() == self._identity
        )

    def read(self) -> list[Dump]:
        """What was written since this was called last; the file is empty then."""
        # All with the GIL: this is in the midst of a look, and who gives it up beside busy code waits for long.
        size, changed_ns = self._size_and_change() if self._identify() == self._identity else (0, 0)
        if not size:
            return []
        text = read_at(self._file, min(size, _LONGEST)).decode("ascii", "replace")
        self._library.lseek(self._file, ctypes.c_long(0), os.SEEK_SET)
        self._library.ftruncate(self._file, ctypes.c_long(0))
        # The file's own time is coarse: to within a tick of the kernel.
        written_ns = changed_ns - (unix_ns() - monotonic_ns())
        return parse(text, min(written_ns, monotonic_ns()))

    def close(self) -> None:
        """Give everything back. All timers must be deleted by now.

        A signal that is still pending would kill the process where its disposition is the default: so it is ignored
        first, which discards it. Where the user has taken the signal since, theirs stays.
        """
        if self._handler:
            ours = self._disposition(self.signal) == self._handler
            theirs = self._action.raw
            faulthandler.unregister(self.signal)
            if ours:
                self._set_disposition(self.signal, 1)  # SIG_IGN
                self._set_disposition(self.signal, 0)  # SIG_DFL
            else:
                self._library.sigaction(self.signal, theirs, None)
        if self._identify() == self._identity:
            os.close(self._file)

    def _free_signal(self) -> int:
        """A real-time signal that nobody handles, ignores or blocks; from the end, since others take from the start."""
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        for number in range(int(signal.SIGRTMAX) - 1, int(signal.SIGRTMIN), -1):
            if number not in blocked and self._disposition(number) == 0:
                return number
        raise RuntimeError("no real-time signal is free")

    def _disposition(self, number: int) -> int:
        """The address of what handles a signal, as the system knows it: Python's own table knows its own only."""
        if self._library.sigaction(number, None, self._action):
            raise OSError(ctypes.get_errno(), "sigaction")
        return int.from_bytes(self._action.raw[:_POINTER], sys.byteorder)

    def _identify(self) -> bytes | None:
        """Device and inode of the file, and what else is known of it; with the GIL, which os.fstat lets go."""
        if self._library.statx(self._file, b"", _THIS_FILE, _BASIC, self._status):
            return None
        status = self._status.raw
        return status[_INODE : _INODE + 8] + status[_DEVICE : _DEVICE + 8]

    def _size_and_change(self) -> tuple[int, int]:
        """Bytes in the file, and when they were written (Unix time in ns), as it was identified last."""
        [size] = struct.unpack_from("=Q", self._status, _SIZE)
        seconds, nanoseconds = struct.unpack_from("=qI", self._status, _CHANGED)
        return size, seconds * 1_000_000_000 + nanoseconds

    def _set_disposition(self, number: int, handler: int) -> None:
        set_handler = self._library.signal
        set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
        set_handler(number, handler)

    def _try(self) -> None:
        """See that it works, on this thread: inside a native call, as when it is needed."""
        self.timer(threading.get_native_id()).delete()
        signal.pthread_kill(threading.get_ident(), self.signal)
        here = sys._getframe().f_code
        dumps = self.read()
        if not dumps or (dumps[0].frames[0].function, dumps[0].frames[0].file) != (
            here.co_name,
            shown(here.co_filename),
        ):
            raise RuntimeError("faulthandler did not write this stack")


class ProbeTimer:
    """Goes off once the thread has spent some time on a CPU unless it is armed anew before."""

    __slots__ = ("_library", "_probe", "_reference", "_spec", "_timer")

    def __init__(self, probe: Probe, library: Any, timer: ctypes.c_void_p) -> None:
        self._probe = probe
        self._library = library
        self._timer: ctypes.c_void_p | None = timer
        self._spec = TimerSpec()
        self._reference = ctypes.byref(self._spec)

    def arm(self, cpu_ns: int) -> None:
        """Go off when the thread has computed for so long from now; never once signal or file are a stranger's."""
        if self._timer is None:
            return
        if not self._probe.is_ours():
            cpu_ns = 0
        self._spec.at(cpu_ns)
        self._library.timer_settime(self._timer, 0, self._reference, None)

    def delete(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            self._library.timer_delete(timer)


def parse(text: str, at_ns: int) -> list[Dump]:
    """Dumps of faulthandler. What follows a frame that it could not read is left out."""
    dumps = []
    for block in re.split(r"^.*most recent call first.*$", text, flags=re.MULTILINE)[1:]:
        frames = []
        lines = block.strip("\n").split("\n")
        whole = True
        for line in lines:
            found = _FRAME.fullmatch(line)
            if found is None or found[2] == "???":
                whole = False
                break
            frames.append(SeenFrame(found[1], int(found[2]), found[3]))
        if frames:
            dumps.append(Dump(tuple(frames), whole, at_ns))
    return dumps


def shown(text: str) -> str:
    """A text as faulthandler writes it."""
    escaped = text[:500].encode("ascii", "backslashreplace").decode()
    return escaped if len(text) <= 500 else escaped + "..."
