"""The demo's other processes: scripts that are asked once, answer once, and end when their input does."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

PATIENCE = 5.0


class Child:
    """A script beside this file, run by the same Python with nothing but the standard library.

    It has a session of its own, so that Ctrl-C in a terminal reaches the demo alone, which then ends it.
    """

    def __init__(self, script: str, question: Mapping[str, object]) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - nothing in it is anybody's input
            [sys.executable, "-I", "-S", Path(__file__).with_name(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdin
        assert self._process.stdout
        self._input, self._output = self._process.stdin, self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._input.write(json.dumps(question) + "\n")
            self._input.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for what it has to say; empty where it ended without a word."""
        line = self._output.readline()
        answer: dict[str, Any] = json.loads(line) if line.endswith("\n") else {}
        return answer

    def dismiss(self) -> None:
        """Tell it to end, without waiting. For signal handlers too."""
        with contextlib.suppress(OSError):
            self._input.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.dismiss()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()
