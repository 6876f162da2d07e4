"""Reads records from files, in a stream and in bounded memory, and counts what it had to leave out."""

from __future__ import annotations

import gzip
import io
import json
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from loopguard.record import Stall
from loopguard.show.parse import ForeignError, NewerError, stall_from

STDIN = "-"
LONGEST_LINE = 16 * 2**20
_REMEMBERED_IDS = 300_000
_REMEMBERED_ONGOING = 2_000
_GZIP = b"\x1f\x8b"

# NaN and Infinity, which Python's own encoder writes and JSON does not know, are read as null.
decode = json.JSONDecoder(parse_constant=lambda _: None).decode


class ReadError(Exception):
    """A file that was asked for is not to be had."""


@dataclass(slots=True)
class Skipped:
    """Lines of one file that were left out for one reason; `first` is the number of the first of them."""

    file: str
    reason: str
    first: int
    lines: int = 0

    def __str__(self) -> str:
        where = f"line {self.first}" if self.lines == 1 else f"the first is line {self.first}"
        return f"{self.file}: {self.lines} left out, {self.reason} ({where})"


@dataclass(slots=True)
class LeftOut:
    """What was left out, by file and reason."""

    skipped: dict[tuple[str, str], Skipped] = field(default_factory=dict)
    repeated: int = 0

    def add(self, file: str, reason: str, line: int) -> None:
        self.skipped.setdefault((file, reason), Skipped(file, reason, line)).lines += 1

    @property
    def lines(self) -> int:
        """How many lines in all; those of a stall that was read before are none."""
        return sum(skipped.lines for skipped in self.skipped.values())


class Found:
    """A record that was read. `stall` is without its stack, `whole()` with it; `fatal`: its process did not survive it."""

    __slots__ = ("_record", "fatal", "stall")

    def __init__(self, stall: Stall, record: object) -> None:
        self.stall = stall
        self.fatal = isinstance(record, dict) and record.get("fatal") is True
        self._record = record

    def whole(self) -> Stall:
        return stall_from(self._record)


class Whole(Found):
    """A record that was kept, with its stack already."""

    __slots__ = ()

    def __init__(self, stall: Stall) -> None:
        super().__init__(stall, None)

    def whole(self) -> Stall:
        return self.stall


class Reader:
    """Iterates over the stalls in files, directories of them, and stdin (`-`), plain or gzipped.

    Each stall once: a copy is left out, and so is the early record of a stall whose final one is there. An early
    record without one comes last: that process died, or is still held. Both only as far as the memory goes: of the
    latest 300,000 stalls, and 2,000 early records. Of a directory `remains` gives what else lies there: the records of a
    black box.

    Raises:
        ReadError: at once, where a file does not exist; later, where one cannot be opened.
    """

    def __init__(
        self,
        paths: Iterable[str],
        *,
        progress: Callable[[int], object] | None = None,
        remains: Callable[[str], Iterable[object]] = lambda _: (),
    ) -> None:
        paths = list(paths)
        self.left_out = LeftOut()
        self.files = list(_files(paths))
        self._directories = [path for path in paths if path != STDIN and Path(path).is_dir()]
        self._remains = remains
        self._progress = progress
        self._ids: dict[int, None] = {}
        self._ongoing: dict[str, Stall] = {}

    @property
    def size(self) -> int:
        """Bytes in all, as far as known beforehand."""
        return sum(Path(file).stat().st_size for file in self.files if file != STDIN)

    def __iter__(self) -> Iterator[Found]:
        for file in self.files:
            yield from self._read(file)
        for directory in self._directories:
            yield from self._left_in(directory)
        yield from (Whole(stall) for stall in self._ongoing.values())

    def _left_in(self, directory: str) -> Iterator[Found]:
        for number, record in enumerate(self._remains(directory), 1):
            found = self._parsed(directory, number, record)
            if found is not None:
                yield found

    def _read(self, file: str) -> Iterator[Found]:
        number = 0
        try:
            with _opened(file, self._progress) as lines:
                for line in _lines(lines):
                    number += 1
                    found = self._found(file, number, line)
                    if found is not None:
                        yield found
        except (EOFError, gzip.BadGzipFile, zlib.error):
            self.left_out.add(file, "the compressed data breaks off or is damaged", number + 1)
        except OSError as error:
            raise ReadError(f"{file}: {error.strerror or error}") from error

    def _found(self, file: str, number: int, line: bytes | None) -> Found | None:
        if line is None:
            self.left_out.add(file, f"longer than {LONGEST_LINE // 2**20} MB", number)
            return None
        if not line or line.isspace():
            return None
        try:
            record = decode(line.decode())
        except (ValueError, RecursionError):
            self.left_out.add(file, "no JSON, or half a line", number)
            return None
        return self._parsed(file, number, record)

    def _parsed(self, file: str, number: int, record: object) -> Found | None:
        try:
            stall = stall_from(record, stack=False)
        except ForeignError:
            self.left_out.add(file, "no record of a stall", number)
        except NewerError:
            self.left_out.add(file, "of a later version of loopguard", number)
        else:
            return self._once(Found(stall, record))
        return None

    def _once(self, found: Found) -> Found | None:
        stall = found.stall
        identity = hash(stall.id)
        if identity in self._ids:
            self.left_out.repeated += not stall.ongoing
            return None
        if stall.ongoing:
            self._hold(found)
            return None
        self._ids[identity] = None
        if len(self._ids) > _REMEMBERED_IDS:
            del self._ids[next(iter(self._ids))]
        self._ongoing.pop(stall.id, None)
        return found

    def _hold(self, found: Found) -> None:
        earlier = self._ongoing.pop(found.stall.id, None)
        if earlier is not None and earlier.duration > found.stall.duration:
            self._ongoing[earlier.id] = earlier
        else:
            self._ongoing[found.stall.id] = found.whole()
        if len(self._ongoing) > _REMEMBERED_ONGOING:
            del self._ongoing[next(iter(self._ongoing))]


def _files(paths: Iterable[str]) -> Iterator[str]:
    """Each file once, also where two names lead to it; of a directory, the JSONL in it."""
    known: set[tuple[int, int]] = set()
    for path in paths:
        for file in [path] if path == STDIN else _files_at(path):
            identity = _identity(file)
            if identity is None or identity not in known:
                yield file
            if identity is not None:
                known.add(identity)


def _files_at(path: str) -> list[str]:
    try:
        status = Path(path).stat()
        if not stat.S_ISDIR(status.st_mode):
            return [path]
        return sorted(
            entry.path for entry in os.scandir(path) if ".jsonl" in entry.name and entry.is_file()
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ReadError(f"{path}: {reason}") from error


def _identity(file: str) -> tuple[int, int] | None:
    """Which file a name leads to; None for what is read only once anyway, as a pipe."""
    if file == STDIN:
        return None
    status = Path(file).stat()
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def _opened(file: str, progress: Callable[[int], object] | None) -> BinaryIO:
    source = sys.stdin.fileno() if file == STDIN else file
    raw = io.FileIO(source, closefd=file != STDIN)
    counted = io.BufferedReader(_Counted(raw, progress), 2**20)
    if counted.peek(2)[:2] == _GZIP:
        return gzip.GzipFile(fileobj=counted)  # type: ignore[return-value]  # reads lines as any other
    return counted


class _Counted(io.RawIOBase):
    """A file that tells how many bytes were read from it."""

    def __init__(self, raw: io.FileIO, progress: Callable[[int], object] | None) -> None:
        self._raw = raw
        self._progress = progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        read = self._raw.readinto(buffer)
        if self._progress and read:
            self._progress(read)
        return read

    def close(self) -> None:
        self._raw.close()
        super().close()


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Each line; None for one that is too long to be held in memory."""
    while line := file.readline(LONGEST_LINE):
        if len(line) < LONGEST_LINE or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(LONGEST_LINE)
        yield None
