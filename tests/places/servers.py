"""Runs an application under the servers that there are, each as a process of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.real.server import Child, Server

# Server, its HTTP parser or worker class, and the loop.
UVICORN = {
    "uvicorn-h11-asyncio": ("--http", "h11", "--loop", "asyncio"),
    "uvicorn-httptools-asyncio": ("--http", "httptools", "--loop", "asyncio"),
    "uvicorn-h11-uvloop": ("--http", "h11", "--loop", "uvloop"),
    "uvicorn-httptools-uvloop": ("--http", "httptools", "--loop", "uvloop"),
}
HYPERCORN = {
    "hypercorn-asyncio": ("--worker-class", "asyncio"),
    "hypercorn-uvloop": ("--worker-class", "uvloop"),
}


@contextmanager
def serve(
    directory: Path,
    application: str,
    server: str,
    *,
    telemetry: str = "before",
    variables: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Serve the application on a free port; at the end it must have stopped in good order."""
    files = {name: directory / f"{name}.jsonl" for name in ("jsonl", "truth", "spans", "starts")}
    for file in files.values():
        file.touch()
    child = Child(
        _command(application, server),
        directory / "server.log",
        {
            **(variables or {}),
            **{f"REAL_{name.upper()}": str(file) for name, file in files.items()},
            "REAL_TELEMETRY": telemetry,
        },
    )
    try:
        url = child.wait_for(r"[Rr]unning on (http://127\.0\.0\.1:\d+)")
        yield Server(url, child, **files)
    finally:
        code = child.stop()
    assert code in (0, -signal.SIGTERM), f"ended with {code}:\n{child.read()}"


def _command(application: str, server: str) -> list[str]:
    if server in UVICORN:
        return [
            *("-m", "uvicorn", application, "--port", "0", "--no-access-log"),
            *UVICORN[server],
        ]
    return ["-m", "hypercorn", application, "--bind", "127.0.0.1:0", *HYPERCORN[server]]
