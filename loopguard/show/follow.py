"""Follows files of records that grow, are rotated, truncated, removed, or appear later."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from loopguard.record import Stall
from loopguard.show.parse import ForeignError, NewerError, stall_from
from loopguard.show.read import LONGEST_LINE, STDIN, decode

# What is read of a file that is there already: the latest of it.
TAIL = 2**20
_AT_ONCE = 2**20


class Follower:
    """Gives the records that were added since it was last asked. For one thread only.

    Of a directory, the JSONL in it is followed. A name that leads to nothing yet is waited for.
    """

    def __init__(self, paths: Iterable[str], *, tail: int = TAIL) -> None:
        self._paths = list(paths)
        self._tail = tail
        self._files: dict[str, _File] = {}
        self._begun = False
        self.left_out = 0

    @property
    def files(self) -> int:
        """How many are there."""
        return sum(file.open for file in self._files.values())

    def poll(self) -> list[Stall]:
        """What came, in the order of the files; it never waits."""
        for path in self._names():
            if path not in self._files:
                # What appears later is new as a whole.
                self._files[path] = _File(path, 0 if self._begun else self._tail)
        self._begun = True
        return [
            stall
            for file in self._files.values()
            for line in file.lines()
            if (stall := self._parsed(line)) is not None
        ]

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _names(self) -> Iterator[str]:
        for path in self._paths:
            if path != STDIN and Path(path).is_dir():
                with contextlib.suppress(OSError):
                    yield from sorted(
                        entry.path for entry in os.scandir(path) if entry.name.endswith(".jsonl")
                    )
            else:
                yield path

    def _parsed(self, line: bytes) -> Stall | None:
        if not line.strip():
            return None
        try:
            return stall_from(decode(line.decode()))
        except (ForeignError, NewerError, ValueError, RecursionError):
            self.left_out += 1
            return None


class _File:
    """One name, and the file that it leads to now."""

    def __init__(self, path: str, tail: int) -> None:
        self._path = path
        self._tail = tail
        self._fd: int | None = None
        self._half = b""
        self._skipping = False

    @property
    def open(self) -> bool:
        return self._fd is not None

    def lines(self) -> Iterator[bytes]:
        """Whole lines that were added; half a line is kept until its end comes."""
        if self._fd is None:
            self._open()
        if self._fd is None:
            return
        self._rewind_if_truncated()
        yield from self._read()
        if self._path != STDIN and self._is_another_file():
            # What was written to the old one between the last look and its renaming.
            yield from self._read()
            self.close()
            self._tail = 0
            self._open()
            yield from self._read()

    def close(self) -> None:
        if self._fd is not None and self._path != STDIN:
            os.close(self._fd)
        self._fd, self._half, self._skipping = None, b"", False

    def _open(self) -> None:
        if self._path == STDIN:
            self._fd = 0
            os.set_blocking(0, False)
            return
        try:
            self._fd = os.open(self._path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except (OSError, ValueError):
            return
        size = os.fstat(self._fd).st_size
        if size > self._tail > 0:
            os.lseek(self._fd, size - self._tail, os.SEEK_SET)
            self._skipping = True  # it begins in the middle of a line
        elif self._tail == 0:
            self._skipping = False

    def _read(self) -> Iterator[bytes]:
        while self._fd is not None and (read := self._chunk(self._fd)):
            *whole, self._half = (self._half + read).split(b"\n")
            for line in whole:
                if not self._skipping:
                    yield line
                self._skipping = False
            if len(self._half) > LONGEST_LINE:
                self._half, self._skipping = b"", True

    def _chunk(self, fd: int) -> bytes:
        try:
            return os.read(fd, _AT_ONCE)
        except OSError:  # nothing there yet; or a directory, or a disk that failed
            return b""

    def _rewind_if_truncated(self) -> None:
        assert self._fd is not None
        with contextlib.suppress(OSError):  # a pipe has no place
            if os.fstat(self._fd).st_size < os.lseek(self._fd, 0, os.SEEK_CUR):
                os.lseek(self._fd, 0, os.SEEK_SET)
                self._half, self._skipping = b"", False

    def _is_another_file(self) -> bool:
        assert self._fd is not None
        ours = os.fstat(self._fd)
        try:
            there = Path(self._path).stat()
        except OSError:
            return True  # removed: what comes next under this name is new
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)
