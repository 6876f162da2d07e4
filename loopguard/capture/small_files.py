"""Files of the kernel, read without letting the GIL go: who asks for it again beside busy code waits for long."""

from __future__ import annotations

import ctypes
import os
from typing import Any


def _find() -> Any:
    try:
        library = ctypes.PyDLL(None)
        opened, pread, close = library.open, library.pread, library.close
    except (OSError, TypeError, AttributeError):  # Windows
        return None
    opened.argtypes, opened.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_int
    pread.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long)
    pread.restype = ctypes.c_ssize_t
    close.argtypes = (ctypes.c_int,)
    return opened, pread, close


_calls = _find()
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
_LARGEST = 2**63  # what an offset of a file must be below


def open_small(path: str) -> int | None:
    """The number of the file, opened to be read; None where it cannot be. Nobody can break it off half-way."""
    fd = -1 if _calls is None else _calls[0](path.encode(), _FLAGS)
    return fd if fd >= 0 else None


def read_open(fd: int, size: int, offset: int = 0) -> bytes:
    """What stands in an open file of the kernel at `offset`, `size` bytes at most; empty where it cannot be read."""
    if _calls is None or not 0 <= offset < _LARGEST:
        return b""
    buffer = ctypes.create_string_buffer(size)
    length = _calls[1](fd, buffer, size, offset)
    return buffer.raw[: max(0, length)]


def read_small(path: str, size: int = 256, offset: int = 0) -> bytes:
    """The same of a file that is there at once. Only for files of /proc and of control groups."""
    fd = open_small(path)
    if fd is None:
        return b""
    try:
        return read_open(fd, size, offset)
    finally:
        _calls[2](fd)


def read_memory(address: int, size: int) -> bytes:
    """Memory of this process by way of the kernel: of a bad address it gives nothing, and does not crash."""
    return read_small("/proc/self/mem", size, address)
