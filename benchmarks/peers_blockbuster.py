"""blockbuster, switched on while the loop runs; what it raises is what uvicorn logs."""

from __future__ import annotations

import logging
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from blockbuster import BlockBuster, BlockingError
from fastapi import FastAPI

from benchmarks.peers_told import Told
from tests.corpus import session

# What the benchmark itself writes and reads on the loop.
_OURS = (
    ("benchmarks/peers_serve.py", ("watched",)),
    ("benchmarks/overhead_twins.py", ("obey", "memory")),
)


class Peer(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self._told: list[session.Row] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info and record.exc_info[1]
        if not isinstance(error, BlockingError):
            return
        lines = traceback.extract_tb(error.__traceback__)
        told = Told(
            started_at=record.created,
            duration=None,
            stack=[(line.filename, line.lineno or 0) for line in reversed(lines)],
            causes=["blocking_call"],
            said="".join(traceback.format_exception(error)),
        )
        self._told.append(told.row())

    def install(self, _app: FastAPI) -> None:
        pass

    @asynccontextmanager
    async def on_loop(self) -> AsyncIterator[None]:
        logging.getLogger("uvicorn.error").addHandler(self)
        blocking = BlockBuster()
        for each in blocking.functions.values():
            for file, function in _OURS:
                each.can_block_in(file, function)
        blocking.activate()
        yield
        blocking.deactivate()

    def told(self) -> list[session.Row]:
        return self._told
