"""How late the beats were, until somebody asks: nothing is missed, what is overwritten is counted, no stall hides."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from loopguard.evidence import Incident
from loopguard.watch.delays import MOST_OF_ONE, Delays, Ring, corrected
from loopguard.watch.load import Load, Spent
from tests.evidence import MS, beat, held, look

pytestmark = pytest.mark.core

INTERVAL = 50 * MS


class TestCorrection:
    """A stall counts as the samples that would have fallen into it."""

    def test_a_beat_in_time_is_one_sample(self) -> None:
        assert list(corrected(0, 50)) == [0]
        assert list(corrected(49, 50)) == [49]

    def test_a_stall_is_one_sample_for_each_beat_that_it_skipped(self) -> None:
        assert list(corrected(1000, 50)) == list(range(1000, -1, -50))

    def test_the_share_of_late_samples_is_that_of_the_time(self) -> None:
        """One second of 100 is held: so one of a hundred samples is late, and half of these by more than 0.5 s."""
        samples = [each for late in [0] * 1980 + [1000] for each in corrected(late, 50)]
        assert sum(each > 0 for each in samples) / len(samples) == pytest.approx(0.01, rel=0.01)
        assert sum(each > 500 for each in samples) / len(samples) == pytest.approx(0.005, rel=0.01)

    def test_a_night_asleep_is_spread_over_a_bounded_number(self) -> None:
        night = 8 * 3_600_000
        samples = list(corrected(night, 50))
        assert len(samples) == MOST_OF_ONE
        assert samples == sorted(samples, reverse=True)
        assert (samples[0], 0 < samples[-1] <= night / MOST_OF_ONE) == (night, True)

    def test_without_an_interval_there_is_nothing_to_correct(self) -> None:
        assert list(corrected(1000, 0)) == [1000]


class TestRing:
    """Of a fixed size, whatever is written."""

    def test_what_was_written_since_comes_out_once(self) -> None:
        ring = Ring(4)
        ring.write(3_000_000, INTERVAL)
        ring.write(0, INTERVAL)
        assert ring.drain() == ([(3000, 50_000), (0, 50_000)], 0)
        assert ring.drain() == ([], 0)

    def test_the_oldest_gives_way_and_is_counted(self) -> None:
        ring = Ring(4)
        for late in range(10):
            ring.write(late * MS, INTERVAL)
        assert ring.drain() == ([(late * 1000, 50_000) for late in (7, 8, 9)], 7)

    def test_a_stall_of_days_is_told_as_the_longest_that_there_is_room_for(self) -> None:
        ring = Ring(4)
        ring.write(10**16, INTERVAL)
        assert ring.drain() == ([(2**32 - 1, 50_000)], 0)

    def test_while_another_thread_writes_nothing_is_lost_uncounted_or_seen_twice(self) -> None:
        ring, count = Ring(256), 200_000
        seen: list[int] = []
        lost = 0

        def write() -> None:
            for number in range(count):
                ring.write(number * 1000, INTERVAL)

        writer = threading.Thread(target=write)
        writer.start()
        while writer.is_alive():
            entries, overwritten = ring.drain()
            seen += [late for late, _ in entries]
            lost += overwritten
        entries, overwritten = ring.drain()
        seen += [late for late, _ in entries]
        assert seen == sorted(set(seen))
        assert len(seen) + lost + overwritten == count


def test_a_loop_that_stops_leaves_its_samples_and_its_ring_to_the_next() -> None:
    delays = Delays()
    first = delays.ring()
    first.write(120 * MS, INTERVAL)
    delays.give_back(first)
    assert delays.ring() is first
    other = delays.ring()
    other.write(0, INTERVAL)
    assert delays.drain() == pytest.approx([0.12, 0.07, 0.02, 0.0])
    assert (delays.drain(), delays.lost) == ([], 0)


class FakeLoop:
    """A loop's thread, with what it has spent in ms of a clock that begins at 0."""

    thread_id = 7

    def __init__(self) -> None:
        self.began = Spent(0, 0)
        self.now = Spent(0, 0)

    def at(self, ms: float, *, cpu: float, held: float = 0) -> None:
        self.now = Spent(round(ms * MS), round(cpu * MS), round(held * MS))

    def spent(self) -> Spent:
        return self.now


def incident(start: float, end: float, *, cpu: float, ongoing: bool = False) -> Incident:
    found = replace(held([look(end - 10)], start, end), beat=beat(end, last=start, cpu=cpu))
    return Incident("id", ongoing, found, 100 * MS, "MainThread", 7, "loop", None, 0, 0)


class TestUtilization:
    """The share of time on a CPU, or held without one."""

    def test_it_is_not_told_for_less_than_a_second(self) -> None:
        loop = FakeLoop()
        load = Load(lambda: [loop])
        loop.at(900, cpu=100)
        assert load.read() is None
        loop.at(1000, cpu=100)
        assert load.read() == pytest.approx(0.1)

    def test_each_collection_tells_of_the_time_since_the_last(self) -> None:
        loop = FakeLoop()
        load = Load(lambda: [loop])
        loop.at(2000, cpu=1000)
        assert load.read() == pytest.approx(0.5)
        loop.at(4000, cpu=1200)
        assert load.read() == pytest.approx(0.1)

    def test_a_second_collector_right_after_is_told_of_the_same_time(self) -> None:
        """And a bit more: of 10 ms alone nothing could be said."""
        loop = FakeLoop()
        load = Load(lambda: [loop])
        loop.at(2000, cpu=1000)
        load.read()
        loop.at(4000, cpu=1200)
        load.read()
        loop.at(4010, cpu=1210)
        assert load.read() == pytest.approx(210 / 2010)
        loop.at(6000, cpu=1220)
        assert load.read() == pytest.approx(20 / 2000)

    def test_a_loop_that_was_held_without_a_cpu_was_busy(self) -> None:
        loop = FakeLoop()
        load = Load(lambda: [loop])
        load.add(incident(500, 1300, cpu=40))
        loop.at(2000, cpu=100)
        assert load.read() == pytest.approx((100 + 760) / 2000)

    def test_while_it_lasts_too_and_not_twice(self) -> None:
        loop = FakeLoop()
        load = Load(lambda: [loop])
        loop.at(1000, cpu=0, held=500)
        assert load.read() == pytest.approx(0.5)
        load.add(incident(500, 1500, cpu=0, ongoing=True))
        load.add(incident(500, 1500, cpu=0))
        loop.at(2000, cpu=0)
        assert load.read() == pytest.approx(0.5)

    def test_it_is_that_of_the_busiest_loop_and_never_over_one(self) -> None:
        idle, busy = FakeLoop(), FakeLoop()
        busy.thread_id = 8
        load = Load(lambda: [idle, busy])
        idle.at(1000, cpu=10)
        busy.at(1000, cpu=1100)
        assert load.read() == 1.0

    def test_where_no_loop_runs_nothing_is_told(self) -> None:
        assert Load(list).read() is None
