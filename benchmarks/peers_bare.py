"""Nobody watches: what the others are compared with."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from fastapi import FastAPI


class Peer:
    def install(self, _app: FastAPI) -> None:
        pass

    def on_loop(self) -> AbstractAsyncContextManager[object]:
        return nullcontext()

    def told(self) -> list[dict[str, Any]]:
        return []
