"""Who had to wait for a stall, and for how long: decided from made-up evidence."""

from __future__ import annotations

import weakref
from collections.abc import Coroutine
from contextvars import Context
from typing import Any

import pytest

from loopguard.evidence import ActiveRequest, Arrival, Crossing, Held
from loopguard.explain.delays import (
    Delay,
    delayed_in_flight,
    delayed_in_queue,
    has_drained,
    longest_first,
)
from tests.evidence import MS, held, look

pytestmark = pytest.mark.core

END = 500
STALL: Held = held([look(300)], 100, END, error=2)


class Serving:
    """Coroutines of requests, kept alive while the test runs."""

    def __init__(self) -> None:
        self._alive: list[Coroutine[Any, Any, None]] = []

    def request(self, begin_ms: float) -> ActiveRequest:
        coroutine = serve()
        self._alive.append(coroutine)
        scope = {"number": len(self._alive)}
        return ActiveRequest(scope, round(begin_ms * MS), Context(), weakref.ref(coroutine))

    def end(self) -> None:
        for coroutine in self._alive:
            coroutine.close()
        self._alive.clear()


async def serve() -> None:
    pass


@pytest.fixture
def serving() -> Any:
    made = Serving()
    yield made
    made.end()


def in_queue(arrivals: list[Arrival], stall: Held = STALL) -> list[Delay]:
    return delayed_in_queue(stall, arrivals, ())


def delays_ms(delays: list[Delay]) -> list[float]:
    return [each.delay_ns / MS for each in delays]


class TestInFlight:
    """Requests that were there before the stall."""

    def test_one_that_was_ready_waited_for_as_long_as_it_lasted_at_most(
        self, serving: Serving
    ) -> None:
        (delay,) = delayed_in_flight(STALL, [Crossing(serving.request(50), True)])
        assert delay.delay_ns == 400 * MS
        assert (delay.exact, delay.queued, delay.ready) == (False, False, True)

    def test_one_that_went_on_waiting_lost_nothing(self, serving: Serving) -> None:
        assert delayed_in_flight(STALL, [Crossing(serving.request(50), False)]) == []

    def test_where_it_is_not_known_it_says_so(self, serving: Serving) -> None:
        (delay,) = delayed_in_flight(STALL, [Crossing(serving.request(50), None)])
        assert delay.ready is None

    def test_one_that_began_in_the_midst_waited_since_then(self, serving: Serving) -> None:
        """As one that the culprit's own code has begun."""
        (delay,) = delayed_in_flight(STALL, [Crossing(serving.request(400), True)])
        assert delay.delay_ns == 100 * MS

    def test_one_that_began_after_it_did_not_wait_for_it(self, serving: Serving) -> None:
        assert delayed_in_flight(STALL, [Crossing(serving.request(END), True)]) == []


class TestInQueue:
    """Requests that began after it."""

    @pytest.mark.parametrize(
        "arrived_ms, waited_ms",
        [
            pytest.param(100, 400, id="as it began"),
            pytest.param(140, 360, id="at a tenth of it"),
            pytest.param(300, 200, id="half-way"),
            pytest.param(460, 40, id="at nine tenths"),
            pytest.param(494, 6, id="just before its end"),
            pytest.param(90, 400, id="just before it began, and before anybody could read it"),
        ],
    )
    def test_one_waited_since_its_data_came(
        self, serving: Serving, arrived_ms: int, waited_ms: int
    ) -> None:
        (delay,) = in_queue([Arrival(serving.request(510), arrived_ms * MS)])
        assert delay.delay_ns == waited_ms * MS
        assert (delay.exact, delay.queued, delay.ready) == (True, True, None)

    @pytest.mark.parametrize(
        "arrived_ms",
        [
            pytest.param(80, id="long before: it waited for something else, as for the one before"),
            pytest.param(497, id="so near to the end that the kernel's clock does not tell"),
            pytest.param(520, id="after it"),
            pytest.param(None, id="nobody can ask the connection"),
        ],
    )
    def test_one_is_not_named_whose_data_came(
        self, serving: Serving, arrived_ms: int | None
    ) -> None:
        arrived_ns = None if arrived_ms is None else arrived_ms * MS
        assert in_queue([Arrival(serving.request(530), arrived_ns)]) == []

    def test_of_one_whose_body_came_in_pieces_only_the_most_is_known(
        self, serving: Serving
    ) -> None:
        (delay,) = in_queue([Arrival(serving.request(510), 400 * MS, whole=False)])
        assert (delay.delay_ns, delay.exact) == (400 * MS, False)

    def test_one_that_began_before_it_is_none_of_them(self, serving: Serving) -> None:
        """The connection's last data may be those of the next request, or of its body."""
        assert in_queue([Arrival(serving.request(60), 300 * MS)]) == []

    def test_the_culprit_did_not_wait_for_itself(self, serving: Serving) -> None:
        culprit = serving.request(101)
        assert delayed_in_queue(STALL, [Arrival(culprit, 95 * MS)], [culprit]) == []

    def test_one_that_was_told_of_is_not_told_of_again(self, serving: Serving) -> None:
        one, two = serving.request(510), serving.request(520)
        arrivals = [Arrival(one, 300 * MS), Arrival(two, 310 * MS)]
        (delay,) = delayed_in_queue(STALL, arrivals, (), {one.coroutine})
        assert delay.request is two


def test_the_longest_come_first_and_of_equal_ones_the_oldest(serving: Serving) -> None:
    arrivals = [Arrival(serving.request(500 + n), ms * MS) for n, ms in enumerate((300, 200, 300))]
    delays = longest_first(in_queue(arrivals))
    assert delays_ms(delays) == [300, 200, 200]
    assert [each.request.started_ns // MS for each in delays] == [501, 500, 502]


@pytest.mark.parametrize(
    "arrived_ms, drained",
    [
        pytest.param([], False, id="none has begun"),
        pytest.param([300, 400], False, id="all came in it"),
        pytest.param([300, 520], True, id="the last came after it"),
        pytest.param([520, 300], False, id="one came after it, and there were still others"),
        pytest.param([300, 502], False, id="too near to its end to tell"),
        pytest.param([None, None], None, id="no connection can be asked"),
        pytest.param([None, 520], True, id="some can"),
    ],
)
def test_the_backlog_has_drained_when_one_has_begun_whose_data_came_after_it(
    serving: Serving, arrived_ms: list[int | None], drained: bool | None
) -> None:
    arrivals = [
        Arrival(serving.request(530 + n), None if ms is None else ms * MS)
        for n, ms in enumerate(arrived_ms)
    ]
    assert has_drained(STALL, arrivals) is drained


def test_a_body_that_came_in_pieces_until_after_it_says_nothing_of_the_backlog(
    serving: Serving,
) -> None:
    """Its head may have come in the stall."""
    assert has_drained(STALL, [Arrival(serving.request(540), 520 * MS, whole=False)]) is False
