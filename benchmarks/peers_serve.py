"""An app behind uvicorn under one watcher, until its input ends: prints the port, and then what the watcher told.

Arguments: the watcher, the loop, and the app.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import Callable
from typing import TextIO

from fastapi import FastAPI

import benchmarks.peers_told  # noqa: F401  # what all but the bare one use is no watcher's memory
from benchmarks.overhead_app import make_plain, output_of_its_own
from benchmarks.peers_app import make_handlers
from tests.corpus.session import Served, Watcher, new_runner

APPS: dict[str, Callable[[], FastAPI]] = {"plain": make_plain, "handlers": make_handlers}


def load(name: str) -> Watcher:
    watcher: Watcher = importlib.import_module(f"benchmarks.peers_{name}").Peer()
    return watcher


async def watched(watcher: Watcher, port: int, output: TextIO) -> None:
    """Until the input ends."""
    ended = asyncio.Event()
    async with watcher.on_loop():
        print(port, file=output, flush=True)
        asyncio.get_running_loop().add_reader(sys.stdin, ended.set)
        await ended.wait()
        asyncio.get_running_loop().remove_reader(sys.stdin)


def main() -> None:
    name, loop, app_name = sys.argv[1:]
    watcher, app = load(name), APPS[app_name]()
    watcher.install(app)
    with output_of_its_own() as output, new_runner(loop) as runner:
        served = Served(runner, app)
        runner.run(watched(watcher, served.port, output))
        runner.run(served.stop())
        print(json.dumps(watcher.told()), file=output)


if __name__ == "__main__":
    main()
