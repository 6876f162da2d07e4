"""Runs uvicorn, and whatever else the tests need, as processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60.0
STOP_SECONDS = 10.0

Row = dict[str, Any]


class Child:
    """A process that we started: stopped by its own pid or, where it reads its stdin, by that."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        variables: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self.log = log
        # A proxy that the environment names would be asked for 127.0.0.1 too.
        environment = {**os.environ, "NO_PROXY": "127.0.0.1", "PYTHONUNBUFFERED": "1"}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env={**environment, **(variables or {})},
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def read(self) -> str:
        """All that it wrote on stdout and stderr until now."""
        return self.log.read_text(errors="replace")

    def wait_for(self, pattern: str) -> str:
        """Wait until it writes the pattern; give the pattern's group."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(pattern, self.read()):
                return found[1]
            time.sleep(0.02)
        raise AssertionError(f"{pattern!r} never came; the process wrote:\n{self.read()}")

    def stop(self) -> int:
        """End it, by force only if it does not go by itself; give its exit code."""
        process = self.process
        if process.stdin is not None:
            process.stdin.close()
        else:
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


@dataclass(frozen=True)
class Server:
    """A uvicorn that serves the app, and the files in which app and guard say what they saw."""

    url: str
    child: Child
    jsonl: Path
    truth: Path
    spans: Path
    starts: Path


@contextmanager
def serve(
    directory: Path,
    *,
    loop: str,
    http: str = "auto",
    telemetry: str = "before",
    install: str = "module",
    variables: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Serve `tests.real.app` on a free port; at the end it must have stopped in good order."""
    files = {name: directory / f"{name}.jsonl" for name in ("jsonl", "truth", "spans", "starts")}
    for file in files.values():
        file.touch()
    child = Child(
        [
            *("-m", "uvicorn", "tests.real.app:served", "--port", "0", "--no-access-log"),
            *("--loop", loop, "--http", http),
        ],
        directory / "uvicorn.log",
        {
            **(variables or {}),
            **{f"REAL_{name.upper()}": str(file) for name, file in files.items()},
            "REAL_TELEMETRY": telemetry,
            "REAL_INSTALL": install,
        },
    )
    try:
        url = child.wait_for(r"running on (http://127\.0\.0\.1:\d+)")
        yield Server(url, child, **files)
    finally:
        code = child.stop()
    assert code in (0, -signal.SIGTERM), f"ended with {code}:\n{child.read()}"
    assert "Traceback" not in child.read(), child.read()


def read_rows(file: Path) -> list[Row]:
    """The whole lines of a JSONL file; what is still being written is left for later."""
    return [json.loads(line) for line in file.read_text().splitlines(True) if line[-1] == "\n"]


def wait_until(holds: Callable[[], bool], seconds: float) -> bool:
    """Wait until it holds, at most that long; give whether it does."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
