"""Which system call a thread waits in, and on what (Linux; proc(5), /proc/pid/syscall)."""

from __future__ import annotations

import os
import platform
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from loopguard.capture.small_files import read_small
from loopguard.evidence import Wait

# Numbers of the calls that can wait: asm/unistd_64.h and asm-generic/unistd.h.
_X86_64 = {
    0: "read", 1: "write", 2: "open", 3: "close", 7: "poll", 17: "pread64", 18: "pwrite64", 19: "readv", 20: "writev",
    23: "select", 34: "pause", 35: "nanosleep", 40: "sendfile", 42: "connect", 43: "accept", 44: "sendto",
    45: "recvfrom", 46: "sendmsg", 47: "recvmsg", 61: "wait4", 65: "semop", 70: "msgrcv", 72: "fcntl", 73: "flock",
    74: "fsync", 75: "fdatasync", 128: "rt_sigtimedwait", 202: "futex", 217: "getdents64", 220: "semtimedop",
    230: "clock_nanosleep", 232: "epoll_wait", 243: "mq_timedreceive", 247: "waitid", 257: "openat", 270: "pselect6",
    271: "ppoll", 281: "epoll_pwait", 288: "accept4", 318: "getrandom", 326: "copy_file_range", 441: "epoll_pwait2",
}  # fmt: skip
_AARCH64 = {
    22: "epoll_pwait", 25: "fcntl", 32: "flock", 56: "openat", 57: "close", 61: "getdents64", 63: "read", 64: "write",
    65: "readv", 66: "writev", 67: "pread64", 68: "pwrite64", 71: "sendfile", 72: "pselect6", 73: "ppoll",
    82: "fsync", 83: "fdatasync", 95: "waitid", 98: "futex", 101: "nanosleep", 115: "clock_nanosleep",
    137: "rt_sigtimedwait", 183: "mq_timedreceive", 188: "msgrcv", 192: "semtimedop", 193: "semop", 202: "accept",
    203: "connect", 206: "sendto", 207: "recvfrom", 211: "sendmsg", 212: "recvmsg", 242: "accept4", 260: "wait4",
    278: "getrandom", 285: "copy_file_range", 441: "epoll_pwait2",
}  # fmt: skip
_NAMES = {"x86_64": _X86_64, "aarch64": _AARCH64}.get(platform.machine(), {})

_ON_FIRST_ARGUMENT = {
    "read", "write", "pread64", "pwrite64", "readv", "writev", "accept", "accept4", "sendto", "recvfrom", "sendmsg",
    "recvmsg", "fcntl", "flock", "fsync", "fdatasync", "sendfile", "getdents64", "copy_file_range",
}  # fmt: skip
_LARGEST_SET = 1024  # FD_SETSIZE


def waiting_in(native_id: int) -> Wait | None:
    """The system call that a thread of this process waits in; None where it runs, or where it cannot be known."""
    words = read_small(f"/proc/self/task/{native_id}/syscall").split()
    name = _NAMES.get(int(words[0])) if words and words[0].isdigit() else None
    if name is None:
        return None
    return Wait(name, _target(name, [int(word, 16) for word in words[1:7]]))


def works(native_id: int) -> bool:
    """Whether this system shows the calls of a thread."""
    return bool(read_small(f"/proc/self/task/{native_id}/syscall")) and bool(_NAMES)


def _target(name: str, arguments: list[int]) -> str:
    """What the call waits on, in words; empty where that is unknown. The process goes on meanwhile: all may fail."""
    try:
        if name in _ON_FIRST_ARGUMENT:
            return _descriptor(arguments[0])
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
    return shown.partition(":")[0]


def _socket(fd: int) -> str:
    with socket.socket(fileno=os.dup(fd)) as copy:
        kind = _kind(copy.family, copy.type)
        try:
            peer = copy.getpeername()
        except OSError:
            return kind
        return f"{kind} {_address(peer)}".rstrip()


def _kind(family: int, type_: int) -> str:
    if family == socket.AF_UNIX:
        return "unix"
    if family in (socket.AF_INET, socket.AF_INET6):
        return {socket.SOCK_STREAM: "tcp", socket.SOCK_DGRAM: "udp"}.get(
            socket.SocketKind(type_), "ip"
        )
    return "socket"


def _address(peer: object) -> str:
    if isinstance(peer, tuple) and len(peer) >= 2:
        host, port = peer[0], peer[1]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return ""


def _connect(arguments: list[int]) -> str:
    data = _memory(arguments[1], 28)
    family = struct.unpack_from("=H", data)[0]
    with socket.socket(fileno=os.dup(arguments[0])) as copy:
        kind = _kind(family, copy.type)
    port = struct.unpack_from("!H", data, 2)[0]
    if family == socket.AF_INET:
        return f"{kind} {socket.inet_ntop(family, data[4:8])}:{port}"
    if family == socket.AF_INET6:
        return f"{kind} [{socket.inet_ntop(family, data[8:24])}]:{port}"
    return kind


def _poll(arguments: list[int]) -> str:
    return _descriptor(struct.unpack("=i", _memory(arguments[0], 4))[0])


def _select(arguments: list[int]) -> str:
    size = (min(arguments[0] & 0xFFFFFFFF, _LARGEST_SET) + 7) // 8
    for pointer in arguments[1:4]:
        bits = int.from_bytes(_memory(pointer, size), "little") if pointer else 0
        if bits:
            return _descriptor((bits & -bits).bit_length() - 1)
    return ""


def _epoll(arguments: list[int]) -> str:
    with open(f"/proc/self/fdinfo/{arguments[0]}", encoding="ascii") as file:
        watched = [int(line.split()[1]) for line in file if line.startswith("tfd:")]
    return _descriptor(watched[0]) if len(watched) == 1 else ""


def _child(arguments: list[int]) -> str:
    pid = arguments[0] & 0xFFFFFFFF
    return f"pid {pid}" if 0 < pid < 1 << 31 else ""


def _child_by_id(arguments: list[int]) -> str:
    return _child(arguments[1:]) if arguments[0] == os.P_PID else ""


_FINDERS: dict[str, Callable[[list[int]], str]] = {
    "connect": _connect,
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
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        data = os.pread(memory.fileno(), size, address)
    if len(data) < size:
        raise ValueError("unreadable")
    return data
