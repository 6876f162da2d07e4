"""One sink on its own thread: what it loses is counted, and nothing waits for it without end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from loopguard.tell.outlet import LONGEST_QUEUE, PATIENCE, Outlet
from tests.threads import strike, wait_until

pytestmark = pytest.mark.core

LONG = 20.0


@dataclass
class Sink:
    """An outlet with a clock of ours, and acts that hang until they are let go."""

    now: float = 0.0
    done: list[object] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.outlet = Outlet("sink", self.errors.append, clock=lambda: self.now)

    def do(self, name: object) -> None:
        self.outlet.put(lambda: self.done.append(name))

    def hang(self, error: BaseException | None = None) -> None:
        """Put an act that hangs, and wait until it does; let go, it raises the error, if one is given."""
        begun = threading.Event()

        def act() -> None:
            begun.set()
            assert self.released.wait(LONG)
            if error is not None:
                raise error
            self.done.append("hung")

        self.outlet.put(act)
        assert begun.wait(LONG)

    def fail(self, error: BaseException) -> None:
        def act() -> None:
            raise error

        self.outlet.put(act)

    def end(self) -> None:
        self.released.set()
        self.outlet.finish()
        self.outlet.join(LONG)


@pytest.fixture
def sink() -> Iterator[Sink]:
    made = Sink()
    made.outlet.start()
    yield made
    made.end()
    wait_until(lambda: "loopguard-sink" not in [each.name for each in threading.enumerate()])


def test_acts_are_done_in_order_on_a_thread_of_their_own(sink: Sink) -> None:
    for number in range(100):
        sink.do(number)
    sink.outlet.put(lambda: sink.done.append(threading.current_thread().name))
    assert sink.outlet.flush(LONG)
    assert sink.done == [*range(100), "loopguard-sink"]
    assert sink.outlet.lost == 0


def test_what_was_put_before_the_start_is_done_after_it() -> None:
    sink = Sink()
    sink.do("early")
    assert not sink.outlet.flush(0)
    sink.outlet.start()
    assert sink.outlet.flush(LONG)
    sink.end()
    assert sink.done == ["early"]


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1), KeyboardInterrupt()])
def test_an_act_that_raises_is_lost_alone(sink: Sink, error: BaseException) -> None:
    for _ in range(3):
        sink.fail(error)
        sink.do("next")
    assert sink.outlet.flush(LONG)
    assert sink.done == ["next"] * 3
    assert sink.errors == [error] * 3
    assert sink.outlet.lost == 3


def test_whoever_hears_of_failures_may_fail_too(sink: Sink) -> None:
    def unlucky(error: BaseException) -> None:
        raise error

    outlet = Outlet("unlucky", unlucky)
    outlet.start()
    outlet.put(lambda: 1 / 0)
    outlet.put(lambda: sink.done.append("next"))
    assert outlet.flush(LONG)
    outlet.finish()
    outlet.join(LONG)
    assert (sink.done, outlet.lost) == (["next"], 1)


def test_a_full_queue_loses_its_oldest(sink: Sink) -> None:
    sink.hang()
    for number in range(LONGEST_QUEUE + 5):
        sink.do(number)
    assert sink.outlet.lost == 5
    sink.released.set()
    assert sink.outlet.flush(LONG)
    assert sink.done == ["hung", *range(5, LONGEST_QUEUE + 5)]


def test_who_holds_it_waits_for_one_act_and_not_for_all_that_are_queued(sink: Sink) -> None:
    """A lock goes to whoever asks first after its release, and that is mostly the thread that released it."""

    def slow() -> None:
        time.sleep(0.002)
        sink.done.append("slow")

    for _ in range(100):
        sink.outlet.put(slow)
    wait_until(lambda: bool(sink.done))
    for _ in range(10):
        before = len(sink.done)
        assert sink.outlet.hold(LONG)
        assert len(sink.done) <= before + 2
        sink.outlet.release()
    assert sink.outlet.flush(LONG)


def test_a_flush_waits_no_longer_than_it_may(sink: Sink) -> None:
    sink.hang()
    assert not sink.outlet.flush(0)
    assert not sink.outlet.flush(-1)
    assert sink.outlet.lost == 0


def test_a_sink_that_does_not_return_counts_as_hung_and_is_waited_for_no_more(sink: Sink) -> None:
    """All that waits for it is lost, and so is what comes later; its failure is told once."""
    sink.hang()
    sink.do("waits")
    sink.now = PATIENCE - 0.1
    assert not sink.outlet.flush(0)
    sink.now = PATIENCE
    assert sink.outlet.flush(0)
    sink.do("comes later")
    assert sink.outlet.lost == 3
    assert [str(error) for error in sink.errors] == ["sink has not returned for 5 s"]


def test_a_sink_that_returns_after_all_is_used_again(sink: Sink) -> None:
    sink.hang()
    sink.now = PATIENCE
    assert sink.outlet.lost == 1
    sink.released.set()
    wait_until(lambda: sink.done == ["hung"])

    def used() -> bool:
        sink.do("again")
        return sink.outlet.flush(LONG) and "again" in sink.done

    wait_until(used)
    lost = sink.outlet.lost
    sink.do("and again")
    assert sink.outlet.flush(LONG)
    assert sink.done[-1] == "and again"
    assert sink.outlet.lost == lost


def test_a_sink_that_hung_and_then_raises_is_counted_once(sink: Sink) -> None:
    sink.hang(ValueError("late"))
    sink.now = PATIENCE
    assert sink.outlet.lost == 1
    sink.released.set()
    wait_until(lambda: len(sink.errors) == 2)
    assert [type(error) for error in sink.errors] == [TimeoutError, ValueError]
    assert sink.outlet.lost == 1


def test_an_act_that_flushes_does_not_wait_for_itself(sink: Sink) -> None:
    sink.outlet.put(lambda: sink.done.append(sink.outlet.flush(LONG)))
    assert sink.outlet.flush(LONG)
    assert sink.done == [True]


def test_what_is_queued_when_it_finishes_is_done(sink: Sink) -> None:
    sink.hang()
    sink.do("last")
    sink.outlet.finish()
    sink.released.set()
    sink.outlet.join(LONG)
    assert (sink.done, sink.outlet.lost) == (["hung", "last"], 0)


def test_it_is_closed_on_its_own_thread_when_all_is_done(sink: Sink) -> None:
    """Also where that is long after it was given up."""
    outlet = Outlet("closing", sink.errors.append, close=lambda: sink.done.append("closed"))
    outlet.start()
    outlet.put(lambda: sink.released.wait(LONG))
    outlet.put(lambda: sink.done.append("lost"))
    wait_until(lambda: not outlet.flush(0))
    outlet.finish()
    outlet.join(0)
    assert sink.done == []
    sink.released.set()
    outlet.join(LONG)
    assert sink.done[-1] == "closed"


def test_what_comes_after_the_end_is_lost(sink: Sink) -> None:
    sink.outlet.finish()
    sink.do("too late")
    assert sink.outlet.flush(LONG)
    assert (sink.done, sink.outlet.lost) == ([], 1)


def test_a_join_gives_up_what_is_not_done_in_time(sink: Sink) -> None:
    sink.hang()
    sink.do("waits")
    sink.outlet.finish()
    sink.outlet.join(0.01)
    assert sink.outlet.lost == 1
    sink.released.set()
    sink.outlet.join(LONG)
    assert sink.done == ["hung"]


def test_one_that_never_began_can_be_ended() -> None:
    """As where the system granted no thread."""
    sink = Sink()
    sink.do("never")
    sink.outlet.finish()
    sink.outlet.join(LONG)
    assert sink.outlet.lost == 1


def test_while_it_is_held_nothing_is_begun(sink: Sink) -> None:
    assert sink.outlet.hold(LONG)
    sink.do("waits")
    assert not sink.outlet.flush(0)
    assert sink.done == []
    sink.outlet.release()
    assert sink.outlet.flush(LONG)
    assert sink.done == ["waits"]


def test_one_that_is_busy_hung_or_asks_itself_cannot_be_held(sink: Sink) -> None:
    sink.outlet.put(lambda: sink.done.append(sink.outlet.hold(LONG)))
    assert sink.outlet.flush(LONG)
    sink.hang()
    sink.done.append(sink.outlet.hold(0.01))
    sink.now = PATIENCE
    assert sink.outlet.lost == 1
    sink.done.append(sink.outlet.hold(LONG))
    assert sink.done == [False, False, False]


def test_a_sink_may_end_its_own_outlet(sink: Sink) -> None:
    """As a listener does that uninstalls."""

    def leave() -> None:
        sink.outlet.finish()
        sink.outlet.join(LONG)
        sink.done.append("left")

    sink.outlet.put(leave)
    wait_until(lambda: sink.done == ["left"])


@pytest.mark.skipif(
    sys.implementation.name != "cpython", reason="raises in threads by CPython's C API"
)
@pytest.mark.parametrize("kind", [SystemExit, RuntimeError])
def test_a_thread_that_is_struck_from_outside_goes_on(
    sink: Sink, kind: type[BaseException]
) -> None:
    for number in range(20):
        strike("loopguard-sink", kind)
        sink.do(number)
    assert sink.outlet.flush(LONG)
    sink.do("last")
    assert sink.outlet.flush(LONG)
    assert sink.done[-1] == "last"
    assert len(sink.done) + sink.outlet.lost == 21
    assert {type(error) for error in sink.errors} == {kind}


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="needs CPython's C API")
def test_no_lock_is_left_behind_by_a_thread_that_is_struck(sink: Sink) -> None:
    """From outside, again and again, while it takes and gives back locks: whoever comes next would wait for ever."""
    over = threading.Event()

    def again() -> None:
        if not over.is_set():
            sink.outlet.put(again)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(300):
            sink.outlet.put(again)  # in the place of one that was struck
            time.sleep(0.0015)  # it rests for a millisecond first
            strike("loopguard-sink", RuntimeError)
            assert sink.outlet._lock.acquire(timeout=LONG)
            sink.outlet._lock.release()
    finally:
        sys.setswitchinterval(interval)
        over.set()
    assert sink.outlet.flush(LONG)
    assert sink.errors
