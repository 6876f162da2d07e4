"""The limits keep a storm out of the log, and lose count of nothing."""

from __future__ import annotations

import random

import pytest

from loopguard.tell.limits import Limits

pytestmark = pytest.mark.core


def admitted(limits: Limits, fingerprint: str, now: float, times: int) -> int:
    return sum(limits.admit(fingerprint, now) is not None for _ in range(times))


def test_the_first_ten_of_a_kind_are_let_in_and_the_rest_of_the_minute_is_not() -> None:
    limits = Limits()
    assert [limits.admit("a", float(second)) for second in range(12)] == [0] * 10 + [None, None]
    assert limits.admit("a", 59.9) is None


def test_the_next_one_let_in_says_how_many_stayed_out() -> None:
    limits = Limits()
    assert admitted(limits, "a", 0.0, 17) == 10
    assert limits.admit("a", 60.0) == 7
    assert limits.admit("a", 60.0) == 0


def test_kinds_do_not_take_each_others_places() -> None:
    limits = Limits()
    assert admitted(limits, "a", 0.0, 50) == 10
    assert admitted(limits, "b", 0.0, 50) == 10


def test_all_kinds_together_get_a_hundred_a_minute() -> None:
    limits = Limits()
    assert sum(admitted(limits, f"kind {number}", 1.0, 1) for number in range(150)) == 100
    assert limits.admit("another", 60.9) is None
    assert limits.admit("another", 61.0) == 1


def test_what_its_own_limit_keeps_out_takes_no_place_of_the_hundred() -> None:
    limits = Limits()
    assert admitted(limits, "noisy", 0.0, 1000) == 10
    assert sum(admitted(limits, f"kind {number}", 0.0, 1) for number in range(150)) == 90


def test_no_minute_ever_has_more_than_the_limits() -> None:
    """Also not one that straddles two bursts, as it would with a counter that starts anew each minute."""
    chance = random.Random(7)
    limits, now, log = Limits(), 0.0, list[tuple[float, str]]()
    for _ in range(2_000):
        now += chance.choice([0.0, 0.0, 0.01, 1.0])
        kind = f"kind {chance.randrange(25)}"
        if limits.admit(kind, now) is not None:
            log.append((now, kind))
    fullest = 0
    for begin, kind in log:
        minute = [other for time, other in log if begin <= time < begin + 60]
        fullest = max(fullest, len(minute))
        assert minute.count(kind) <= 10
    assert fullest == 100


def test_every_record_is_either_let_in_or_counted_by_a_later_one() -> None:
    chance = random.Random(8)
    limits, now, let_in, told = Limits(), 0.0, 0, 0
    for _ in range(5_000):
        now += chance.choice([0.0, 1.0, 20.0])
        suppressed = limits.admit(f"kind {chance.randrange(5)}", now)
        if suppressed is not None:
            let_in += 1
            told += suppressed
    rest = [limits.admit(f"kind {number}", now + 60) for number in range(5)]
    assert let_in + told + sum(number or 0 for number in rest) == 5_000


def test_the_kinds_seen_last_are_remembered_and_the_oldest_forgotten() -> None:
    limits = Limits(each=1, in_all=1000, remembered=3)
    for kind in ("a", "b", "c", "a", "d"):
        limits.admit(kind, 0.0)
    assert limits.admit("a", 0.0) is None, "seen again after b: still remembered"
    assert limits.admit("b", 0.0) == 0, "forgotten, so it begins anew"
