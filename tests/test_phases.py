"""Several lines on which one callback blocked: the long ones are told, the longest first."""

from __future__ import annotations

import pytest

from loopguard.evidence import Look, RawFrame
from loopguard.explain.ownership import Ownership
from loopguard.explain.phases import phases_of
from tests.evidence import frame, held, look

pytestmark = pytest.mark.core

FETCH, STORE, ENTRY = frame("fetch"), frame("store", line=9), frame("handler", line=20)
OWNERSHIP = Ownership(())


def seen_in(*parts: tuple[RawFrame, range]) -> list[Look]:
    return [look(at, stack=(inner, ENTRY)) for inner, times in parts for at in times]


def shares(looks: list[Look]) -> list[tuple[str, float]] | None:
    phases = phases_of(held(looks, start=0, end=400), OWNERSHIP)
    if phases is None:
        return None
    return [(each.code.co_name, round(share, 1)) for each, share in phases]


def test_two_long_phases_are_told_with_the_longer_first() -> None:
    looks = seen_in((FETCH, range(0, 120, 10)), (STORE, range(120, 400, 10)))
    assert shares(looks) == [("store", 0.7), ("fetch", 0.3)]


def test_a_line_that_comes_again_is_one_phase() -> None:
    looks = seen_in(
        (FETCH, range(0, 100, 10)), (STORE, range(100, 300, 10)), (FETCH, range(300, 400, 10))
    )
    assert shares(looks) == [("fetch", 0.5), ("store", 0.5)] or shares(looks) == [
        ("store", 0.5),
        ("fetch", 0.5),
    ]


def test_one_line_has_no_phases() -> None:
    assert shares(seen_in((FETCH, range(0, 400, 10)))) is None


def test_a_short_line_beside_a_long_one_is_no_phase() -> None:
    assert shares(seen_in((FETCH, range(0, 20, 10)), (STORE, range(20, 400, 10)))) is None


def test_lines_that_take_turns_are_a_loop_and_no_phases() -> None:
    looks = [look(at, stack=((FETCH if at % 20 else STORE), ENTRY)) for at in range(0, 400, 10)]
    assert shares(looks) is None


def test_without_looks_nothing_is_known() -> None:
    assert shares([]) is None
