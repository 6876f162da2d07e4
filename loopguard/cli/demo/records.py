"""Where the demo's records go, and those that came so far."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TextIO

from loopguard.cli import output
from loopguard.cli.demo import DEFAULT_JSONL
from loopguard.record import Stall
from loopguard.show.choose import Choice
from loopguard.show.page import report_page
from loopguard.show.read import Reader, ReadError
from loopguard.show.summary import summarize
from loopguard.tell.jsonl import json_line
from loopguard.tell.printable import printable

TITLE = "loopguard demo"


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
        self._own = asked is None
        self.stage: TextIO = sys.stderr if asked == "-" else sys.stdout
        if asked is None:
            _remove(Path(DEFAULT_JSONL))

    def __call__(self, stall: Stall) -> None:
        self.stalls.append(stall)
        if self.path is None:
            print(json_line(stall.to_dict()), flush=True)

    def write_page(self, trace_url: str | None) -> str:
        """Write the report of the file beside it, and say where. A page of that name stays, but for the demo's own.

        For records that go to a file.
        """
        assert self.path
        page = self.path.with_suffix(".html")
        try:
            reader = Reader([str(self.path)])
            summary = summarize(reader, Choice())
            content = report_page(
                summary, reader.left_out, title=TITLE, written_at=time.time(), trace_url=trace_url
            )
            output.write(content, str(page), force=self._own)
        except (ReadError, output.OutputError) as error:
            return f"No report page: {printable(str(error))}"
        return f"Their report: {printable(page.as_uri())}"

    def __str__(self) -> str:
        return f"{len(self.stalls)} stalls in {self.path or 'stdout'}"


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise RecordsError(f"{path}: {error.strerror}; --jsonl PATH names another file") from error
