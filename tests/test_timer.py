"""Alarms of the kernel and alarms that are polled go off alike."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from time import monotonic_ns

import pytest

from loopguard.watch import timer
from loopguard.watch.timer import Alarm, Alarms, KernelAlarms, PollingAlarms
from tests.evidence import MS
from tests.threads import open_files

pytestmark = pytest.mark.core

HOUR = 3600 * 1000 * MS


@pytest.fixture(
    params=[
        pytest.param(
            KernelAlarms,
            marks=pytest.mark.skipif(sys.platform != "linux", reason="timerfd is Linux's"),
        ),
        lambda: PollingAlarms(lambda: 0.001),
    ],
    ids=["kernel", "polling"],
)
def alarms(request: pytest.FixtureRequest) -> Iterator[Alarms]:
    made: Alarms = request.param()
    yield made
    made.close()


def gone_off(alarms: Alarms) -> list[Alarm]:
    """What has gone off by now; does not wait for more."""
    alarms.wake()
    found = alarms.wait()
    alarms.wake()
    return [*found, *(alarm for alarm in alarms.wait() if alarm not in found)]


def test_an_alarm_in_the_past_goes_off_at_once(alarms: Alarms) -> None:
    alarm = alarms.new()
    alarm.arm(1)
    assert alarms.wait() == [alarm]


def test_an_alarm_goes_off_at_its_time_and_not_before(alarms: Alarms) -> None:
    alarm, at = alarms.new(), monotonic_ns() + 20 * MS
    alarm.arm(at)
    assert alarms.wait() == [alarm]
    assert monotonic_ns() >= at


def test_an_alarm_goes_off_once(alarms: Alarms) -> None:
    alarm = alarms.new()
    alarm.arm(1)
    assert alarms.wait() == [alarm]
    assert gone_off(alarms) == []


def test_an_alarm_can_be_armed_again(alarms: Alarms) -> None:
    alarm = alarms.new()
    for _ in range(3):
        alarm.arm(1)
        assert alarms.wait() == [alarm]


def test_the_last_time_that_was_set_counts(alarms: Alarms) -> None:
    """As at each heartbeat, which moves it on."""
    alarm, other = alarms.new(), alarms.new()
    alarm.arm(monotonic_ns() + 5 * MS)
    alarm.arm(monotonic_ns() + HOUR)
    other.arm(monotonic_ns() + 20 * MS)
    assert alarms.wait() == [other]


def test_an_alarm_at_zero_never_goes_off(alarms: Alarms) -> None:
    alarm, other = alarms.new(), alarms.new()
    alarm.arm(monotonic_ns() + 5 * MS)
    alarm.arm(0)
    other.arm(monotonic_ns() + 20 * MS)
    assert alarms.wait() == [other]


def test_several_may_go_off_together(alarms: Alarms) -> None:
    several = [alarms.new() for _ in range(3)]
    for alarm in several:
        alarm.arm(1)
    found = [*alarms.wait()]
    while len(found) < 3:
        found += alarms.wait()
    assert sorted(map(id, found)) == sorted(map(id, several))


def test_a_wake_ends_the_wait_and_is_no_alarm(alarms: Alarms) -> None:
    alarm = alarms.new()
    alarm.arm(monotonic_ns() + HOUR)
    threading.Timer(0.01, alarms.wake).start()
    assert alarms.wait() == []


def test_a_wake_before_the_wait_is_not_lost(alarms: Alarms) -> None:
    alarms.wake()
    assert alarms.wait() == []


def test_an_alarm_that_was_dropped_does_not_go_off(alarms: Alarms) -> None:
    alarm, other = alarms.new(), alarms.new()
    alarm.arm(monotonic_ns() + 5 * MS)
    alarms.drop(alarm)
    other.arm(monotonic_ns() + 20 * MS)
    assert alarms.wait() == [other]


def test_to_arm_or_drop_an_alarm_that_was_dropped_is_harmless(alarms: Alarms) -> None:
    """A heartbeat may be late to hear of it. Not even the file that has its number now is touched."""
    alarm = alarms.new()
    alarms.drop(alarm)
    strangers = os.pipe()
    try:
        alarm.arm(1)
        alarms.drop(alarm)
        assert gone_off(alarms) == []
        os.write(strangers[1], b"x")
        assert os.read(strangers[0], 1) == b"x"
    finally:
        for fd in strangers:
            os.close(fd)


@pytest.mark.skipif(sys.platform != "linux", reason="counts files in /proc")
@pytest.mark.parametrize("make", [KernelAlarms, lambda: PollingAlarms(lambda: 0.001)])
def test_closing_leaves_no_file_open(make: Callable[[], Alarms]) -> None:
    before = open_files()
    alarms = make()
    alarm = alarms.new()
    alarms.new()
    alarms.close()
    assert open_files() == before
    alarm.arm(1)


@pytest.mark.skipif(sys.platform != "linux", reason="timerfd is Linux's")
def test_a_child_process_does_not_inherit_the_timer() -> None:
    alarms = KernelAlarms()
    try:
        assert not os.get_inheritable(alarms.new().fd)
    finally:
        alarms.close()


def test_where_there_is_no_kernel_timer_alarms_are_polled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError("seccomp says no")

    monkeypatch.setattr(timer, "_TimerFd", refuse)
    assert not timer.new_alarms(lambda: 0.001).kernel
