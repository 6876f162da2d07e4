"""At shutdown the log says what was seen in all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from loopguard.record import Frame
from loopguard.tell.summary import WORST, Summary
from tests.records import make_stall

ROOT = Path(__file__).resolve().parents[1]
CULPRIT = Frame("app.py", 1, "app", "f", None, library=False)


def test_nothing_seen_is_nothing_said() -> None:
    assert Summary().take() is None


def test_stalls_add_up_by_culprit_the_longest_first() -> None:
    summary = Summary()
    for line, duration in [(1, 0.2), (2, 0.5), (1, 0.4)]:
        summary.add(make_stall(culprit=replace(CULPRIT, line=line), duration=duration))
    assert summary.take() == {
        "stalls": 3,
        "blocked_s": 1.1,
        "worst": ["app.py:1 in f: 0.600 s in 2", "app.py:2 in f: 0.500 s in 1"],
    }


def test_only_the_five_worst_are_named() -> None:
    summary = Summary()
    for line in range(WORST + 3):
        summary.add(make_stall(culprit=replace(CULPRIT, line=line), duration=1.0 + line))
    fields = summary.take()
    assert fields is not None
    assert fields["worst"] == [
        f"app.py:{line} in f: {1.0 + line:.3f} s in 1" for line in (7, 6, 5, 4, 3)
    ]


def test_what_the_system_did_not_run_blames_nobody() -> None:
    summary = Summary()
    summary.add(make_stall(cause="not_scheduled", culprit=None, duration=2.0))
    assert summary.take() == {"stalls": 1, "blocked_s": 0.0, "worst": []}


@pytest.mark.parametrize("seconds, events", [(0.3, ["guard", "stall", "summary"]), (0, ["guard"])])
def test_a_process_that_ends_says_it_last(
    seconds: float, events: list[str], tmp_path: Path
) -> None:
    """Without any call of ours at its end; a process in which nothing stalled says nothing."""
    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio, time, loopguard\n"
        "async def main():\n"
        "    await asyncio.sleep(0.06)\n"
        f"    time.sleep({seconds})\n"
        "    await asyncio.sleep(0.06)\n"
        "loopguard.install()\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    said = [json.loads(line) for line in done.stderr.splitlines()]
    assert [
        row["event"].rpartition(".")[2] for row in said if row.get("cause") != "not_scheduled"
    ] == events
    if seconds:
        assert said[-1]["worst"][0].startswith(f"{script}:4 in main: 0.")
