"""Files of the kernel, read without letting the GIL go: who asks for it again beside busy code waits for long."""

from __future__ import annotations

import ctypes
import os
from typing import Any


def _find() -> Any:
    try:
        library = ctypes.PyDLL(None)
        opened, read, pread, close = library.open, library.read, library.pread, library.close
    except (OSError, TypeError, AttributeError):  # Windows
        return None
    opened.argtypes, opened.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_int
    read.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
    pread.argtypes = (*read.argtypes, ctypes.c_long)
    read.restype = pread.restype = ctypes.c_ssize_t
    close.argtypes = (ctypes.c_int,)
    return opened, read, pread, close


_calls = _find()
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
_LARGEST = 2**63  # what an offset in a file must be below


def open_small(path: str) -> int | None:
    """The number of the file, opened to be read; None where it cannot be. Nobody can break it off half-way."""
    fd = -1 if _calls is None else _calls[0](path.encode(), _FLAGS)
    return fd if fd >= 0 else None


def read_at(fd: int, size: int, offset: int = 0) -> bytes:
    """What stands in an open file at `offset`, `size` bytes at most; empty where it cannot be read."""
    if _calls is None or not 0 <= offset < _LARGEST:
        return b""
    buffer = ctypes.create_string_buffer(size)
    length = _calls[2](fd, buffer, size, offset)
    return buffer.raw[: max(0, length)]


def read_small(path: str, size: int = 256) -> bytes:
    """The first `size` bytes of a file that is there at once; empty where it cannot be read.

    Only for files of /proc and of control groups: the GIL is kept meanwhile.
    """
    fd = open_small(path)
    if fd is None:
        return b""
    _, read, _, close = _calls
    try:
        buffer = ctypes.create_string_buffer(size)
        length = read(fd, buffer, size)
        return buffer.raw[: max(0, length)]
    finally:
        close(fd)


def read_memory(address: int, size: int) -> bytes:
    """Memory of this process by way of the kernel: of a bad address it gives nothing, and does not crash."""
    fd = open_small("/proc/self/mem")
    if fd is None:
        return b""
    try:
        return read_at(fd, size, address)
    finally:
        _calls[3](fd)
