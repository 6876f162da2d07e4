"""The judge of the corpus misses nothing: what is wrong in a record is what it says."""

from __future__ import annotations

from typing import Any

import pytest

from tests.corpus.cases import CASES, MARKS
from tests.corpus.judge import Row, excuse, judge
from tests.corpus.matrix import BEGIN, END, PAGE, figures, write
from tests.corpus.session import ROUTE

pytestmark = pytest.mark.core

TRACE = f"{7:032x}"


def told(case: str, **wrong: Any) -> Row:
    """A run of a case, in which all is told as its label says but for what is `wrong`."""
    mark = MARKS[case]
    record = {
        "cause": mark.cause,
        "started_at": 100.0,
        "duration": 0.35,
        "duration_error": 0.0025,
        "culprit": {
            "file": mark.file,
            "line": mark.line,
            "function": mark.function,
            "code": mark.code[0] if mark.code else "",
        },
        "call": mark.calls[0] if mark.calls else None,
        "waited_on": CASES[case].waited_on,
        "holder": None,
        "contributors": None,
        "request": {"route": ROUTE, "method": "GET", "trace_id": TRACE},
    }
    times = {"entered": 100.0, "left": 100.35, "withheld": 0.0, "trace_id": TRACE}
    return {"case": case, **times, "records": [{**record, **wrong}]}


def fields(row: Row) -> list[str]:
    return [miss.field for miss in judge(row)]


def test_what_is_told_as_the_label_says_is_no_miss() -> None:
    assert fields(told("sleep")) == []


@pytest.mark.parametrize(
    "wrong, missed",
    [
        ({"cause": "lock"}, "cause"),
        ({"culprit": None}, "culprit"),
        ({"call": "time.monotonic"}, "call"),
        ({"waited_on": "futex"}, "waited_on"),
        ({"holder": {"thread": "other", "culprit": None}}, "holder"),
        ({"request": None}, "request"),
        ({"started_at": 99.99, "duration": 0.36}, "start"),
        ({"duration": 0.34}, "end"),
        ({"started_at": 90.0}, "other records"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_what_is_told_otherwise_is_a_miss(wrong: Row, missed: str) -> None:
    assert missed in fields(told("sleep", **wrong))


def test_a_stall_that_nothing_was_told_of_is_a_miss() -> None:
    assert fields({**told("sleep"), "records": []}) == ["records"]


def test_whatever_is_told_of_an_innocent_case_is_a_miss_but_that_it_was_not_run() -> None:
    row = told("sleep")
    assert fields({**row, "case": "async_sleep"}) == ["other records"]
    row["records"][0]["cause"] = "not_scheduled"
    assert fields({**row, "case": "async_sleep"}) == []


def test_only_what_the_machine_took_is_an_excuse() -> None:
    """A beat for whatever is wrong; for a time, what that is wrong by."""
    cause = told("sleep", cause="cpu")
    start = told("sleep", started_at=99.99, duration=0.36)  # 10 ms, of which 3.5 are its error
    for row, enough in ((cause, 0.05), (start, 0.0066)):
        misses = judge(row)
        assert excuse({**row, "withheld": enough}, misses) is not None
        assert excuse({**row, "withheld": enough - 0.001}, misses) is None
    call = told("sleep", call="time.monotonic")
    assert excuse({**call, "withheld": 9.0}, judge(call)) is None


def result(case: str, *missed: str, excused: str | None = None) -> Row:
    return {
        "case": case,
        "loop": "uvloop",
        "python": "3.12.1",
        "cause": "innocent" if CASES[case].innocent else MARKS[case].cause,
        "lacking": None,
        "fields": list(missed),
        "misses": [f"{field}: told a|b" for field in missed],
        "excuse": excused,
    }


def test_the_figures_count_what_is_right_and_name_what_is_not() -> None:
    rows = [
        result("sleep"),
        result("sleep", "cause"),
        result("tcp_recv", "records", excused="the machine"),
        result("async_sleep", "other records"),
    ]
    _, _, pair, _, *missed = figures(rows).splitlines()
    assert pair == "| 3.12.1, uvloop | 2 | 1 | 2 | 2 | 1 | 2 | 2 | 2 | 2 | 2 | 1 | 1 | 1 |"
    assert missed[2:] == [
        r"| `async_sleep` | 3.12.1, uvloop (1 of 1) | other records: told a\|b |",
        r"| `sleep` | 3.12.1, uvloop (1 of 2) | cause: told a\|b |",
    ]


def test_the_page_has_a_place_for_the_figures(tmp_path: Any) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text())
    write("new figures", page)
    assert f"{BEGIN}\nnew figures\n{END}" in page.read_text()
    assert page.read_text().partition(BEGIN)[0] == PAGE.read_text().partition(BEGIN)[0]
