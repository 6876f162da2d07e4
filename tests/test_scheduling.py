"""Why the system did not run the process, in words."""

from __future__ import annotations

import pytest

from loopguard.evidence import Held, Incident, Throttled
from loopguard.explain.scheduling import advice_of
from loopguard.record import Cause
from tests.evidence import BUDGET, MS, SWITCH, held, idle, look

pytestmark = pytest.mark.core

TIGHT = Throttled(periods=8, throttled=3, throttled_ns=300 * MS, period_ns=100 * MS)
SUSPENDED = held([look(355, late=300)], end=360)
STARVED = held([look(60), look(390)], run_delay=220)


def advice(
    verdict: Held, throttled: Throttled | None = None, cause: Cause = "not_scheduled"
) -> str | None:
    incident = Incident(
        id="1",
        ongoing=False,
        held=verdict,
        budget_ns=BUDGET,
        thread="MainThread",
        thread_id=1,
        loop="asyncio.Loop",
        phase=None,
        in_flight=0,
        wall_offset_ns=0,
        throttled=throttled,
    )
    return advice_of(cause, incident, SWITCH)


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


@pytest.mark.parametrize("cause", ["blocking_call", "cpu", "unknown"])
def test_of_any_other_cause_it_says_nothing(cause: Cause) -> None:
    assert advice(held([idle(100)]), TIGHT, cause) is None
