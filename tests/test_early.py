"""What lasts is told of at five budgets and at doublings, and kept from the budget on; each under one id."""

from __future__ import annotations

import pytest

from loopguard.watch.early import Early

MS = 1_000_000
BUDGET = 100 * MS


def told_at(early: Early, key: object, lengths: range) -> tuple[list[int], list[int]]:
    """At which lengths, in milliseconds, it was to be kept, and at which to be told of."""
    kept, told = [], []
    for length in lengths:
        keep, tell = early.due(key, length * MS, BUDGET)
        kept += [length] * keep
        told += [length] * tell
    return kept, told


def test_it_is_told_of_at_five_budgets_and_at_doublings() -> None:
    assert told_at(Early(boxed=False), "a", range(10, 4500, 10)) == ([], [500, 1000, 2000, 4000])


def test_it_is_kept_from_the_budget_on_and_anew_when_half_as_long_again() -> None:
    kept, told = told_at(Early(boxed=True), "a", range(10, 800, 10))
    assert kept == [100, 150, 230, 350, 530]
    assert told == [500]


def test_at_a_low_budget_it_is_not_kept_before_fifty_milliseconds() -> None:
    early = Early(boxed=True)
    assert early.due("a", 49 * MS, 5 * MS) == (False, True)
    assert early.due("a", 50 * MS, 5 * MS) == (True, True)


def test_where_looks_come_late_it_is_told_of_once_for_all_doublings_in_between() -> None:
    early = Early(boxed=False)
    assert early.due("a", 1700 * MS, BUDGET) == (False, True)
    assert early.due("a", 1999 * MS, BUDGET) == (False, False)
    assert early.due("a", 2000 * MS, BUDGET) == (False, True)


def test_each_callback_has_one_id_until_the_loop_beats() -> None:
    early = Early(boxed=True)
    assert early.id_of("a") is None
    early.due("a", 120 * MS, BUDGET)
    first = early.id_of("a")
    early.due("a", 600 * MS, BUDGET)
    early.due("b", 120 * MS, BUDGET)
    assert first is not None
    assert early.id_of("a") == first
    assert early.id_of("b") not in (None, first)
    early.clear()
    assert early.id_of("a") is None


def test_what_is_kept_is_let_go_of_once_and_not_while_it_runs() -> None:
    early = Early(boxed=True)
    assert early.let_go(None) is None
    early.due("a", 120 * MS, BUDGET)
    assert early.let_go("a") is None
    assert early.let_go("b") == early.id_of("a")
    assert early.let_go("b") is None


@pytest.mark.parametrize("boxed, least", [(True, 100), (False, 500)])
def test_no_verdict_is_asked_for_before_anything_can_be_due(boxed: bool, least: int) -> None:
    early = Early(boxed)
    assert not early.may_be_due("a", (least - 1) * MS, BUDGET)
    assert early.may_be_due("a", least * MS, BUDGET)
    early.due("a", least * MS, BUDGET)
    assert not early.may_be_due("a", least * MS, BUDGET)
