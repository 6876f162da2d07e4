"""A suite that blocks nothing fails nothing, also beside busy processes; what both benchmarks promise."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.skipif(sys.platform != "linux", reason="the evidence of the system is Linux's")
@pytest.mark.timeout(400)
def test_no_test_fails_that_blocks_nothing(tmp_path: Path) -> None:
    """Ten runs, five at a time beside twice as many busy processes as there are CPUs, and each second one under a quota
    where one can be had; `benchmarks/innocent.py` runs two hundred.
    """
    script, out = BENCHMARKS / "innocent.py", tmp_path / "figures.json"
    busy = 2 * len(os.sched_getaffinity(0))
    options = ("--runs", "10", "--at-once", "5", "--busy", str(busy), "--json", str(out))
    done = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(out.read_text())
    assert figures["failures"] == {}
    assert (figures["runs"], figures["with_quota"]) in ((10, 5), (10, 0))


@pytest.mark.timeout(200)
def test_the_cost_of_the_plugin_is_measured(tmp_path: Path) -> None:
    """Not how large it is: that needs a quiet machine and minutes."""
    for module in ("pytest_asyncio", "fastapi", "httpx"):
        pytest.importorskip(module)
    script, out = BENCHMARKS / "testing.py", tmp_path / "figures.json"
    command = [sys.executable, str(script), "--rounds", "1", "--tests", "5", "--json", str(out)]
    subprocess.run(command, capture_output=True, check=True)
    figures = json.loads(out.read_text())
    assert set(figures) == {
        f"{suite}.{way}"
        for suite in ("asyncio.run", "pytest-asyncio", "FastAPI and httpx")
        for way in ("off", "on")
    }
    assert all(math.isfinite(figure["median"]) for figure in figures.values())
