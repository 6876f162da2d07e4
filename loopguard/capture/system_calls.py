"""Which system call a thread waits in, and on what (Linux; proc(5), /proc/pid/syscall)."""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath
from typing import Any

from loopguard.capture.small_files import read_memory, read_small
from loopguard.evidence import Wait

# Numbers of the calls that can wait: asm/unistd_64.h and asm-generic/unistd.h.
_X86_64 = {
    0: "read", 1: "write", 2: "open", 3: "close", 4: "stat", 6: "lstat", 7: "poll", 17: "pread64", 18: "pwrite64",
    19: "readv", 20: "writev", 21: "access", 23: "select", 26: "msync", 34: "pause", 35: "nanosleep", 40: "sendfile",
    42: "connect", 43: "accept", 44: "sendto", 45: "recvfrom", 46: "sendmsg", 47: "recvmsg", 61: "wait4", 65: "semop",
    69: "msgsnd", 70: "msgrcv", 72: "fcntl", 73: "flock", 74: "fsync", 75: "fdatasync", 77: "ftruncate", 78: "getdents",
    82: "rename", 83: "mkdir", 84: "rmdir", 87: "unlink", 128: "rt_sigtimedwait", 130: "rt_sigsuspend", 162: "sync",
    202: "futex", 208: "io_getevents", 217: "getdents64", 219: "restart_syscall", 220: "semtimedop",
    230: "clock_nanosleep", 232: "epoll_wait", 242: "mq_timedsend", 243: "mq_timedreceive", 247: "waitid",
    257: "openat", 262: "newfstatat", 263: "unlinkat", 264: "renameat", 270: "pselect6", 271: "ppoll", 275: "splice",
    277: "sync_file_range", 281: "epoll_pwait", 285: "fallocate", 288: "accept4", 295: "preadv", 296: "pwritev",
    299: "recvmmsg", 306: "syncfs", 307: "sendmmsg", 316: "renameat2", 318: "getrandom", 326: "copy_file_range",
    327: "preadv2", 328: "pwritev2", 332: "statx", 437: "openat2", 441: "epoll_pwait2", 449: "futex_waitv",
}  # fmt: skip
_AARCH64 = {
    4: "io_getevents", 22: "epoll_pwait", 25: "fcntl", 32: "flock", 35: "unlinkat", 38: "renameat", 46: "ftruncate",
    47: "fallocate", 56: "openat", 57: "close", 61: "getdents64", 63: "read", 64: "write", 65: "readv", 66: "writev",
    67: "pread64", 68: "pwrite64", 69: "preadv", 70: "pwritev", 71: "sendfile", 72: "pselect6", 73: "ppoll",
    76: "splice", 79: "newfstatat", 81: "sync", 82: "fsync", 83: "fdatasync", 84: "sync_file_range", 95: "waitid",
    98: "futex", 101: "nanosleep", 115: "clock_nanosleep", 128: "restart_syscall", 133: "rt_sigsuspend",
    137: "rt_sigtimedwait", 182: "mq_timedsend", 183: "mq_timedreceive", 188: "msgrcv", 189: "msgsnd",
    192: "semtimedop", 193: "semop", 202: "accept", 203: "connect", 206: "sendto", 207: "recvfrom", 211: "sendmsg",
    212: "recvmsg", 227: "msync", 242: "accept4", 243: "recvmmsg", 260: "wait4", 267: "syncfs", 269: "sendmmsg",
    276: "renameat2", 278: "getrandom", 285: "copy_file_range", 286: "preadv2", 287: "pwritev2", 291: "statx",
    437: "openat2", 441: "epoll_pwait2", 449: "futex_waitv",
}  # fmt: skip
_BY_MACHINE = {"x86_64": _X86_64, "aarch64": _AARCH64}
# A process of 32 bits has other numbers.
_NAMES = _BY_MACHINE.get(platform.machine(), {}) if sys.maxsize > 2**32 else {}

_ON_FIRST_ARGUMENT = {
    "read", "write", "pread64", "pwrite64", "readv", "writev", "preadv", "pwritev", "preadv2", "pwritev2", "accept",
    "accept4", "recvfrom", "sendmsg", "recvmsg", "sendmmsg", "recvmmsg", "fcntl", "flock", "fsync", "fdatasync",
    "syncfs", "sync_file_range", "ftruncate", "fallocate", "sendfile", "splice", "getdents", "getdents64",
    "copy_file_range",
}  # fmt: skip
_ON_PATH = {"open", "stat", "lstat", "access", "rename", "mkdir", "rmdir", "unlink"}
_ON_PATH_IN_DIRECTORY = {"openat", "openat2", "newfstatat", "statx", "unlinkat", "renameat", "renameat2"}  # fmt: skip
_AT_CWD = 2**32 - 100  # AT_FDCWD, fcntl.h
_LARGEST_SET = 1024  # FD_SETSIZE
_MOST_POLLED = 64  # more are not looked at
_LONGEST_PATH = 4096  # PATH_MAX
_LONGEST_ADDRESS = 128  # struct sockaddr_storage
_P_PIDFD = 3  # waitid(2); os.P_PIDFD is there on Linux alone
# futex(2): FUTEX_WAIT and FUTEX_WAIT_BITSET, FUTEX_PRIVATE_FLAG, FUTEX_CLOCK_REALTIME.
_FUTEX_WAITS = {wait | private | clock for wait in (0, 9) for private in (0, 128) for clock in (0, 256)}  # fmt: skip
_MOST_FILES = 2**20
_CLOCKS = 16  # MAX_CLOCKS, linux/time.h


def waiting_in(native_id: int) -> Wait | None:
    """The system call that a thread of this process waits in; None where it runs, or where it cannot be known."""
    call = parse(read_small(f"/proc/self/task/{native_id}/syscall"))
    if call is None:
        return None
    number, arguments = call
    name = _NAMES.get(number)
    if name == "restart_syscall":
        name = _restarted(arguments)
    return None if name is None else Wait(name, _target(name, arguments))


def parse(line: bytes) -> tuple[int, list[int]] | None:
    """The number and the six arguments of a call; None where the thread runs, or is stopped outside of any."""
    words = line.split()
    if len(words) < 7 or not words[0].isdigit():
        return None
    try:
        return int(words[0]), [int(word, 16) for word in words[1:7]]
    except ValueError:
        return None


def futex_of(native_id: int) -> int | None:
    """The address that a thread of this process waits on in a futex; 0 where it does not, None where it runs."""
    line = read_small(f"/proc/self/task/{native_id}/syscall")
    if line.startswith(b"running"):
        return None
    call = parse(line)
    return call[1][0] if call is not None and _NAMES.get(call[0]) == "futex" else 0


def works(native_id: int) -> bool:
    """Whether this system shows the calls of a thread."""
    return bool(read_small(f"/proc/self/task/{native_id}/syscall")) and bool(_NAMES)


def stopped(native_id: int) -> bool:
    """Whether a thread of this process is stopped, alone, by a debugger: with all others it could not be asked."""
    state = read_small(f"/proc/self/task/{native_id}/stat").rpartition(b")")[2].split()[:1]
    return state in ([b"T"], [b"t"])


def _restarted(arguments: list[int]) -> str:
    """What the kernel goes on with after a stop, where that had a relative time-out; its arguments are the same.

    Those are poll, futex, nanosleep and clock_nanosleep (restart_syscall(2)), and each has its own first two.
    """
    first, second = arguments[:2]
    if first < _CLOCKS:
        return "clock_nanosleep"
    if second in _FUTEX_WAITS and second:
        return "futex"
    if 0 < second <= _MOST_FILES:
        return "poll"
    return "nanosleep" if second else "restart_syscall"


def _target(name: str, arguments: list[int]) -> str:
    """What the call waits on, in words; empty where that is unknown. The process goes on meanwhile: all may fail."""
    try:
        if name in _ON_FIRST_ARGUMENT:
            return _descriptor(arguments[0])
        if name in _ON_PATH:
            return _path(arguments[0])
        if name in _ON_PATH_IN_DIRECTORY:
            return _path_in(arguments[0], arguments[1])
        find = _FINDERS.get(name)
        return "" if find is None else find(arguments)
    except (OSError, OverflowError, ValueError, IndexError, struct.error):
        return ""


def _descriptor(fd: int) -> str:
    shown = str(Path(f"/proc/self/fd/{fd}").readlink())
    if shown.startswith("socket:"):
        return _socket(fd)
    if shown.startswith("/"):
        return shown
    kind, _, name = shown.partition(":")
    if kind == "anon_inode":
        kind = name.strip("[]")
    return _child_of(fd) if kind == "pidfd" else kind


def _child_of(fd: int) -> str:
    """Whom a pidfd is of."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        pid = next((int(line.split()[1]) for line in file if line.startswith("Pid:")), -1)
    return f"pid {pid}" if pid > 0 else "pidfd"


def _socket(fd: int) -> str:
    peer = _peer(fd)
    return f"{_kind(fd)} {address_of(peer)}".rstrip()


def _find_library() -> Any:
    """The C library, by which a socket is asked for its peer: Python's own way needs a copy of the descriptor, and
    that would outlive a socket closed meanwhile. PyDLL keeps the GIL; neither call waits."""
    try:
        library = ctypes.PyDLL(None, use_errno=True)
        return library if hasattr(library, "getpeername") else None
    except (OSError, TypeError, AttributeError):  # Windows
        return None


_library = _find_library()


def _peer(fd: int) -> bytes:
    """Its address as the kernel has it; empty where it has none."""
    data = ctypes.create_string_buffer(_LONGEST_ADDRESS)
    size = ctypes.c_uint32(_LONGEST_ADDRESS)
    if _library.getpeername(fd, data, ctypes.byref(size)):
        return b""
    return data.raw[: size.value]


def _option(fd: int, option: int) -> int:
    value, size = ctypes.c_int(-1), ctypes.c_uint32(ctypes.sizeof(ctypes.c_int))
    if _library.getsockopt(fd, socket.SOL_SOCKET, option, ctypes.byref(value), ctypes.byref(size)):
        raise OSError(ctypes.get_errno(), "getsockopt")
    return value.value


def _kind(fd: int) -> str:
    family = _option(fd, socket.SO_DOMAIN)
    if family == socket.AF_UNIX:
        return "unix"
    if family not in (socket.AF_INET, socket.AF_INET6):
        return "socket"
    kinds = {int(socket.SOCK_STREAM): "tcp", int(socket.SOCK_DGRAM): "udp"}
    return kinds.get(_option(fd, socket.SO_TYPE), "ip")


def address_of(data: bytes) -> str:
    """A struct sockaddr in words, as the family of it is written; empty where it names nobody.

    The path of a Unix socket is whole: to be shortened where it is told. An abstract one begins with `@`.
    """
    if len(data) < 2:
        return ""
    family = struct.unpack_from("=H", data)[0]
    if family == socket.AF_UNIX:
        return _unix_name(data[2:])
    if family == socket.AF_INET and len(data) >= 8:
        return f"{socket.inet_ntop(family, data[4:8])}:{struct.unpack_from('!H', data, 2)[0]}"
    if family == socket.AF_INET6 and len(data) >= 24:
        return f"[{socket.inet_ntop(family, data[8:24])}]:{struct.unpack_from('!H', data, 2)[0]}"
    return ""


def _unix_name(name: bytes) -> str:
    if not name.startswith(b"\0"):
        return _printable(os.fsdecode(name.partition(b"\0")[0]))
    abstract = name[1:].decode(errors="backslashreplace")
    return _printable(f"@{abstract}") if abstract else ""


def _printable(name: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)


def _send_to(arguments: list[int]) -> str:
    """The peer, or where there is none whom this one is for."""
    shown = _descriptor(arguments[0])
    if arguments[4] and not _peer(arguments[0]):
        size = min(arguments[5], _LONGEST_ADDRESS)
        shown = f"{shown} {address_of(_memory(arguments[4], size))}".rstrip()
    return shown


def _connect(arguments: list[int]) -> str:
    size = min(arguments[2] & 0xFFFFFFFF, _LONGEST_ADDRESS)
    return f"{_kind(arguments[0])} {address_of(_memory(arguments[1], size))}".rstrip()


def _poll(arguments: list[int]) -> str:
    size = struct.calcsize("=ihh")
    count = min(max(arguments[1] & 0xFFFFFFFF, 1), _MOST_POLLED)
    polled = struct.iter_unpack("=ihh", _memory(arguments[0], count * size))
    return _first_of(fd for fd, _, _ in polled if fd >= 0)


def _select(arguments: list[int]) -> str:
    size = (min(arguments[0] & 0xFFFFFFFF, _LARGEST_SET) + 7) // 8
    fds: list[int] = []
    for pointer in arguments[1:4]:
        bits = int.from_bytes(_memory(pointer, size), "little") if pointer else 0
        fds += [fd for fd in range(bits.bit_length()) if bits >> fd & 1]
    return _first_of(fds[:_MOST_POLLED])


def _epoll(arguments: list[int]) -> str:
    with open(f"/proc/self/fdinfo/{arguments[0]}", "rb") as file:
        fds = [int(line.split()[1]) for line in file if line.startswith(b"tfd:")]
    # They are listed by where they lie in memory: without a peer, none of them is the first.
    return _first_of(fds[:_MOST_POLLED]) if len(fds) == 1 else _first_peer(fds[:_MOST_POLLED])


def _first_of(fds: Iterable[int]) -> str:
    """The first that has a peer, for the others are there to wake it up; else the first."""
    all_of_them = list(fds)
    return _first_peer(all_of_them) or (_descriptor(all_of_them[0]) if all_of_them else "")


def _first_peer(fds: list[int]) -> str:
    for fd in fds:
        if address_of(_peer(fd)):
            return _socket(fd)
    return ""


def _path(address: int) -> str:
    """The path that a call was given: whole, to be shortened where it is told."""
    path = _string(address)
    return _joined(str(Path.cwd()), path) if path else ""


def _path_in(directory: int, address: int) -> str:
    path = _string(address)
    if path.startswith("/") or directory & 0xFFFFFFFF == _AT_CWD:
        return _path(address)
    return _joined(_descriptor(directory), path)


def _joined(directory: str, path: str) -> str:
    """Without `..`, behind which a path would seem to lie where it does not."""
    return _printable(os.path.normpath(PurePath(directory, path)))


def _child(arguments: list[int]) -> str:
    pid = arguments[0] & 0xFFFFFFFF
    return f"pid {pid}" if 0 < pid < 1 << 31 else ""


def _child_by_id(arguments: list[int]) -> str:
    kind = arguments[0] & 0xFFFFFFFF
    if kind == _P_PIDFD:
        return _child_of(arguments[1] & 0xFFFFFFFF)
    return _child(arguments[1:]) if kind == os.P_PID else ""


_FINDERS: dict[str, Callable[[list[int]], str]] = {
    "connect": _connect,
    "sendto": _send_to,
    "poll": _poll,
    "ppoll": _poll,
    "select": _select,
    "pselect6": _select,
    "epoll_wait": _epoll,
    "epoll_pwait": _epoll,
    "epoll_pwait2": _epoll,
    "wait4": _child,
    "waitid": _child_by_id,
}


def _memory(address: int, size: int) -> bytes:
    """Memory of this process by way of the kernel: a stale pointer is an error here, not a crash."""
    data = read_memory(address, size)
    if len(data) < size:
        raise ValueError("unreadable")
    return data


def _string(address: int) -> str:
    """What is there up to a zero; the end of readable memory may come before the end of the longest string."""
    text, zero, _ = read_memory(address, _LONGEST_PATH).partition(b"\0")
    if not zero:
        raise ValueError("unreadable")
    return os.fsdecode(text)
