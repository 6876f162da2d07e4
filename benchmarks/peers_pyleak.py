"""pyleak on the corpus: its context manager around each case, at the same threshold."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from pyleak import no_event_loop_blocking
from pyleak.utils import CallerContext

from benchmarks import peers_app
from benchmarks.peers_told import Told
from tests.corpus import session
from tests.corpus.cases import FAMILIES

FILES = {
    peers_app.__file__,
    *(sys.modules[f"tests.corpus.{family}"].__file__ for family in FAMILIES),
}


class Peer:
    def __init__(self) -> None:
        self._blocks: list[Any] = []

    def install(self, _app: FastAPI) -> None:
        pass

    @asynccontextmanager
    async def on_loop(self) -> AsyncIterator[None]:
        # The files of all that is watched, as if each had been the caller: of other stacks it tells nothing.
        caller = CallerContext(filename=__file__, name="case", files=FILES)
        manager = no_event_loop_blocking(
            action="log", threshold=0.1, check_interval=0.01, caller_context=caller
        )
        async with manager:
            yield
        self._blocks += manager.detector.detected_blocks

    def told(self) -> list[session.Row]:
        told = [
            Told(
                started_at=block.timestamp - block.duration,
                duration=block.duration,
                stack=[(frame.filename, frame.lineno) for frame in reversed(block.blocking_stack)],
                said=repr(block),
            ).row()
            for block in self._blocks
        ]
        self._blocks.clear()
        return told


if __name__ == "__main__":
    session.run(Peer(), *sys.argv[1:])
