"""The JSONL file: every record as one JSON object on a line of its own, appended."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loopguard.tell.report import Report

# O_CLOEXEC is not named: `os.open` sets it on every system. O_BINARY keeps Windows from writing "\r\n".
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
_MODE = 0o600


def json_line(record: Mapping[str, Any]) -> str:
    """The record as JSON in plain ASCII, without a line break; a float that is no finite number becomes null."""
    return json.dumps(_finite(record), allow_nan=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


class JsonLines:
    """A sink that appends each record to a file, which any number of processes may share.

    A line goes out in a single `write` to a file in append mode, so lines of several processes never mix (as POSIX
    has it; Windows promises less). Nothing is kept in this process's memory: what was written survives the death
    of the process at any later moment, but not a loss of power, for it is not synced to the disk.

    A file that was rotated away or removed is created anew. For one thread only.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._path = Path(path)
        self._sleep = sleep
        self._fd: int | None = None
        self._file: tuple[int, int] | None = None
        self._midline = False

    def __call__(self, report: Report) -> None:
        """Append the report's record.

        Raises:
            OSError: the file cannot be opened or written, as on a full disk.
        """
        record = report.stall.to_dict()
        if report.fatal:
            record["fatal"] = True
        self._append(self._current_fd(), json_line(record).encode() + b"\n")

    def close(self) -> None:
        """Close the file; the next record opens it again."""
        fd, self._fd = self._fd, None
        if fd is not None and _identity_of_fd(fd) == self._file:
            os.close(fd)

    def _append(self, fd: int, line: bytes) -> None:
        """Write all of the line. One that broke off, as when the disk filled up, is ended before the next."""
        rest = memoryview(b"\n" + line if self._midline else line)
        while rest:
            written = os.write(fd, rest)
            self._midline = written < len(rest)
            rest = rest[written:]

    def _current_fd(self) -> int:
        if self._fd is not None:
            # Both are compared: the path may lead to another file by now, and the number to another one too, where
            # the application closed all descriptors (as a daemon does). That one is not ours to write or to close.
            if _identity_of_path(self._path) == _identity_of_fd(self._fd) == self._file:
                return self._fd
            self.close()
        self._fd = os.open(self._path, _FLAGS, _MODE)
        self._file = _identity_of_fd(self._fd)
        self._midline = self._is_half_written()
        return self._fd

    def _is_half_written(self) -> bool:
        """Whether the file ends in a line that nobody will finish: of a process that was killed, or a full disk.

        Looks twice: a file grows page by page under a process that is writing this very moment.
        """
        size = _size_in_midline(self._path)
        if size is None:
            return False
        self._sleep(0.02)
        return _size_in_midline(self._path) == size


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _identity_of_path(path: Path) -> tuple[int, int] | None:
    try:
        return _identity(path.stat())
    except OSError:
        return None


def _identity_of_fd(fd: int) -> tuple[int, int] | None:
    try:
        return _identity(os.fstat(fd))
    except OSError:
        return None


def _size_in_midline(path: Path) -> int | None:
    """The file's size, if it ends in the middle of a line."""
    try:
        if path.stat().st_size == 0:  # as that of a pipe and of a device always is
            return None
        with path.open("rb") as file:
            size = file.seek(-1, os.SEEK_END) + 1
            return None if file.read(1) == b"\n" else size
    except OSError:
        # It may be ours to write and not to read: then the next line takes its chance.
        return None
