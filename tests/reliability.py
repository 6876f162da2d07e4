"""Each test of a fault says what happened, and a test run writes that into docs/reliability.md.

A test is marked with `fault(name, injected)`, or `company(name, injected)` for what we have to live beside, and tells the
rest by the fixture `row`. `pytest -n 0 -m "fault or company" --reliability` runs them at full length and writes the page.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"
TABLES = ("fault", "company")
NOTHING = "nothing"
_HEAD = {
    "fault": "| fault | injected | what happened | what was lost |\n| --- | --- | --- | --- |",
    "company": "| beside it | how | what happened | what was lost |\n| --- | --- | --- | --- |",
}


class Stated(NamedTuple):
    """What a test states of itself before it has run: in which table, which fault, and how it is injected."""

    table: str
    fault: str
    injected: str


class Seen(NamedTuple):
    """What the run saw."""

    happened: str
    lost: str


Rows = Mapping[Stated, Seen]
Say = Callable[..., None]

_seen: dict[Stated, Seen] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--reliability",
        action="store_true",
        help="run the tests of faults at full length, and write docs/reliability.md",
    )


@pytest.fixture
def at_length(request: pytest.FixtureRequest) -> bool:
    """Whether a fault is to last as long as the page says; else a few seconds must do."""
    return bool(request.config.getoption("--reliability"))


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Say:
    """Says what happened, and what was lost: `row("each sink was told", "3 records, counted")`."""
    marks = [mark for mark in request.node.iter_markers() if mark.name in TABLES]

    def say(happened: str, lost: str = NOTHING) -> None:
        for mark in marks:
            request.node.user_properties.append(
                ("reliability", [mark.name, *mark.args, happened, lost])
            )

    return say


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Also where the test ran in another process (pytest-xdist): its properties come with the report."""
    if report.when == "call" and report.passed:
        for name, said in report.user_properties:
            if name == "reliability" and isinstance(said, list):
                table, fault, injected, happened, lost = said
                _seen[Stated(table, fault, injected)] = Seen(happened, lost)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--reliability") and not hasattr(session.config, "workerinput"):
        page = PAGE.read_text()
        rows = {**rows_of(page), **_seen}
        PAGE.write_text(with_tables(page, rows, list(stated())))


def stated(directory: Path = TESTS) -> Iterator[Stated]:
    """What all tests state, in the order in which they stand in their files."""
    for path in sorted(directory.rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text()))
        calls = [node for node in nodes if isinstance(node, ast.Call) and _table(node)]
        for call in sorted(calls, key=lambda node: node.lineno):
            yield Stated(_table(call), *(ast.literal_eval(each) for each in call.args))


def _table(call: ast.Call) -> str:
    """Of a mark; empty for any other call."""
    before, _, name = ast.unparse(call.func).rpartition(".")
    return name if before == "pytest.mark" and name in TABLES else ""


def rows_of(page: str) -> dict[Stated, Seen]:
    """The rows that stand on a page."""
    found = {}
    for table in TABLES:
        for line in section(page, table).splitlines()[2:]:
            cells = [cell.strip().replace("\\|", "|") for cell in line.split(" | ")]
            fault, injected, happened, lost = (cell.strip("| ") for cell in cells)
            found[Stated(table, fault, injected)] = Seen(happened, lost)
    return found


def with_tables(page: str, rows: Rows, order: Iterable[Stated]) -> str:
    """The page with its tables written anew."""
    known = [each for each in dict.fromkeys(order) if each in rows]
    for table in TABLES:
        lines = [_HEAD[table]]
        for each in known:
            if each.table == table:
                cells = (each.fault, each.injected, *rows[each])
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        page = with_section(page, table, "\n".join(lines))
    return page


def section(page: str, name: str) -> str:
    """What stands between the marks of that name."""
    return page.partition(f"<!-- {name} -->\n")[2].partition(f"<!-- end of {name} -->")[0]


def with_section(page: str, name: str, text: str) -> str:
    """The page with another text between these marks."""
    before, begin, rest = page.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->")
    assert begin, f"no section {name} on the page"
    assert end, f"no section {name} on the page"
    return f"{before}{begin}{text}\n{end}{after}"
