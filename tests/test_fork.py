"""A forked child is not guarded, may install anew, and does nothing to its parent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import asyncio, os, sys, time, warnings
import loopguard
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork beside threads

async def block(jsonl=None):
    await asyncio.sleep(0.05)
    time.sleep(0.3)
    await asyncio.sleep(0.05)

async def parent():
    await asyncio.sleep(0.05)
    pid = os.fork()
    if pid == 0:
        try:
            child()
        finally:
            os._exit(3)
    await asyncio.sleep(0.1)
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status
    await block()

def child():
    assert guard.stats()["stalls"] == 0
    anew = loopguard.install(jsonl=sys.argv[2], log=False)
    assert anew is not guard
    asyncio._set_running_loop(None)
    asyncio.run(block())
    assert anew.flush(5)
    assert anew.stats()["stalls"] == 1, anew.stats()
    os._exit(0)

guard = loopguard.install(jsonl=sys.argv[1], log=False)
run = asyncio.run
if sys.argv[3] == "uvloop":
    import uvloop
    run = uvloop.run
run(parent())
assert guard.flush(5)
assert guard.stats()["troubles"] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_parent_and_child_report_their_own_stalls_and_no_others(loop: str, tmp_path: Path) -> None:
    """The child forks in the middle of a loop that is watched, and runs a loop of its own."""
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    script, mine, its = tmp_path / "forks.py", tmp_path / "parent.jsonl", tmp_path / "child.jsonl"
    script.write_text(SCRIPT)
    subprocess.run(
        [sys.executable, str(script), mine, its, loop],
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    told = [[json.loads(line) for line in file.read_text().splitlines()] for file in (mine, its)]
    assert [len(records) for records in told] == [1, 1]
    assert [records[0]["culprit"]["function"] for records in told] == ["block", "block"]
    assert told[0][0]["pid"] != told[1][0]["pid"]
