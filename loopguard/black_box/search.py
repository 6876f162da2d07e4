"""What processes left in a directory: those that are dead, by their locks; one that lives is left alone."""

from __future__ import annotations

import linecache
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopguard.black_box import files
from loopguard.black_box.remains import Remains, fatal_record, remains
from loopguard.record import Stall

MOST_FILES = 1000
MOST_KEPT = 100  # of those that nobody could be told of
_PATIENCE = 3
_PAUSE = 0.05  # seconds: a reader holds a lock for less


@dataclass(frozen=True, slots=True)
class Left:
    """What is in one file: of which process (its name), and what that left."""

    name: str
    remains: Remains


def read_black_box(directory: str | os.PathLike[str]) -> Iterator[Left]:
    """What the dead processes of a black box left, the oldest first. Changes nothing; files of the living are left out.

    Raises:
        OSError: there is no such directory, or it may not be read.
    """
    path = Path(directory)
    os.scandir(path).close()
    for each in files.found(path):
        file = files.open_found(each, writable=False)
        if file is None:
            continue
        try:
            if _dead(file, shared=True):
                yield Left(each.name, _read(file))
        finally:
            files.release(file)


def records_in(directory: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The same as lines of a JSONL file are: a record for each stall that a process did not survive.

    Raises:
        OSError: there is no such directory, or it may not be read.
    """
    for left in read_black_box(directory):
        yield from map(fatal_record, left.remains.stalls)


def collect(directory: Path, tell: Callable[[tuple[Stall, ...]], bool]) -> None:
    """Tell of each dead process what it left, and take its files away once `tell` says that it is told.

    Of several processes that do this at once, one tells: it has the lock meanwhile.
    """
    paths = list(files.found(directory))
    for place, path in enumerate(paths[:MOST_FILES]):
        file = files.open_found(path, writable=True)
        if file is None:
            continue
        try:
            if _dead(file, shared=False):
                left = _read(file)
                too_many = place < len(paths) - MOST_KEPT
                if not left.stalls or tell(left.stalls) or too_many:
                    files.remove(file)
        finally:
            files.release(file)


def _dead(file: files.File, shared: bool) -> bool:
    """Whether nobody has the lock; a reader may have it for a moment."""
    for attempt in range(_PATIENCE):
        if files.lock(file.fd, shared):
            return file.in_place  # else another has just told it
        if attempt + 1 < _PATIENCE:
            time.sleep(_PAUSE)
    return False


def _read(file: files.File) -> Remains:
    dump, dumped_ns = files.read(file.path.with_suffix(files.PROBE))
    return remains(files.read_all(file.fd), dump, dumped_ns, _line_of)


def _line_of(path: str, line: int, unchanged_since: float) -> str | None:
    try:
        changed = Path(path).stat().st_mtime > unchanged_since
    except (OSError, ValueError):
        return None
    return None if changed else linecache.getline(path, line)
