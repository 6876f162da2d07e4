"""Adding up: exact totals over everything, in bounded memory."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from loopguard.record import Stall
from loopguard.show import summary as summing
from loopguard.show.choose import Choice, moment
from loopguard.show.read import Whole
from loopguard.show.summary import Summary, summarize
from tests.records import REQUEST
from tests.show.records import STARTED_AT, delayed, in_process, stall

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def summed(*stalls: Stall, keep: int = 100, choice: Choice | None = None) -> Summary:
    return summarize(map(Whole, stalls), choice or Choice(), keep)


def test_culprits_are_told_apart_by_fingerprint_and_ordered_by_blocked_time() -> None:
    found = summed(
        stall(1, fingerprint="a", duration=0.4),
        stall(2, fingerprint="b", duration=0.5),
        stall(3, fingerprint="a", duration=0.3),
    )
    assert [
        (each.worst.id[-1], each.stalls, round(each.seconds, 6)) for each in found.culprits
    ] == [
        ("1", 2, 0.7),
        ("2", 1, 0.5),
    ]


def test_what_the_system_did_not_run_blames_nobody() -> None:
    found = summed(stall(1), stall(2, cause="not_scheduled", fingerprint="x", duration=9.0))
    assert (found.stalls, found.not_scheduled, found.not_scheduled_seconds) == (2, 1, 9.0)
    assert found.seconds == pytest.approx(0.4)
    assert [each.worst.id[-1] for each in found.culprits] == ["1"]


def test_victims_are_told_by_route_with_who_made_them_wait() -> None:
    found = summed(
        stall(
            1, fingerprint="a", delayed=(delayed("/x", 0.3), delayed("/y", 0.1)), delayed_requests=2
        ),
        stall(2, fingerprint="b", delayed=(delayed("/x", 0.2),), delayed_requests=5),
    )
    assert found.delayed_requests == 7
    assert [
        (each.route, each.requests, round(each.seconds, 6), each.longest) for each in found.victims
    ] == [
        ("/x", 2, 0.5, 0.3),
        ("/y", 1, 0.1, 0.1),
    ]
    assert found.victims[0].by == {"a": 0.3, "b": 0.2}


def test_where_no_record_tells_of_delayed_requests_their_number_is_unknown() -> None:
    assert summed(stall(1, delayed_requests=None)).delayed_requests is None
    assert summed(stall(1, delayed_requests=0)).delayed_requests == 0


def test_each_process_was_watched_for_as_long_as_its_latest_record_says() -> None:
    found = summed(
        stall(1, process=in_process("a", 100.0)),
        stall(2, process=in_process("a", 300.0)),
        stall(3, process=in_process("b", 50.0)),
        stall(4, process=in_process("a", 7.0), pid=2),
    )
    assert found.loop_seconds == 357.0


def test_of_the_stalls_only_the_longest_are_kept() -> None:
    found = summed(*(stall(number, duration=number / 10) for number in range(1, 50)), keep=3)
    assert [each.duration for each in found.longest] == [4.9, 4.8, 4.7]
    assert found.stalls == 49


def test_groups_beyond_the_bound_count_in_the_totals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summing, "_MOST_CULPRITS", 2)
    found = summed(*(stall(number, fingerprint=str(number)) for number in range(5)))
    assert (found.stalls, found.ungrouped, len(found.culprits)) == (5, 3, 2)


@pytest.mark.parametrize(
    "asked, taken",
    [
        ({}, "1234"),
        ({"since": STARTED_AT + 150}, "34"),
        ({"since": STARTED_AT + 120.3}, "234"),  # it was still going on
        ({"until": STARTED_AT + 130}, "12"),
        ({"causes": ["cpu"]}, "2"),
        ({"causes": ["cpu", "gc"]}, "23"),
        ({"routes": ["/v1/users/{id}"]}, "12"),
        ({"routes": ["/v1/*"]}, "123"),
        ({"instances": ["b*"]}, "4"),
        ({"causes": ["cpu"], "instances": ["b"]}, ""),
    ],
)
def test_what_was_asked_for_is_taken(asked: dict[str, Any], taken: str) -> None:
    orders = type(REQUEST)("GET", "/v1/orders", None, None, 0.0, background=False)
    found = summed(
        stall(1),
        stall(2, cause="cpu"),
        stall(3, cause="gc", request=orders),
        stall(4, request=None, process=in_process("b")),
        choice=Choice(**asked),
    )
    assert "".join(sorted(each.id[-1] for each in found.longest)) == taken


@pytest.mark.parametrize(
    "words, seconds_ago",
    [("15m", 900), ("2h", 7200), ("1d", 86400), ("30s", 30), ("1.5h", 5400)],
)
def test_a_moment_may_be_given_as_one_ago(words: str, seconds_ago: float) -> None:
    assert moment(words, NOW) == NOW.timestamp() - seconds_ago


def test_a_moment_may_be_given_in_iso_8601() -> None:
    assert moment("2026-11-21T12:00:00Z", NOW) == NOW.timestamp()
    assert moment("2026-11-21T13:00:00+01:00", NOW) == NOW.timestamp()


@pytest.mark.parametrize("words", ["yesterday", "15", "m", "", "-5m", "9999999999999999999999d"])
def test_what_is_no_moment_is_refused(words: str) -> None:
    with pytest.raises(ValueError, match="neither a time"):
        moment(words, NOW)
