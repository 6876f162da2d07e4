"""Every case of the corpus is told as its label says: line, call, cause, wait, holder, request and times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.corpus.cases import CASES, MARKS
from tests.corpus.judge import excuse, judge
from tests.corpus.matrix import PAGE
from tests.corpus.run import Row, run_cases
from tests.corpus.world import world
from tests.holding import UVLOOP

pytest.importorskip("opentelemetry.sdk")

CORE = [name for name, case in CASES.items() if case.core]
# All of them on one loop, for they take minutes; `python -m tests.corpus.matrix` runs all on all.
BY_LOOP = {"uvloop": list(CASES) if UVLOOP else [], "asyncio": CORE if UVLOOP else list(CASES)}
RUNS = [
    pytest.param(loop, name, marks=pytest.mark.core if name in CORE else ())
    for loop, names in BY_LOOP.items()
    for name in names
]
SECONDS = 600  # the first test of a loop runs them all

AGAIN = 3


@dataclass(frozen=True)
class Corpus:
    """The cases of this run of pytest, and what was told of them."""

    directory: Path
    variables: Mapping[str, str]
    names: Mapping[str, Sequence[str]]
    known: dict[str, dict[str, Row]] = field(default_factory=dict)

    def row(self, loop: str, name: str) -> Row:
        if loop not in self.known:
            rows = run_cases(self.directory, self.variables, loop, self.names[loop])
            self.known[loop] = {row["case"]: row for row in rows}
        return self.known[loop][name]

    def again(self, loop: str, name: str) -> list[Row]:
        directory = self.directory / f"{loop}.{name}"
        directory.mkdir()
        return run_cases(directory, self.variables, loop, [name], AGAIN)


@pytest.fixture(scope="session")
def corpus(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Corpus]:
    names: dict[str, list[str]] = {loop: [] for loop in BY_LOOP}
    for item in request.session.items:
        parameters = getattr(item, "callspec", None)
        if item.path == Path(__file__) and parameters is not None:
            names[parameters.params["loop"]].append(parameters.params["name"])
    directory = tmp_path_factory.mktemp("corpus")
    with world(directory, [CASES[name] for some in names.values() for name in some]) as variables:
        yield Corpus(directory, variables, names)


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("loop, name", RUNS)
def test_it_is_told_as_its_label_says(loop: str, name: str, corpus: Corpus) -> None:
    """Where the machine took the CPU, by its own account, and that made a difference, the test says so and skips.

    One miss in a hundred is in docs/accuracy.md, and no failure here: what was missed is run again, and may not be
    missed twice more.
    """
    row = corpus.row(loop, name)
    if row.get("lacking"):
        pytest.skip(row["lacking"])
    misses = judge(row)
    if not misses:
        return
    words = [str(miss) for miss in misses]
    excused = excuse(row, misses)
    if excused:
        pytest.skip(f"{excused}: {words}")
    missed = [
        [str(miss) for miss in found]
        for row in corpus.again(loop, name)
        if (found := judge(row)) and not excuse(row, found)
    ]
    assert len(missed) < 2, [words, *missed]


def test_the_corpus_is_as_large_as_it_is_said_to_be() -> None:
    """At least 70 stalls, four of each cause that can be expected, and 15 cases that are none."""
    causes = [MARKS[name].cause for name, case in CASES.items() if not case.innocent]
    assert len(causes) >= 70
    assert len(CASES) - len(causes) >= 15
    expected = {
        *("blocking_call", "lock", "cpu", "gil_hold", "gil_wait", "gc", "import"),
        *("congestion", "not_scheduled"),
    }
    assert set(causes) == expected
    assert all(causes.count(cause) >= 4 for cause in expected)


def test_the_page_says_how_large_it_is() -> None:
    stalls = [case for case in CASES.values() if not case.innocent]
    page = " ".join(PAGE.read_text().split())
    assert f"holds {len(stalls)} stalls" in page
    assert f"and {len(CASES) - len(stalls)} cases of slow or busy code" in page
    assert f"{sum(case.served for case in stalls)} of the stalls are requests" in page


def test_the_core_has_a_case_of_every_cause_and_one_that_is_innocent() -> None:
    assert len(CORE) == 10
    causes = [MARKS[name].cause for name in CORE if not CASES[name].innocent]
    assert len(set(causes)) == len(causes) == 9


def test_each_case_that_blocks_has_one_mark_of_its_own() -> None:
    assert set(MARKS) == {name for name, case in CASES.items() if not case.innocent}
