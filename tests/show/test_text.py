"""The text: 80 columns, nothing but printable characters, and every figure of the summary."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopguard.show.choose import Choice
from loopguard.show.diff import compare
from loopguard.show.parse import stall_from
from loopguard.show.read import LeftOut, Whole
from loopguard.show.summary import Summary, summarize
from loopguard.show.text import columns, text_diff, text_report
from loopguard.show.words import number, seconds
from tests.records import make_stall
from tests.show.records import delayed, stall

HOSTILE = st.text(min_size=1, max_size=200) | st.text(
    alphabet="ｗ漢\u202e\x1b[31m\r\n a", max_size=200
)


def report(summary: Summary, **options: Any) -> str:
    return text_report(summary, LeftOut(), **{"top": 10, "title": "", "colour": False, **options})


def summed(*stalls: Any) -> Summary:
    return summarize(map(Whole, stalls), Choice(), 0)


def test_it_gives_the_sentence_the_culprits_and_the_victims() -> None:
    victims = (delayed("/v1/orders", 0.35), delayed("/v1/orders", 0.25))
    said = report(summed(stall(1, delayed=victims, delayed_requests=2), stall(2, duration=1.1)))
    head, culprits, victims_said = said.split("\n\n")
    assert head.startswith("Held 1.500 s in 2 stalls, 1 process, 2023-11-1")
    assert " ".join(head.split()).endswith("; worst: list_users, app/users.py:42.")
    assert culprits.splitlines() == [
        "   blocked    stalls   longest   delayed  cause",
        "   1.500 s         2   1.100 s         2  blocking_call",
        "     app/users.py:42 in list_users",
        "     calls time.sleep",
        "     GET /v1/users/{id}",
        "     await asyncio.sleep(…) instead",
    ]
    assert victims_said.splitlines() == [
        "    waited  requests   longest  route that had to wait",
        "    600 ms         2    350 ms  GET /v1/orders",
    ]


def test_without_a_stall_it_says_so() -> None:
    assert report(summed()) == "No stall.\n"


def test_what_the_system_did_is_said_apart() -> None:
    said = report(summed(stall(1, cause="not_scheduled", duration=3.0)))
    assert said.startswith("No code held an event loop, ")
    assert "did not run the process in time, 1 ×, 3.000 s (no code is to blame)" in said


def test_more_culprits_than_asked_for_are_counted() -> None:
    said = report(summed(*(stall(at, fingerprint=str(at)) for at in range(5))), top=2)
    assert said.count("app/users.py:42 in list_users") == 2
    assert "and 3 culprits more" in said


def test_colours_are_there_only_when_asked_for() -> None:
    found = summed(stall(1))
    assert "\x1b" in report(found, colour=True)
    assert "\x1b" not in report(found)


@given(st.lists(HOSTILE, min_size=4, max_size=4))
def test_no_name_breaks_a_line_or_forges_one(names: list[str]) -> None:
    file, function, route, call = names
    frame = {"file": file, "line": 3, "module": None, "function": function, "code": None}
    record = {
        **make_stall().to_dict(),
        "call": call,
        "culprit": frame,
        "request": {"method": "GET", "route": route},
        "delayed": [{"method": route, "route": route, "delay": 0.1}],
        "advice": call,
    }
    found = summed(stall_from(record))
    for said in (report(found), text_diff(compare(summed(), found), colour=False)):
        assert all(line.isprintable() and columns(line) <= 80 for line in said.split("\n"))


@pytest.mark.parametrize(
    "value, words",
    [
        (0.0, "0 ms"),
        (0.7134, "713 ms"),
        (0.9996, "1.000 s"),
        (5.5, "5.500 s"),
        (1374.66, "1,374.7 s"),
    ],
)
def test_seconds_are_worded_by_their_size(value: float, words: str) -> None:
    assert seconds(value) == words


def test_nouns_are_in_the_plural_where_there_are_several() -> None:
    assert [number(1, "stall"), number(5000, "stall"), number(2, "process")] == [
        "1 stall",
        "5,000 stalls",
        "2 processes",
    ]
