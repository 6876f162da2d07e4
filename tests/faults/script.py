"""Runs a script in a process of its own, where a fault may do its worst; the script says what it saw in lines of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

PRELUDE = """
import asyncio, json, os, signal, sys, threading, time
import loopguard
from tests.holding import hold, run

def say(**facts):
    os.write(1, json.dumps(facts).encode() + b"\\n")

def calls(guard):
    # Of the stalls that were meant: on a busy machine there may be others.
    assert guard.flush(20)
    culprits = [(stall.culprit, stall.call) for stall in guard.stalls]
    return [call for culprit, call in culprits if culprit and culprit.function == "hold"]
"""


@dataclass(frozen=True)
class Done:
    """What a script said, and what it wrote on stderr."""

    said: list[dict[str, Any]]
    stderr: str


def ran(
    script: str,
    *arguments: object,
    python: str | os.PathLike[str] = sys.executable,
    options: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    prelude: str = PRELUDE,
) -> Done:
    """Run it; it must end well, and nothing may be said that looks like a failure."""
    done = subprocess.run(
        [python, *options, "-c", prelude + script, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(variables or {})},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    for word in ("Traceback", "Exception ignored", "Fatal Python error"):
        assert word not in done.stderr, done.stderr
    return Done([json.loads(line) for line in done.stdout.splitlines()], done.stderr)
