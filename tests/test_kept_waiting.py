"""What may be said of the time that the watchdog was kept from the GIL, and what may not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loopguard.evidence import Look, OtherThread
from loopguard.watch.kept_waiting import share, what_went_on, with_what_went_on
from tests.evidence import BUDGET, MS, STACK, SWITCH, idle, look

pytestmark = pytest.mark.core

# It was asked for at 60 ms, and served at 360 ms after asking for the GIL again every switch interval.
BUSY = OtherThread("busy", 4711, STACK, 280 * MS, 0)
TOO_LATE = replace(idle(360), asked_ns=60 * MS, gil_waits=60, other=BUSY)
JUST_BEGUN = [look(50), look(58)]


def went_on(too_late: Look = TOO_LATE, looks: list[Look] = JUST_BEGUN) -> list[Look]:
    return what_went_on(too_late, looks, BUDGET, SWITCH)


def test_a_callback_that_had_just_begun_was_kept_waiting_too() -> None:
    [seen] = went_on()
    assert seen.key == JUST_BEGUN[-1].key
    assert seen.at_ns == TOO_LATE.at_ns - 2 * SWITCH
    assert seen.asked_ns == TOO_LATE.asked_ns
    assert seen.other is BUSY


def test_where_nothing_was_seen_before_nobody_is_named() -> None:
    assert went_on(looks=[]) == [TOO_LATE]


@pytest.mark.parametrize(
    "too_late, looks",
    [
        pytest.param(TOO_LATE, [look(5), look(58)], id="one that had run for long may have ended"),
        pytest.param(replace(TOO_LATE, other=None), JUST_BEGUN, id="no other thread computed"),
        pytest.param(
            replace(TOO_LATE, other=replace(BUSY, cpu_ns=60 * MS)),
            JUST_BEGUN,
            id="the other thread computed for less than a quarter of it",
        ),
        pytest.param(replace(TOO_LATE, gil_waits=20), JUST_BEGUN, id="it did not ask for the GIL"),
        pytest.param(
            replace(TOO_LATE, starved_ns=290 * MS), JUST_BEGUN, id="it waited for a CPU instead"
        ),
    ],
)
def test_else_nothing_is_known(too_late: Look, looks: list[Look]) -> None:
    assert went_on(too_late, looks) == []


def test_what_was_seen_in_another_callback_before_does_not_count_as_its_age() -> None:
    looks = [look(1, key="an earlier one"), look(58, key="this one")]
    [seen] = went_on(looks=looks)
    assert seen.key == "this one"


def test_a_look_that_finds_the_loop_idle_comes_after_what_went_on() -> None:
    went, now = with_what_went_on(TOO_LATE, JUST_BEGUN, BUDGET, SWITCH)
    assert went.key == JUST_BEGUN[-1].key
    assert (now.key, now.at_ns, now.late_ns, now.gil_waits) == (None, TOO_LATE.at_ns, 0, 0)


def test_a_look_that_finds_a_callback_says_enough_by_itself() -> None:
    running = look(360, late=300, gil_waits=60)
    assert with_what_went_on(running, JUST_BEGUN, BUDGET, SWITCH) == [running]


def test_what_was_waited_for_is_shared_by_how_long_each_look_waited() -> None:
    shares = share([look(40, late=10), look(80, late=30), look(90)], gil_waits=8, starved_ns=400)
    assert [(each.gil_waits, each.starved_ns) for each in shares] == [(2, 100), (6, 300), (0, 0)]


def test_a_look_at_an_idle_loop_that_came_late_because_all_was_stopped_stays_late() -> None:
    """So that it is told of as a stop; where it waited for the GIL, that is another's."""
    stopped = replace(TOO_LATE, gil_waits=1, other=None)
    assert with_what_went_on(stopped, [idle(56)], BUDGET, SWITCH) == [stopped]
    [kept] = with_what_went_on(replace(TOO_LATE, other=None), [look(5), look(58)], BUDGET, SWITCH)
    assert kept.late_ns == 0
