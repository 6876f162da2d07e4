"""What a stall means for a test, which test it belongs to, what is said of it, and the baseline: pure decisions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from loopguard.record import Contributor, Holder
from loopguard.testing.baseline import Baseline, BaselineError, Known, known_by
from loopguard.testing.verdict import Outcome, Seen, outcome_of
from loopguard.testing.windows import Windows
from loopguard.testing.words import explanation, headline
from tests.records import CULPRIT, LIBRARY, make_stall

MS = 1_000_000
STARTS = replace(LIBRARY, module="threading", function="Thread.start")
HOLDER = Holder("worker", 1, CULPRIT, (CULPRIT,))


def seen(withheld: float | None = 0.0, **changes: Any) -> Seen:
    return Seen(make_stall(**changes), began_ns=0, withheld=withheld)


@pytest.mark.parametrize(
    "stall, outcome",
    [
        (seen(), "fails"),
        (seen(duration=0.09), "passes"),
        (seen(withheld=0.29), "fails"),
        (seen(withheld=0.31), "passes"),
        (seen(withheld=None), "fails"),
        (seen(cause="not_scheduled", culprit=None), "passes"),
        (seen(cause="import"), "warns"),
        (seen(cause="gc"), "warns"),
        (seen(cause="gc", withheld=0.35), "passes"),
        (seen(cause="unknown"), "fails"),
        (seen(cause="unknown", culprit=None), "passes"),
        (seen(cause="gil_hold"), "fails"),
        (seen(cause="congestion", culprit=None, duration=0.25), "fails"),
        (seen(cause="congestion", culprit=None, duration=0.15), "passes"),
        (seen(cause="gil_wait", culprit=None, holder=HOLDER), "warns"),
        (seen(cause="gil_wait", culprit=None, holder=replace(HOLDER, culprit=None)), "passes"),
        (
            seen(cause="gil_wait", culprit=None, holder=replace(HOLDER, thread="MainThread")),
            "passes",
        ),
        (seen(cause="lock"), "fails"),
        (seen(cause="lock", stack=(CULPRIT, STARTS)), "warns"),
        (seen(cause="unknown", stack=(CULPRIT, STARTS)), "warns"),
        (seen(cause="cpu", stack=(CULPRIT, STARTS)), "fails"),
        (seen(stack=(CULPRIT, replace(LIBRARY, module="bdb"))), "passes"),
        (seen(stack=(CULPRIT, replace(LIBRARY, module="_pydevd_bundle.pydevd_frame"))), "passes"),
        (seen(stack=(CULPRIT, replace(LIBRARY, module="pdbx"))), "fails"),
    ],
)
def test_what_the_system_took_and_what_is_nobodys_line_fails_nobody(
    stall: Seen, outcome: Outcome
) -> None:
    assert outcome_of(stall, 0.1, evidence=True) == outcome


def test_without_evidence_of_the_system_twice_the_budget_is_allowed() -> None:
    assert outcome_of(seen(duration=0.19), 0.1, evidence=False) == "passes"
    assert outcome_of(seen(duration=0.21), 0.1, evidence=False) == "fails"


def test_the_headline_tells_place_seconds_budget_call_and_function() -> None:
    stall = make_stall(duration=0.3119, call="requests.api.get")
    assert headline(stall, 0.1) == (
        "app/users.py:42: event loop blocked 0.312 s (budget 0.100 s) by requests.api.get in list_users"
    )
    assert headline(make_stall(call=None), 0.25) == (
        "app/users.py:42: event loop blocked 0.400 s (budget 0.250 s) in list_users"
    )


def test_the_headline_of_what_has_no_line_names_whom_it_can() -> None:
    crowd = make_stall(
        cause="congestion", culprit=None, call=None, contributors=(Contributor("handle", 0.62),)
    )
    assert headline(crowd, 0.1) == (
        "event loop blocked 0.400 s (budget 0.200 s) by many callbacks in turn, 62% of it by handle"
    )
    waits = make_stall(cause="gil_wait", culprit=None, call=None, holder=HOLDER)
    assert headline(waits, 0.1) == (
        "app/users.py:42: event loop blocked 0.400 s (budget 0.100 s) by thread worker in list_users"
    )


def test_no_name_can_break_a_line() -> None:
    evil = make_stall(culprit=replace(CULPRIT, file="a\nb.py", code="x(\n  1)"), call="c\x1b[2J")
    assert "\n" not in headline(evil, 0.1)
    assert "\x1b" not in headline(evil, 0.1)
    assert explanation(Seen(evil, 0, None)).splitlines()[0] == "    x( 1)"


def test_the_explanation_tells_cause_wait_cpu_route_and_who_left_it_behind() -> None:
    stall = make_stall(waited_on="recvfrom tcp 127.0.0.1:80", cpu_time=0.0123, advice="Use httpx.")
    lines = explanation(Seen(stall, 0, 0.02, "test_a.py::test_before")).splitlines()
    assert lines == [
        "    time.sleep(0.4)",
        "    cause: blocking_call, waited on recvfrom tcp 127.0.0.1:80, 0.012 s on CPU, up to 0.020 s without one",
        "    in GET /v1/users/{id}",
        "    in the context of an earlier test: test_a.py::test_before",
        "    Use httpx.",
    ]
    assert "without one" not in explanation(Seen(stall, 0, 0.0004))


@pytest.mark.parametrize(
    "start, error, end, found",
    [
        (150, 1, 400, ("a", "call")),
        (
            150,
            60,
            400,
            ("a", "teardown"),
        ),  # which it began in is not known: it took most of this one
        (150, 60, 210, ("a", "call")),
        (250, 0, 900, ("a", "teardown")),
        (999, 0, 2000, ("b", "setup")),
        (50, 0, 90, None),
        (50, 60, 400, ("a", "call")),
    ],
)
def test_a_stall_belongs_to_the_phase_in_which_it_began(
    start: int, error: int, end: int, found: tuple[str, str] | None
) -> None:
    windows = Windows()
    windows.begin(100 * MS, "a", "call")
    windows.begin(200 * MS, "a", "teardown")
    windows.begin(900 * MS, "b", "setup")
    window = windows.at(start * MS, error * MS, end * MS)
    assert (None if window is None else (window.test, window.when)) == found


KEY = Known("app.users.list_users", "time.sleep")


def test_a_baseline_is_sorted_text_without_lines_and_dates() -> None:
    other = Known("app.a.<locals>.b", "-")
    text = Baseline({KEY: 0.5, other: 1.23456}).text()
    assert text.splitlines()[1:] == [
        "app.a.<locals>.b - 1.235",
        "app.users.list_users time.sleep 0.500",
    ]
    assert Baseline.parse(text).longest == {KEY: 0.5, other: 1.235}


def test_a_merge_that_leaves_a_line_twice_keeps_the_longer() -> None:
    text = "a.b c.d 0.2\n\n# by hand\na.b c.d 0.5\n"
    assert Baseline.parse(text).longest == {Known("a.b", "c.d"): 0.5}


@pytest.mark.parametrize("line", ["a.b c.d", "a.b c.d soon", "<<<<<<< HEAD", "a b c 0.2"])
def test_a_line_that_cannot_be_read_is_named(line: str) -> None:
    with pytest.raises(BaselineError, match="line 2: "):
        Baseline.parse(f"# header\n{line}\n")


@pytest.mark.parametrize("seconds, standing", [(0.9, "known"), (1.0, "known"), (1.01, "worse")])
def test_a_known_stall_may_take_twice_its_longest(seconds: float, standing: str) -> None:
    baseline = Baseline({KEY: 0.5})
    assert baseline.standing(KEY, seconds) == standing
    assert baseline.standing(KEY._replace(call="other"), 0.1) == "new"


def test_an_update_changes_no_more_than_it_must() -> None:
    old = Baseline({KEY: 0.5, Known("gone", "-"): 0.2})
    within = old.updated([(KEY, 0.9)], everything=False)
    assert within.longest == old.longest
    beyond = old.updated([(KEY, 1.2), (KEY, 1.1), (Known("new", "-"), 0.3)], everything=True)
    assert beyond.longest == {KEY: 1.2, Known("new", "-"): 0.3}


def test_what_is_gone_is_named() -> None:
    assert Baseline({KEY: 0.5, Known("gone", "-"): 0.2}).gone([KEY]) == [Known("gone", "-")]


def test_a_stall_is_known_by_function_and_call_whatever_its_line_and_cause() -> None:
    changed = make_stall(cause="cpu", culprit=replace(CULPRIT, line=77))
    assert known_by(changed) == known_by(make_stall()) == KEY
    crowd = make_stall(
        cause="congestion", culprit=None, call=None, contributors=(Contributor("a b", 1.0),)
    )
    assert known_by(crowd) == Known("a_b", "-")
