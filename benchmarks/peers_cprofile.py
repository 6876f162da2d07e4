"""cProfile on the loop's thread, all the while."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from benchmarks import peers_profiled
from tests.corpus import session


class Peer:
    def __init__(self) -> None:
        self._profile = cProfile.Profile()

    def install(self, _app: FastAPI) -> None:
        pass

    @asynccontextmanager
    async def on_loop(self) -> AsyncIterator[None]:
        self._profile.enable()
        yield
        self._profile.disable()

    def told(self) -> list[session.Row]:
        return peers_profiled.told(pstats.Stats(self._profile))
