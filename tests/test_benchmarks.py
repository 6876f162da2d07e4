"""The benchmarks run, and give every figure that they promise; how large a figure is, no test asks."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc")

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
LOOPS = ("asyncio", "uvloop")
OF_EACH_LOOP = {
    "request.{}.ratio": "guarded ÷ bare",
    "request.{}.added": "µs",
    "request_beside_thread.{}.ratio": "guarded ÷ bare",
    "idle.{}.added": "% of a core",
    "idle.{}.guarded.wakeups": "1/s",
    "layer.{}.added": "µs",
    "memory.{}.rss.added": "MB",
    "memory.{}.uss.added": "MB",
}


def run_overhead(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the script as a user does, from the root of the checkout."""
    paths = [str(BENCHMARKS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "overhead.py"), "--quick", *options],
        capture_output=True,
        cwd=BENCHMARKS.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def overhead(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What a quick run printed, and what it wrote as JSON."""
    path = tmp_path_factory.mktemp("overhead") / "figures.json"
    done = run_overhead("--json", str(path))
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name, unit", OF_EACH_LOOP.items())
def test_each_figure_is_there_for_each_loop(
    overhead: tuple[str, dict[str, Any]], loop: str, name: str, unit: str
) -> None:
    """CPU per request, idle CPU, the ASGI layer and the memory are measured on asyncio and on uvloop."""
    assert overhead[1]["figures"][name.format(loop)]["unit"] == unit


def test_every_figure_is_finite_and_lies_in_its_interval(
    overhead: tuple[str, dict[str, Any]],
) -> None:
    """A figure is a number, at least one measurement stands behind it, and its interval holds it."""
    for figure in overhead[1]["figures"].values():
        assert math.isfinite(figure["median"])
        assert figure["low"] <= figure["median"] <= figure["high"]
        assert figure["count"] >= 1


def test_the_targets_are_judged(overhead: tuple[str, dict[str, Any]]) -> None:
    """CPU per request, idle CPU and memory have a target, and are missed just where the median is above it."""
    judged = {name: of for name, of in overhead[1]["figures"].items() if of["target"] is not None}
    assert {name.split(".")[0] for name in judged} == {
        "request",
        "request_beside_thread",
        "idle",
        "memory",
    }
    for figure in judged.values():
        assert figure["missed"] == (figure["median"] > figure["target"])


def test_the_table_says_the_same_as_the_json(overhead: tuple[str, dict[str, Any]]) -> None:
    """Each figure has its line in the table, and the machine it was measured on is named above."""
    printed, written = overhead
    assert set(written["figures"]) <= {line.split(" ")[0] for line in printed.splitlines()}
    for key in ("cpu", "cores", "python", "packages", "date"):
        assert written["machine"][key] in printed


def test_the_import_is_timed(overhead: tuple[str, dict[str, Any]]) -> None:
    """`import loopguard` takes some time of its own, beyond structlog and OpenTelemetry."""
    assert overhead[1]["figures"]["import.added"]["median"] > 0


def test_a_missed_target_gives_exit_code_1_where_a_check_was_asked_for(tmp_path: Path) -> None:
    """Without `--check` the exit code is 0 whatever was measured; with it, it is 1 where a target is missed."""
    path = tmp_path / "figures.json"
    done = run_overhead("--check", "--loop", "asyncio", "--contestant", "bare", "--json", str(path))
    missed = [of["missed"] for of in json.loads(path.read_text())["figures"].values()]
    assert done.returncode == int(any(missed))
