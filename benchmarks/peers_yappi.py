"""yappi by the wall's clock, with built-in functions, all the while."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import yappi
from fastapi import FastAPI

from benchmarks import peers_profiled
from tests.corpus import session


class Peer:
    def install(self, _app: FastAPI) -> None:
        pass

    @asynccontextmanager
    async def on_loop(self) -> AsyncIterator[None]:
        yappi.set_clock_type("wall")
        yappi.start(builtins=True)
        yield
        yappi.stop()

    def told(self) -> list[session.Row]:
        return peers_profiled.told(yappi.convert2pstats(yappi.get_func_stats()))
