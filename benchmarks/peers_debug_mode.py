"""asyncio's debug mode, which warns of each handle that takes 0.1 s."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from benchmarks.peers_told import Told
from tests.corpus import session

_TOOK = re.compile(r"took ([\d.]+) seconds")
_PLACE = re.compile(r"([^\s'(]+\.py):(\d+)")


class Peer(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self._records: list[logging.LogRecord] = []
        logging.getLogger("asyncio").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)

    def install(self, _app: FastAPI) -> None:
        pass

    @asynccontextmanager
    async def on_loop(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        loop.set_debug(True)
        yield
        loop.set_debug(False)

    def told(self) -> list[session.Row]:
        return [
            _told(record).row() for record in self._records if _TOOK.search(record.getMessage())
        ]


def _told(record: logging.LogRecord) -> Told:
    text = record.getMessage()
    [took] = _TOOK.findall(text)
    return Told(
        started_at=record.created - float(took),
        duration=float(took),
        stack=[(file, int(line)) for file, line in _PLACE.findall(text)],
        said=text,
    )
