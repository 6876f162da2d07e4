"""The spans of delayed requests, and what is written on the requests' own: in their traces, linked, and never too much."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextvars import Context
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="needs the extra `otlp`")

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    ParentBased,
    Sampler,
    SamplingResult,
)
from opentelemetry.trace import Span

from loopguard.evidence import Arrival, Held, Incident, InFlight, LateBeat, StoodStill
from loopguard.record import Delayed, Stall
from loopguard.tell.marks import Marks
from loopguard.tell.report import LateDelays
from loopguard.tell.spans import Spans
from tests.records import STALL, STARTED_NS, make_report, make_stall
from tests.test_spans import ENDED_NS, MS, SAMPLED, UNSAMPLED, Tracing, inside, remote, span_id

pytestmark = pytest.mark.core


def delayed(span: Span, delay: float = 0.4, *, queued: bool = False) -> StoodStill:
    """A request that stood still to the end of the stall."""
    return StoodStill(
        told=Delayed("GET", "/quick", None, None, delay, queued, queued, None if queued else True),
        own_span=span,
        began_ns=ENDED_NS - round(delay * 1e9),
        ended_ns=ENDED_NS,
        coroutine=object(),
    )


class Raising(Sampler):
    """Takes every span, but for one of those of delays, at which it raises."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.delays = 0

    def should_sample(self, *arguments: Any, **named: Any) -> SamplingResult:
        if "event_loop.delay" in (*arguments, *named.values()):
            self.delays += 1
            if self.delays == self.at:
                raise LookupError(f"at delay {self.at}")
        return ALWAYS_ON.should_sample(*arguments, **named)

    def get_description(self) -> str:
        return "raising"


class World:
    """A tracer, and the sink that tells of stalls there."""

    def __init__(self, tracing: Tracing) -> None:
        self.tracing = tracing
        self.sink = Spans("1.2.3", tracing.provider)

    def request(self, begin_ms: float = -10, parent: Span | None = None) -> Span:
        return self.tracing.start("request", STARTED_NS + round(begin_ms * MS), parent)

    def tell(self, *delays: StoodStill, stall: Stall = STALL, culprit: Span | None = None) -> None:
        report = make_report(stall, context=None if culprit is None else inside(culprit))
        self.sink(replace(report, delays=delays))

    def delays(self) -> list[ReadableSpan]:
        spans = self.tracing.exporter.get_finished_spans()
        return [span for span in spans if span.name == "event_loop.delay"]


@pytest.fixture
def world() -> World:
    return World(Tracing())


def times(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


class TestSpans:
    def test_it_is_a_child_of_the_requests_own_span_and_links_to_the_stall(
        self, world: World
    ) -> None:
        own = world.request()
        world.tell(delayed(own), culprit=world.request())
        (span,) = world.delays()
        assert span.parent is not None
        assert span.parent.span_id == span_id(own)
        assert [link.context.span_id for link in span.links] == [
            world.tracing.stall().context.span_id
        ]
        assert dict(span.attributes or {}) == {
            "loopguard.delay": 0.4,
            "loopguard.delay.exact": False,
            "loopguard.delay.queued": False,
            "loopguard.stall.id": STALL.id,
            "loopguard.stall.cause": "blocking_call",
            "loopguard.stall.call": "time.sleep",
            "code.function.name": "app.users.list_users",
            "code.file.path": "app/users.py",
            "code.line.number": 42,
        }

    @pytest.mark.parametrize(
        "begin_ms, end_ms, expected_ms",
        [
            pytest.param(-10, None, (0, 400), id="all of it"),
            pytest.param(-10, 600, (0, 400), id="a request that has ended since"),
            pytest.param(100, None, (100, 400), id="not before the request's own"),
            pytest.param(-10, 300, (0, 300), id="not beyond it"),
        ],
    )
    def test_it_lies_within_its_parent(
        self,
        world: World,
        begin_ms: int,
        end_ms: int | None,
        expected_ms: tuple[int, int],
    ) -> None:
        own = world.request(begin_ms)
        if end_ms is not None:
            own.end(STARTED_NS + end_ms * MS)
        world.tell(delayed(own))
        (span,) = world.delays()
        assert times(span) == tuple(STARTED_NS + each * MS for each in expected_ms)

    def test_one_that_was_queued_stood_still_before_its_span_began(self, world: World) -> None:
        """A nanosecond is the least that Jaeger does not take for negative."""
        own = world.request(450)
        world.tell(delayed(own, 0.2, queued=True))
        (span,) = world.delays()
        assert times(span) == (STARTED_NS + 450 * MS, STARTED_NS + 450 * MS + 1)
        assert (span.attributes or {})["loopguard.delay"] == 0.2

    def test_only_requests_that_are_sampled_get_one(self, world: World) -> None:
        spans = [remote(UNSAMPLED), trace.INVALID_SPAN, remote(SAMPLED)]
        world.tell(*(delayed(span) for span in spans))
        (span,) = world.delays()
        assert span.parent is not None
        assert span.parent.span_id == 0xDEF

    def test_the_stall_links_back_to_the_32_longest(self, world: World) -> None:
        delays = [delayed(world.request(), (50 - number) / 100) for number in range(50)]
        world.tell(*delays, culprit=world.request())
        links = world.tracing.stall().links
        assert [dict(link.attributes or {}) for link in links] == [
            {"loopguard.link.type": "delayed", "loopguard.delay": (50 - number) / 100}
            for number in range(32)
        ]
        sent = {span.context.span_id for span in world.delays()}
        assert {link.context.span_id for link in links} <= sent

    def test_a_root_span_carries_no_link_but_is_linked_to(self, world: World) -> None:
        world.tell(delayed(world.request()))
        stall = world.tracing.stall()
        assert (stall.parent, stall.links) == (None, ())
        (span,) = world.delays()
        assert [link.context.span_id for link in span.links] == [stall.context.span_id]

    def test_to_a_stall_that_is_not_sampled_no_link_leads(self) -> None:
        world = World(Tracing(ParentBased(ALWAYS_OFF, remote_parent_sampled=ALWAYS_ON)))
        world.tell(delayed(remote(SAMPLED)))
        assert world.tracing.stalls() == []
        (span,) = world.delays()
        assert span.links == ()
        assert (span.attributes or {})["loopguard.stall.id"] == STALL.id

    def test_no_link_leads_to_a_delay_that_the_sampler_left_out(self) -> None:
        sampler = ParentBased(ALWAYS_ON, remote_parent_sampled=ALWAYS_OFF)
        world = World(Tracing(sampler))
        world.tell(delayed(remote(SAMPLED)), culprit=world.request())
        assert world.delays() == []
        assert world.tracing.stall().links == ()

    def test_one_that_a_sampler_raises_at_is_lost_alone(self) -> None:
        """The others are sent and linked, and so is the stall's own; then it is told of, once."""
        world = World(Tracing(Raising(at=2)))
        own, culprit = world.request(), world.request()
        with pytest.raises(LookupError, match="at delay 2"):
            world.tell(*(delayed(own, (5 - number) / 10) for number in range(3)), culprit=culprit)
        sent = [(span.attributes or {})["loopguard.delay"] for span in world.delays()]
        assert sent == [0.5, 0.3]
        links = [dict(link.attributes or {}) for link in world.tracing.stall().links]
        assert [link["loopguard.delay"] for link in links] == sent

    def test_a_late_one_that_a_sampler_raises_at_is_lost_alone(self) -> None:
        world = World(Tracing(Raising(at=1)))
        world.tell(culprit=world.request())
        own = world.request(450)
        late = LateDelays(STALL, tuple(delayed(own, queued=True) for _ in range(3)))
        with pytest.raises(LookupError, match="at delay 1"):
            world.sink.late(late)
        assert len(world.delays()) == 2

    def test_a_thousand_are_sent_at_most_the_late_ones_among_them(self, world: World) -> None:
        own = world.request()
        world.tell(*(delayed(own) for _ in range(990)))
        world.sink.late(LateDelays(STALL, tuple(delayed(own, queued=True) for _ in range(20))))
        assert len(world.delays()) == 1000

    def test_a_late_one_links_to_the_stall_that_was_told_before(self, world: World) -> None:
        world.tell(culprit=world.request())
        world.sink.late(LateDelays(STALL, (delayed(world.request(450), queued=True),)))
        (span,) = world.delays()
        (link,) = span.links
        assert link.context.span_id == world.tracing.stall().context.span_id

    def test_a_late_one_of_a_stall_that_was_never_told_of_gets_none(self, world: World) -> None:
        late = LateDelays(make_stall(id="another"), (delayed(world.request(450), queued=True),))
        world.sink.late(late)
        assert world.delays() == []


class Loop:
    """An aftermath whose loop runs what it is given at once, or later."""

    def __init__(self) -> None:
        self.acts: list[Callable[[], object]] = []

    def on_loop(self, act: Callable[[], object]) -> None:
        self.acts.append(act)

    def run(self) -> None:
        for act in self.acts:
            act()
        self.acts.clear()

    def in_flight(self, *_: Any) -> InFlight:
        return InFlight((), 0, 0)

    def arrivals(self, since_ns: int) -> list[Arrival]:
        return []

    more_may_come = False

    def without_flight(self) -> Loop:
        return self

    def let_go(self) -> None:
        pass


class Explained:
    def __init__(self, stall: Stall, own: Span | None) -> None:
        self.stall = stall
        self.context = Context()
        self.request_context = None if own is None else inside(own)


class Marking:
    """Marks, and the loop that they are written on."""

    def __init__(self) -> None:
        self.tracing = Tracing()
        self.troubles: list[BaseException] = []
        self.marks = Marks(self.troubles.append)
        self.loop = Loop()

    def mark(self, *delays: StoodStill, stall: Stall = STALL, own: Span | None = None) -> None:
        beat = LateBeat(0, 1, 2, 0, 0, 0, None, aftermath=self.loop)
        held = Held(start_ns=0, error_ns=0, end_ns=2, looks=(), beat=beat)
        incident = Incident(stall.id, False, held, 1, "MainThread", 1, "asyncio.Loop", None, 0, 0)
        self.marks(incident, Explained(stall, own), delays)

    def request(self) -> Span:
        return self.tracing.start("request", STARTED_NS)

    def written(self, span: Span) -> dict[str, object]:
        span.end()
        *_, last = self.tracing.exporter.get_finished_spans()
        return dict(last.attributes or {})


@pytest.fixture
def marking() -> Iterator[Marking]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the SDK's, where an ended span is written to
        yield Marking()


class TestMarks:
    """What is written on the requests' own spans."""

    def test_a_delayed_request_says_for_how_long_and_by_which_stall(self, marking: Marking) -> None:
        own = marking.request()
        marking.mark(delayed(own, 0.25))
        marking.loop.run()
        assert marking.written(own) == {"loopguard.delay": 0.25, "loopguard.stall.id": STALL.id}

    def test_the_one_that_held_the_loop_says_so_once(self, marking: Marking) -> None:
        """However often its victims are named."""
        own = marking.request()
        marking.mark(own=own)
        marking.mark(own=own)
        marking.loop.run()
        assert marking.written(own) == {"loopguard.blocked": 0.4, "loopguard.stall.id": STALL.id}

    def test_where_nobody_is_to_blame_nobody_held_it(self, marking: Marking) -> None:
        own = marking.request()
        marking.mark(own=own, stall=make_stall(culprit=None, cause="not_scheduled"))
        marking.loop.run()
        assert marking.written(own) == {}

    def test_delays_are_summed_and_the_longest_stall_is_named(self, marking: Marking) -> None:
        own = marking.request()
        stalls = [make_stall(id=name, duration=seconds) for name, seconds in
                  (("short", 0.2), ("long", 0.5), ("shorter", 0.1))]  # fmt: skip
        for stall in stalls:
            marking.mark(delayed(own, stall.duration), stall=stall)
        marking.loop.run()
        assert marking.written(own) == {"loopguard.delay": 0.8, "loopguard.stall.id": "long"}

    def test_a_span_that_has_ended_is_not_written_to(
        self, marking: Marking, caplog: pytest.LogCaptureFixture
    ) -> None:
        own = marking.request()
        marking.mark(delayed(own))
        assert marking.written(own) == {}
        marking.loop.run()
        assert caplog.records == []
        assert marking.troubles == []

    def test_nothing_is_written_on_any_other_thread(self, marking: Marking) -> None:
        own = marking.request()
        marking.mark(delayed(own))
        assert dict(getattr(own, "attributes", {})) == {}
        assert len(marking.loop.acts) == 1

    def test_many_are_written_some_at_a_time(self, marking: Marking) -> None:
        """So that the loop is not held by it."""
        own = marking.request()
        marking.mark(*(delayed(own) for _ in range(1500)))
        assert len(marking.loop.acts) == 25  # a thousand of them, in forties

    def test_a_span_that_raises_harms_nothing_and_is_counted(self, marking: Marking) -> None:
        error = LookupError("on purpose")

        class Broken(trace.NonRecordingSpan):
            def is_recording(self) -> bool:
                raise error

        marking.mark(delayed(Broken(trace.INVALID_SPAN_CONTEXT)))
        marking.loop.run()
        assert marking.troubles == [error]
