"""Why the system did not run the process, in words."""

from __future__ import annotations

import pytest

from loopguard.evidence import Held, Throttled
from loopguard.explain.scheduling import advice_of, dated
from tests.evidence import BUDGET, MS, SWITCH, held, look

pytestmark = pytest.mark.core

TIGHT = Throttled(periods=8, throttled=3, throttled_ns=300 * MS, period_ns=100 * MS)
SUSPENDED = held([look(355, late=300)], end=360)
STARVED = held([look(60), look(390)], run_delay=220)


def advice(verdict: Held, throttled: Throttled | None = None) -> str | None:
    return advice_of(verdict, throttled, SWITCH)


def test_a_stop_is_told_with_its_length() -> None:
    assert advice(SUSPENDED) == (
        "the process was stopped for 0.3 s (SIGSTOP, a debugger, or a frozen container)"
    )


def test_so_is_one_of_the_loops_thread_alone() -> None:
    standing = [look(at, stopped=True) for at in range(50, 400, 10)]
    said = advice(held(standing))
    assert said is not None
    assert said.startswith("the process was stopped for 0.4 s ")


def test_starvation_is_told_with_its_length() -> None:
    assert advice(STARVED) == (
        "other processes took the CPU for 0.22 s of it; "
        "give this one a larger share of the CPU, or fewer neighbours"
    )


def test_a_quota_that_was_used_up_is_told_in_periods() -> None:
    said = "the container used up its CPU quota: 3 of 5 periods throttled; raise its CPU limit"
    assert advice(STARVED, TIGHT) == said


def test_a_quota_that_cost_little_is_not_to_blame() -> None:
    little = TIGHT._replace(throttled_ns=20 * MS)
    assert advice(STARVED, little) == advice(STARVED)
    assert advice(SUSPENDED, little) == advice(SUSPENDED)


def test_what_was_throttled_long_ago_is_no_more_than_there_was_room_for() -> None:
    long_ago = Throttled(periods=9000, throttled=40, throttled_ns=9000 * MS, period_ns=100 * MS)
    said = advice(STARVED, long_ago)
    assert said is not None
    assert "5 of 5 periods" in said


def test_where_nothing_tells_why_it_says_nothing() -> None:
    assert advice(held([], end=400, run_delay=None)) is None


def begun(verdict: Held) -> tuple[float, float]:
    """The earliest and the latest begin, in milliseconds."""
    told = dated(verdict, BUDGET, SWITCH)
    return (told.start_ns - told.error_ns) / MS, (told.start_ns + told.error_ns) / MS


def test_a_stop_began_between_the_last_sign_of_life_and_the_next_that_was_due() -> None:
    """However well the callback's own start is known."""
    assert begun(held([look(355, late=300)], start=20, end=360, error=2)) == (18, 55)
    assert begun(held([look(60), look(368, late=300)], start=20, end=370, error=2)) == (60, 68)


def test_who_wanted_a_cpu_or_the_gil_then_may_have_been_stopped_later() -> None:
    kept = look(355, late=300, starved=40, gil_waits=4)
    assert begun(held([kept], start=20, end=360, error=2)) == (18, 115)


def test_a_stop_of_the_loops_thread_alone_began_before_the_first_look_that_saw_it() -> None:
    standing = [look(at, stopped=True) for at in range(68, 400, 10)]
    assert begun(held([look(60), *standing], start=20, error=2)) == (60, 68)


def test_a_stop_is_never_told_of_as_less_than_the_budget() -> None:
    told = dated(held([look(130, late=75)], start=20, end=130, error=2), BUDGET, SWITCH)
    assert told.end_ns - told.start_ns == BUDGET


def test_what_was_starved_began_when_its_callback_did() -> None:
    assert dated(STARVED, BUDGET, SWITCH) == STARVED
