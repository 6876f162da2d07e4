"""py-spy, attached to this process from outside: 100 looks a second, threads that wait included."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from benchmarks.peers_told import Line, Told, own_line
from tests.corpus import session

_GAP = 0.05  # seconds: so little between two stays is a look that failed


class Peer:
    def __init__(self) -> None:
        self._file = Path(tempfile.mkdtemp(prefix="py-spy-")) / "trace.json"

    def install(self, _app: FastAPI) -> None:
        pass

    @asynccontextmanager
    async def on_loop(self) -> AsyncIterator[None]:
        """Not before it samples; a refusal of the system's is told, and ends this process."""
        command = ["py-spy", "record", "--pid", f"{os.getpid()}", "--idle", "--full-filenames"]
        self._spy = subprocess.Popen(
            [*command, "--format", "chrometrace", "--output", str(self._file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._spy.stdout
        for line in self._spy.stdout:
            if "Sampling process" in line:
                break
        else:
            raise SystemExit("py-spy cannot read this process: it takes the right to trace it")
        self._began = time.time()
        yield
        self._spy.send_signal(signal.SIGINT)
        self._spy.communicate()

    def told(self) -> list[session.Row]:
        text = self._file.read_text()
        return [
            Told(
                started_at=self._began + begin,
                duration=end - begin,
                stack=[max(lines, key=lambda line: lines[line])],
                said=text,
            ).row()
            for begin, end, lines in _stays(json.loads(text))
            if end - begin >= 0.1
        ]


def _stays(events: list[dict[str, Any]]) -> Iterator[tuple[float, float, Counter[Line]]]:
    """When a function of the app's was entered and left, in seconds, with the time on each of its lines."""
    entered: dict[str, float] = {}
    since: dict[str, tuple[float, float, Counter[Line]]] = {}
    for event in events:
        name, at = event["name"], event["ts"] / 1e6
        line = event["args"]["filename"], event["args"]["line"]
        if not own_line([line]):
            continue
        if event["ph"] == "B":
            entered[name] = at
            continue
        begin, end, lines = since.pop(name, (entered[name], entered[name], Counter()))
        if entered[name] - end > _GAP:
            yield begin, end, lines
            begin, lines = entered[name], Counter()
        lines[line] += at - entered[name]
        since[name] = begin, at, lines
    yield from since.values()
