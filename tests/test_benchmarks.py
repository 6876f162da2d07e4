"""The benchmarks run, and give every figure that they promise."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(sys.platform != "linux", reason="it reads CPU times from /proc")
def test_the_overhead_is_measured_on_both_loops(tmp_path: Path) -> None:
    """Not how large it is: that needs a quiet machine and minutes."""
    pytest.importorskip("uvloop")
    pytest.importorskip("fastapi")
    out = tmp_path / "figures.json"
    script = ROOT / "benchmarks" / "overhead.py"
    subprocess.run(
        [sys.executable, str(script), "--quick", "--json", str(out)], check=True, timeout=110
    )
    report = json.loads(out.read_text())
    figures = report["figures"]
    rows = figures.values() if isinstance(figures, dict) else figures
    names = set(figures) if isinstance(figures, dict) else {row["name"] for row in rows}
    for loop in ("asyncio", "uvloop"):
        assert {
            f"request.plain.{loop}.alone.ratio",
            f"request.plain.{loop}.beside_thread.ratio",
            f"request.traced.{loop}.alone.ratio",
            f"request.traced.{loop}.beside_thread.ratio",
            f"idle.{loop}.added",
            f"idle.{loop}.floor.added",
            f"layer.{loop}.added",
            f"memory.{loop}.rss.added",
        } <= names
    assert all(math.isfinite(row["median"]) for row in rows)
