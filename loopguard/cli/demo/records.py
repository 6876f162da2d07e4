"""Where the demo's records go, and those that came so far."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

from loopguard.cli.demo import DEFAULT_JSONL
from loopguard.record import Stall
from loopguard.tell.jsonl import json_line


class RecordsError(Exception):
    """The default file cannot be begun anew."""


class Records:
    """A listener that keeps every record.

    `path` is the file that loopguard is to write them to: the one that was asked for, to which it appends, or one of
    the demo's own, begun anew. None where they go to stdout: then the demo's own words go to stderr (`stage`).
    """

    def __init__(self, asked: str | None) -> None:
        self.stalls: list[Stall] = []
        self.path = (
            None if asked == "-" else Path(DEFAULT_JSONL if asked is None else asked).absolute()
        )
        self.stage: TextIO = sys.stderr if asked == "-" else sys.stdout
        if asked is None:
            _remove(Path(DEFAULT_JSONL))

    def __call__(self, stall: Stall) -> None:
        self.stalls.append(stall)
        if self.path is None:
            print(json_line(stall.to_dict()), flush=True)

    def __str__(self) -> str:
        return f"{len(self.stalls)} records in {self.path or 'stdout'}"


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise RecordsError(f"{path}: {error.strerror}; --jsonl PATH names another file") from error
