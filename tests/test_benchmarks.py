"""The benchmarks run, and give every figure that they promise."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


@pytest.fixture
def peers(tmp_path: Path) -> Callable[..., Any]:
    """Run a command of `benchmarks/peers.py`, and give its figures; where peers can be had."""
    pytest.importorskip("uvloop")
    if shutil.which("uv") is None:
        pytest.skip("uv makes the environments, and is not installed")
    wheel = ["uv", "pip", "install", "-q", "--python", sys.executable, "--no-deps", "pyleak==0.2.0"]
    if subprocess.run([*wheel, "--target", str(tmp_path / "tried")], timeout=60).returncode:
        pytest.skip("no package index can be reached")

    def run(*arguments: str) -> Any:
        out = tmp_path / "figures.json"
        script = ROOT / "benchmarks" / "peers.py"
        command = [sys.executable, str(script), *arguments, "--json", str(out)]
        subprocess.run(command, check=True, timeout=280)
        return json.loads(out.read_text())

    return run


@pytest.mark.timeout(300)
def test_the_peers_watch_the_same_cases(peers: Callable[..., Any]) -> None:
    """Not how accurate each is: that takes the whole corpus."""
    watchers = ("loopguard", "aiocop", "pyleak", "livekit")
    cases = ("--cases", "sleep", "async_sleep")
    figures = peers("accuracy", "--at-once", "--watchers", *watchers, *cases)
    assert list(figures) == list(watchers)
    columns = ("found", "right line", "right trace", "right cause", "false reports")
    for counts in figures.values():
        assert {name: of for name, (_, of) in counts.items()} == dict.fromkeys(columns, 1)
    assert all(figures[name]["found"] == [1, 1] for name in ("loopguard", "aiocop", "livekit"))


@pytest.mark.timeout(300)
def test_the_tools_watch_the_same_handlers(peers: Callable[..., Any]) -> None:
    """blockbuster raises at the sleep and knows nothing of the sum; debug mode times both, and names no line."""
    tools = ("debug_mode", "blockbuster", "loopguard")
    [(loop, figures)] = peers("tools", "--quick", "--loops", "uvloop", "--tools", *tools).items()
    assert loop == "uvloop"
    assert list(figures) == list(tools)
    assert all(tool["reason"] is None for tool in figures.values())
    assert all(tool["of"]["found"] == 4 for tool in figures.values())
    assert all(tool["cpu"]["median"] > 0 for tool in figures.values())
    debug_mode, blockbuster, guard = (tool["right"] for tool in figures.values())
    assert (debug_mode["found"], debug_mode["line"]) == (4, 0)
    assert (blockbuster["found"], blockbuster["line"]) == (2, 2)
    assert figures["blockbuster"]["wrong_by"] is None
    assert (guard["found"], guard["line"], guard["trace"]) == (4, 4, 4)


@pytest.mark.timeout(300)
def test_the_cost_of_watchers_is_measured_side_by_side(peers: Callable[..., Any]) -> None:
    """Not how large it is; and not over the wire where there is no wrk."""
    watchers = ("loopguard", "aiocop")
    command = ("cost", "--quick", "--loops", "uvloop", "--watchers")
    [(_, figures)] = peers(*command, *watchers).items()
    assert list(figures) == ["bare", *watchers]
    in_process = {"CPU per request, two cores", "on one core", "idle, % of a core"}
    for named in figures.values():
        assert in_process | {"wake-ups a second", "memory, MB"} <= set(named)
        assert ("requests a second" in named) == (shutil.which("wrk") is not None)
        assert all(math.isfinite(each["median"]) for each in named.values())
    assert figures["bare"]["on one core"]["median"] == 1


def test_what_sampling_leaves_of_stalls_is_counted_at_each_rate() -> None:
    """Where all is sampled each stall has its span, and where nothing is, log and metrics still have each."""
    pytest.importorskip("opentelemetry.sdk")
    pytest.importorskip("opentelemetry.instrumentation.fastapi")
    pytest.importorskip("httpx")
    script = ROOT / "benchmarks" / "sampling.py"
    command = [sys.executable, str(script), "--stalls", "5", "--rates", "0,100"]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
        timeout=110,
    )
    _, _, none, every = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()]
    assert (none[0], every[0]) == ("0 %", "100 %")
    assert int(none[1]) > 0
    assert int(every[1]) > 0
    assert none[2].endswith("(100.0 %)")
    assert every[2].endswith("(100.0 %)")
    assert [cell.split()[0] for cell in none[3:5]] == ["0", "0"]
    assert every[3].endswith("(100.0 %)")


@pytest.mark.skipif(sys.platform != "linux", reason="it reads CPU clocks of threads")
def test_the_cost_of_a_report_is_measured(tmp_path: Path) -> None:
    """And whom the stall delayed is right, or it would stop: with few requests, and with a thousand."""
    out = tmp_path / "figures.json"
    script = ROOT / "benchmarks" / "scale.py"
    command = [sys.executable, str(script), "--quick", "--loop", "asyncio", "--json", str(out)]
    subprocess.run(command, check=True, timeout=110)
    figures = json.loads(out.read_text())["figures"]
    assert len(figures) == 2
    for named in figures.values():
        assert set(named) == {"floor", "pause", "cpu"}
        assert all(math.isfinite(value) and value >= 0 for value in named.values())


@pytest.mark.skipif(sys.platform != "linux", reason="it reads the peak of memory in kilobytes")
def test_the_report_is_measured(tmp_path: Path) -> None:
    """How large the page is does not depend on the machine: that is held to."""
    out = tmp_path / "figures.json"
    script = ROOT / "benchmarks" / "report.py"
    subprocess.run(
        [sys.executable, str(script), "--quick", "--json", str(out)], check=True, timeout=110
    )
    figures = json.loads(out.read_text())
    assert figures["page.megabytes"] <= 1.0
    assert figures["gigabyte.peak_mb"] <= 300.0
    assert {"page.written_s", "gigabyte.read_s", "gigabyte.read_cpu_s"} <= set(figures)


@pytest.mark.skipif(sys.platform != "linux", reason="it reads memory and files from /proc")
def test_the_soak_accounts_for_every_stall() -> None:
    """In its short form: each stall is told once, by every sink, and counted. Memory needs the long one."""
    for package in ("uvloop", "fastapi", "uvicorn", "opentelemetry.sdk"):
        pytest.importorskip(package)
    script = ROOT / "benchmarks" / "soak.py"
    done = subprocess.run(
        [sys.executable, str(script), "--quick", "--only", "requests"],
        capture_output=True,
        text=True,
        timeout=110,
    )
    rows = dict(row.strip("| ").split(" | ", 1) for row in done.stdout.splitlines()[2:9])
    told, _, missing = rows["told of those injected; twice; not at all"].split("; ")
    assert int(told) + int(missing) == 45
    assert int(missing) <= 2, (
        done.stdout + done.stderr
    )  # where the machine gave the watchdog no CPU
    assert rows["heard by `on_stall`; spans; `sink_errors`"].endswith("; 0")
    heard, spans, _ = rows["heard by `on_stall`; spans; `sink_errors`"].split("; ")
    assert heard == spans


def test_what_an_await_costs_is_measured_as_the_page_shows_it() -> None:
    """The page has the same rows; and what goes once around the loop costs more than what does not."""
    pytest.importorskip("uvloop")
    command = [sys.executable, str(ROOT / "benchmarks" / "awaits.py"), "--items", "5000"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=110)
    head, _, *rows = done.stdout.splitlines()
    page = (ROOT / "docs" / "fixing.md").read_text().partition(head)[2]
    names = [row.split(" | ")[0] for row in rows]
    assert [row.split(" | ")[0] for row in page.splitlines()[2 : 2 + len(rows)]] == names
    for column in (1, 2):
        call, never, sleep, task, thread, process = (
            float(row.strip("| ").split(" | ")[column]) for row in rows
        )
        assert max(call, never) < min(sleep, task)
        assert max(sleep, task) < min(thread, process)
