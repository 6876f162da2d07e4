"""Each kind of evidence, tried here and now: what it is for, and why it is not to be had."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loopguard.black_box import files
from loopguard.capture import iteration, system_calls
from loopguard.capture.clocks import run_delay_works, thread_cpu_ns, thread_cpu_works
from loopguard.capture.contexts import ContextReader
from loopguard.capture.probe import Probe
from loopguard.watch.timer import KernelAlarms


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of evidence. `name` is its name in the event `event_loop.guard`; `missing` is None where it is to be had."""

    name: str
    tells: str
    missing: str | None


def kinds(black_box: Path | None = None) -> list[Kind]:
    """All kinds; the black box is tried in the directory that is meant for it, else in a temporary one."""
    return [
        Kind(name, tells, _why_not(attempt))
        for name, tells, attempt in (
            ("kernel_timer", "the watchdog sleeps in the kernel while the loop is on time", _timer),
            ("thread_cpu", "whether a thread computed or waited", _thread_cpu),
            ("run_delay", "whether the system kept a thread from running", _run_delay),
            ("system_calls", "which system call a thread waited in, and on what", _system_calls),
            ("contexts", "the request and the span of callbacks that have no task", _contexts),
            ("probe", "the line of native code that keeps the GIL", _probe),
            ("uvloop", "when an iteration of uvloop began", _uvloop),
            (
                "black_box",
                "the stall that a process did not survive",
                lambda: _black_box(black_box),
            ),
        )
    ]


class _MissingError(Exception):
    """Why a kind of evidence is not to be had."""


def _why_not(attempt: Callable[[], object]) -> str | None:
    try:
        attempt()
    except _MissingError as why:
        return str(why)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}"
    except (AttributeError, ImportError, RuntimeError, TypeError, ValueError) as error:
        return f"this platform has it not: {error}"
    return None


def _timer() -> None:
    KernelAlarms().close()


def _thread_cpu() -> None:
    if not thread_cpu_works():
        asked = thread_cpu_ns(threading.get_native_id())
        raise _MissingError(
            "the clock of a thread cannot be read from outside"
            if asked is None
            else "the clock of a thread is not what that thread itself reads"
        )


def _run_delay() -> None:
    native_id = threading.get_native_id()
    Path(f"/proc/self/task/{native_id}/schedstat").read_bytes()
    if not run_delay_works(native_id):
        raise _MissingError("/proc/self/task/…/schedstat does not tell it")


def _system_calls() -> None:
    native_id = threading.get_native_id()
    Path(f"/proc/self/task/{native_id}/syscall").read_bytes()
    if not system_calls.works(native_id):
        raise _MissingError(f"the numbers of system calls are not known for {platform.machine()}")


def _contexts() -> None:
    if not ContextReader().reads_threads:
        raise _MissingError(
            "without a GIL another thread's state cannot be read safely"
            if sysconfig.get_config_var("Py_GIL_DISABLED")
            else f"it is not to be found in the thread state of this {sys.implementation.name}"
        )


def _probe() -> None:
    Probe().close()


def _uvloop() -> None:
    if importlib.util.find_spec("uvloop") is None:
        raise _MissingError("it is not installed")
    if iteration.find_layout() is None:
        raise _MissingError("its memory is laid out in an unknown way")


def _black_box(directory: Path | None) -> None:
    if directory is None:
        with tempfile.TemporaryDirectory() as temporary:
            _black_box(Path(temporary))
        return
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise _MissingError(f"{directory}: cannot be read and written")
    made, dump = files.make(directory)
    dump.close()
    files.remove(made)
