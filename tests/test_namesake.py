"""Beside `fastapi-loopguard`, another project that shares our name in part: both installed, both work."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loopguard.cli import main
from tests.environments import Environment, call, clean_environment
from tests.real.server import read_rows, wait_until

pytestmark = pytest.mark.timeout(300)  # a package index may be slow

THEIRS = "fastapi-loopguard==0.9.0"

SUITE = """
import asyncio, time
import pytest

@pytest.fixture(scope="session", autouse=True)
def names(pytestconfig):
    plugins = pytestconfig.pluginmanager
    assert (plugins.hasplugin("loopguard"), plugins.hasplugin("asyncio_loopguard")) == (True, True)

async def test_blocks():
    time.sleep(0.3)

def test_own_loop():
    async def main():
        time.sleep(0.3)
    asyncio.run(main())

async def test_waits():
    await asyncio.sleep(0.15)

@pytest.mark.allow_blocking
async def test_allowed_by_them():
    time.sleep(0.3)

@pytest.mark.allow_stalls("it may")
async def test_allowed_by_us():
    time.sleep(0.3)

@pytest.mark.allow_blocking
@pytest.mark.allow_stalls("it may")
async def test_allowed_by_both():
    time.sleep(0.3)

@pytest.mark.no_blocking(threshold_ms=2_000)
@pytest.mark.stall_budget(2.0)
async def test_has_a_budget_of_both():
    time.sleep(0.3)
"""

SERVED = """
import sys, time
import uvicorn
from fastapi import FastAPI
from fastapi_loopguard import LoopGuardMiddleware
import loopguard

app = FastAPI()
if sys.argv[2] == "ours first":
    loopguard.install(app, budget=0.05, jsonl=sys.argv[1])
app.add_middleware(LoopGuardMiddleware)
if sys.argv[2] == "theirs first":
    loopguard.install(app, budget=0.05, jsonl=sys.argv[1])

@app.get("/items/{item}")
async def items(item: str) -> str:
    time.sleep(0.3)
    return item

uvicorn.run(app, port=0)
"""


@pytest.fixture(scope="module")
def both(uv: str, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(
        tmp_path_factory.mktemp("both") / "env",
        uv,
        *(str(wheel), THEIRS, "fastapi", "uvicorn", "pytest", "pytest-asyncio"),
    )


@pytest.fixture(scope="module")
def suite(both: Environment) -> Path:
    folder = both.directory / "suite"
    folder.mkdir()
    (folder / "test_suite.py").write_text(SUITE)
    (folder / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    return folder


def verdicts(both: Environment, suite: Path, *options: str) -> tuple[dict[str, str], str]:
    """The first word of why each test failed, and all that was said; as a user runs it, with what is installed."""
    command = ("-m", "pytest", str(suite), "--strict-markers", "-W", "error", *options)
    done = both.run(*command, "-p", "no:cacheprovider", "-rf")
    assert done.returncode == 1, done.stdout + done.stderr
    found = re.findall(r"^FAILED \S+::(\w+) - Failed: (\S+)", done.stdout, re.MULTILINE)
    assert len(found) == done.stdout.count("\nFAILED "), done.stdout
    return {name: "theirs" if first == "Event" else "ours" for name, first in found}, done.stdout


def test_both_plugins_judge_the_same_suite(both: Environment, suite: Path) -> None:
    """Each by its own options and markers; where both would fail a test, ours is a section of its report."""
    reports = {"theirs": suite / "theirs.json", "ours": suite / "ours.jsonl"}
    failed, said = verdicts(
        both,
        suite,
        *("--stalls", "--stall-jsonl", str(reports["ours"])),
        *("--loopguard-all-async", f"--loopguard-report={reports['theirs']}"),
    )
    assert failed == {
        "test_blocks": "theirs",
        "test_own_loop": "ours",
        "test_allowed_by_them": "ours",
        "test_allowed_by_us": "theirs",
    }
    assert said.count("Captured stall call") == 2  # of those that theirs fails
    assert re.search(
        r"test_suite\.py:\d+: event loop blocked 0\.\d+ s .* in test_blocks$", said, re.MULTILINE
    )
    theirs: dict[str, Any] = json.loads(reports["theirs"].read_text())
    assert (theirs["status"], theirs["totals"]) == ("blocked", {"tests": 4, "flagged": 2})
    functions = [row["culprit"]["function"] for row in read_rows(reports["ours"])]
    assert sorted(functions) == sorted(
        [
            "test_blocks",
            "test_own_loop.<locals>.main",
            "test_allowed_by_them",
            "test_allowed_by_us",
            "test_allowed_by_both",
        ]
    )


def test_each_plugin_is_switched_on_by_itself(both: Environment, suite: Path) -> None:
    ours, _ = verdicts(both, suite, "--stalls")
    assert ours == dict.fromkeys(("test_blocks", "test_own_loop", "test_allowed_by_them"), "ours")
    theirs, _ = verdicts(both, suite, "--loopguard-all-async")
    assert theirs == dict.fromkeys(("test_blocks", "test_allowed_by_us"), "theirs")


@contextmanager
def served(both: Environment, order: str, stalls: Path) -> Iterator[str]:
    """The address of an application that has both, and nothing goes wrong in it."""
    log = both.directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [both.python, "-c", SERVED, str(stalls), order],
            cwd=both.directory,
            env={**clean_environment(), "NO_PROXY": "127.0.0.1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        assert wait_until(lambda: "running on" in log.read_text(), 30), log.read_text()
        (url,) = re.findall(r"running on (http://127\.0\.0\.1:\d+)", log.read_text())
        yield url
    finally:
        process.terminate()
        process.wait(10)
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("order", ["ours first", "theirs first"])
def test_both_guard_one_application(both: Environment, tmp_path: Path, order: str) -> None:
    """Theirs says in a header that the loop was blocked, ours which line of which route did it."""
    stalls = tmp_path / "stalls.jsonl"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with served(both, order, stalls) as url:
        answer = opener.open(f"{url}/items/4711", timeout=30)
        assert answer.read() == b'"4711"'
        assert answer.headers["x-blocking-detected"] == "true"
        assert wait_until(lambda: any(row["request"] for row in read_rows(stalls)), 5)
    (record,) = [row for row in read_rows(stalls) if row["request"] and not row["ongoing"]]
    assert record["request"]["route"] == "/items/{item}"
    assert (record["culprit"]["function"], record["call"]) == ("items", "time.sleep")


def test_our_own_commands_are_ours_whoever_has_the_script(
    both: Environment, uv: str, wheel: Path
) -> None:
    """The script `loopguard` is theirs who were installed last; `doctor` names them."""
    script = both.python.parent / "loopguard"
    mine, own_commands = "from loopguard.cli import main", ("asyncio-loopguard", "-m loopguard")
    for package in (THEIRS, str(wheel)):
        options = ("--reinstall", "--no-deps", "--python", str(both.python))
        call(uv, "pip", "install", "-q", *options, package)
        assert (mine in script.read_text()) == (package != THEIRS)
        for command in own_commands:
            argument = command.split() if command[0] == "-" else [str(script.parent / command)]
            assert "asyncio" in both.run(*argument, "--help").stdout
    said = both.run("-c", "from loopguard.diagnosis.names import conflicts; print(conflicts())")
    assert "fastapi-loopguard 0.9.0 has a script `loopguard` too" in said.stdout


def test_their_report_is_never_taken_for_one_without_stalls(
    both: Environment, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their gate is `loopguard report loopguard.json`: where it finds our script, it must not pass."""
    report = tmp_path / "loopguard.json"
    verdicts(both, suite, "--loopguard-all-async", f"--loopguard-report={report}")
    theirs = both.run("-m", "fastapi_loopguard.cli", "report", str(report))
    assert theirs.returncode == 1, theirs.stderr
    for command in (["report"], ["diff", str(report)]):
        assert main([*command, str(report)]) == 2
        refused = capsys.readouterr()
        assert refused.out == ""
        assert refused.err.count("\n") == 1
        assert f"python -m fastapi_loopguard.cli report {report}" in refused.err
