"""The span of a stall stands in the right trace, at the right time, and says which line it was."""

from __future__ import annotations

import json
import subprocess
import sys
from contextvars import Context
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("opentelemetry.sdk", reason="needs the extra `otlp`")

from opentelemetry import baggage, context, trace
from opentelemetry.context import attach
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    ParentBased,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
)

from loopguard.record import Stall
from loopguard.tell.report import Report
from loopguard.tell.spans import Spans
from tests.records import (
    CULPRIT,
    LIBRARY,
    REQUEST,
    SPAN_ID,
    STALL,
    STARTED_NS,
    TRACE_ID,
    make_report,
    make_stall,
)

pytestmark = pytest.mark.core

ROOT = Path(__file__).resolve().parents[1]
MS = 1_000_000
ENDED_NS = STARTED_NS + 400 * MS
SAMPLED = TraceFlags(TraceFlags.SAMPLED)
UNSAMPLED = TraceFlags(TraceFlags.DEFAULT)


class Tracing:
    """A real SDK with a given sampler, and what it has sent."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("app")

    def start(self, name: str, begin_ns: int, parent: Span | None = None) -> Span:
        inside = trace.set_span_in_context(parent, context.Context()) if parent else None
        return self.tracer.start_span(name, inside or context.Context(), start_time=begin_ns)

    def tell(self, report: Report) -> None:
        Spans("1.2.3", self.provider)(report)

    def stalls(self) -> list[ReadableSpan]:
        spans = self.exporter.get_finished_spans()
        return [span for span in spans if span.name == "event_loop.stall"]

    def stall(self) -> ReadableSpan:
        (span,) = self.stalls()
        return span


@pytest.fixture
def tracing() -> Tracing:
    return Tracing()


def inside(span: Span) -> Context:
    """A context in which the span is the active one."""
    made = Context()
    made.run(attach, trace.set_span_in_context(span, context.Context()))
    return made


def remote(flags: TraceFlags) -> Span:
    return NonRecordingSpan(SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=flags))


def parent_id(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def span_id(span: Span) -> int:
    return span.get_span_context().span_id


def times(span: ReadableSpan) -> tuple[int | None, int | None]:
    return span.start_time, span.end_time


class TestWhere:
    """Whose child the span is."""

    def test_it_is_a_child_of_the_span_that_was_active(self, tracing: Tracing) -> None:
        active = tracing.start("request", STARTED_NS - 10 * MS)
        tracing.tell(make_report(context=inside(active)))
        assert parent_id(tracing.stall()) == span_id(active)
        assert tracing.stall().context.trace_id == active.get_span_context().trace_id

    def test_it_is_a_root_where_no_span_was_active(self, tracing: Tracing) -> None:
        tracing.tell(make_report())
        assert tracing.stall().parent is None
        assert "loopguard.request.trace_id" not in (tracing.stall().attributes or {})

    def test_the_context_of_the_thread_that_tells_is_of_no_account(self, tracing: Tracing) -> None:
        other = tracing.start("of the reporter", STARTED_NS - 10 * MS)
        inside(other).run(tracing.tell, make_report())
        assert tracing.stall().parent is None

    def test_of_a_span_that_began_in_mid_stall_it_is_no_child_but_a_sibling(
        self, tracing: Tracing
    ) -> None:
        request = tracing.start("request", STARTED_NS - 10 * MS)
        late = tracing.start("late", STARTED_NS + 50 * MS, request)
        tracing.tell(make_report(context=inside(late)))
        assert parent_id(tracing.stall()) == span_id(request)

    def test_beside_a_span_that_began_in_mid_stall_it_keeps_its_whole_time(
        self, tracing: Tracing
    ) -> None:
        late = tracing.start(
            "late", STARTED_NS + 50 * MS, tracing.start("request", STARTED_NS - MS)
        )
        late.end(STARTED_NS + 60 * MS)
        tracing.tell(make_report(context=inside(late)))
        assert times(tracing.stall()) == (STARTED_NS, ENDED_NS)

    def test_where_the_whole_request_began_in_mid_stall_it_is_a_child_of_the_requests_own_span(
        self, tracing: Tracing
    ) -> None:
        """Whatever lies between began in mid-stall too, and nobody knows when."""
        own = tracing.start("request", STARTED_NS + MS // 2)
        late = tracing.start(
            "late", STARTED_NS + 50 * MS, tracing.start("between", STARTED_NS + MS, own)
        )
        tracing.tell(make_report(context=inside(late), request_context=inside(own)))
        assert parent_id(tracing.stall()) == span_id(own)
        assert tracing.stall().context.trace_id == own.get_span_context().trace_id

    def test_where_the_request_is_older_than_the_stall_a_late_spans_own_parent_is_taken(
        self, tracing: Tracing
    ) -> None:
        own = tracing.start("request", STARTED_NS - 50 * MS)
        between = tracing.start("between", STARTED_NS - 10 * MS, own)
        late = tracing.start("late", STARTED_NS + 50 * MS, between)
        tracing.tell(make_report(context=inside(late), request_context=inside(own)))
        assert parent_id(tracing.stall()) == span_id(between)

    def test_the_span_of_a_request_in_another_trace_is_no_parent(self, tracing: Tracing) -> None:
        """As where the blocked code has begun a trace of its own."""
        own = tracing.start("request", STARTED_NS + MS // 2)
        mine = tracing.start("mine", STARTED_NS + MS)
        late = tracing.start("late", STARTED_NS + 50 * MS, mine)
        tracing.tell(make_report(context=inside(late), request_context=inside(own)))
        assert parent_id(tracing.stall()) == span_id(mine)

    def test_beside_a_root_span_that_began_in_mid_stall_it_is_a_root(
        self, tracing: Tracing
    ) -> None:
        late = tracing.start("late", STARTED_NS + 50 * MS)
        tracing.tell(make_report(context=inside(late)))
        assert tracing.stall().parent is None
        assert tracing.stall().context.trace_id != late.get_span_context().trace_id

    def test_in_the_requests_own_root_span_it_is_however_late_that_began(
        self, tracing: Tracing
    ) -> None:
        """The record names that trace: there it is to be found."""
        own = tracing.start("request", STARTED_NS + 50 * MS)
        tracing.tell(make_report(context=inside(own), request_context=inside(own)))
        assert parent_id(tracing.stall()) == span_id(own)
        assert times(tracing.stall()) == (STARTED_NS + 50 * MS, ENDED_NS)

    @pytest.mark.parametrize(
        "late_ms, error_ms, is_child",
        [(5, 0, True), (6, 0, False), (6, 6, True), (40, 40, True), (41, 40, False)],
    )
    def test_a_span_counts_as_late_only_by_more_than_the_start_is_uncertain(
        self, tracing: Tracing, late_ms: int, error_ms: int, is_child: bool
    ) -> None:
        """And by more than 5 ms."""
        request = tracing.start("request", STARTED_NS - 10 * MS)
        active = tracing.start("active", STARTED_NS + late_ms * MS, request)
        tracing.tell(make_report(context=inside(active), error_ns=error_ms * MS))
        assert parent_id(tracing.stall()) == span_id(active if is_child else request)

    def test_it_can_be_a_child_of_a_span_in_another_process(self, tracing: Tracing) -> None:
        tracing.tell(make_report(context=inside(remote(SAMPLED))))
        assert parent_id(tracing.stall()) == 0xDEF
        assert times(tracing.stall()) == (STARTED_NS, ENDED_NS)


class TestWhen:
    """Its interval: the true one, but never outside its parent's."""

    def test_its_times_are_those_of_the_stall(self, tracing: Tracing) -> None:
        active = tracing.start("request", STARTED_NS - 10 * MS)
        tracing.tell(make_report(context=inside(active)))
        assert times(tracing.stall()) == (STARTED_NS, ENDED_NS)

    def test_it_begins_no_sooner_than_its_parent(self, tracing: Tracing) -> None:
        active = tracing.start("request", STARTED_NS + 3 * MS)
        tracing.tell(make_report(context=inside(active)))
        assert times(tracing.stall()) == (STARTED_NS + 3 * MS, ENDED_NS)

    def test_it_ends_no_later_than_its_parent(self, tracing: Tracing) -> None:
        active = tracing.start("request", STARTED_NS - 10 * MS)
        active.end(ENDED_NS - 1)
        tracing.tell(make_report(context=inside(active)))
        assert times(tracing.stall()) == (STARTED_NS, ENDED_NS - 1)

    def test_beside_a_late_span_it_keeps_within_the_requests_own(self, tracing: Tracing) -> None:
        """Which is the late one's parent, and is there to be asked."""
        own = tracing.start("request", STARTED_NS + MS)
        late = tracing.start("late", STARTED_NS + 50 * MS, own)
        late.end(STARTED_NS + 100 * MS)
        own.end(STARTED_NS + 300 * MS)
        tracing.tell(make_report(context=inside(late), request_context=inside(own)))
        assert times(tracing.stall()) == (STARTED_NS + MS, STARTED_NS + 300 * MS)

    def test_beside_a_late_span_it_ends_within_the_requests_own_also_where_another_is_its_parent(
        self, tracing: Tracing
    ) -> None:
        """What lies between ends no later than the request."""
        own = tracing.start("request", STARTED_NS - 20 * MS)
        between = tracing.start("between", STARTED_NS - 10 * MS, own)
        late = tracing.start("late", STARTED_NS + 50 * MS, between)
        late.end(STARTED_NS + 100 * MS)
        own.end(STARTED_NS + 300 * MS)
        tracing.tell(make_report(context=inside(late), request_context=inside(own)))
        assert parent_id(tracing.stall()) == span_id(between)
        assert times(tracing.stall()) == (STARTED_NS, STARTED_NS + 300 * MS)

    def test_a_request_in_another_trace_bounds_nothing(self, tracing: Tracing) -> None:
        own = tracing.start("request", STARTED_NS - 20 * MS)
        mine = tracing.start("mine", STARTED_NS - 10 * MS)
        late = tracing.start("late", STARTED_NS + 50 * MS, mine)
        late.end(STARTED_NS + 100 * MS)
        own.end(STARTED_NS + 300 * MS)
        tracing.tell(make_report(context=inside(late), request_context=inside(own)))
        assert times(tracing.stall()) == (STARTED_NS, ENDED_NS)

    @pytest.mark.parametrize("before_ms, cut_ms", [(1, 1), (5, 5), (6, 0), (200, 0)])
    def test_beside_a_late_span_that_ends_with_it_it_ends_no_later_than_that(
        self, tracing: Tracing, before_ms: int, cut_ms: int
    ) -> None:
        """The parent may have ended in the same moment, and is not there to be asked."""
        request = tracing.start("request", STARTED_NS - 10 * MS)
        late = tracing.start("late", STARTED_NS + 50 * MS, request)
        late.end(ENDED_NS - before_ms * MS)
        tracing.tell(make_report(context=inside(late)))
        assert times(tracing.stall()) == (STARTED_NS, ENDED_NS - cut_ms * MS)

    def test_after_its_parents_end_it_is_a_point_there_and_its_duration_stays_told(
        self, tracing: Tracing
    ) -> None:
        """A task that outlives the request that made it. Jaeger takes no length at all for a negative one."""
        active = tracing.start("request", STARTED_NS - 10 * MS)
        active.end(STARTED_NS - 5 * MS)
        tracing.tell(make_report(context=inside(active)))
        assert times(tracing.stall()) == (STARTED_NS - 5 * MS - 1, STARTED_NS - 5 * MS)
        assert (tracing.stall().attributes or {})["loopguard.stall.duration"] == 0.4

    def test_it_never_ends_before_it_begins(self, tracing: Tracing) -> None:
        """As it might where the system's clock was set back."""
        tracing.tell(make_report(ended_ns=STARTED_NS - 1))
        assert times(tracing.stall()) == (STARTED_NS, STARTED_NS + 1)


class TestSampling:
    """What the user's sampler left out is not brought back, and a stall is not lost with it."""

    def test_in_an_unsampled_trace_it_is_a_root_that_says_which_request_it_was(
        self, tracing: Tracing
    ) -> None:
        tracing.tell(make_report(context=inside(remote(UNSAMPLED))))
        attributes = tracing.stall().attributes or {}
        assert tracing.stall().parent is None
        assert tracing.stall().links == ()
        assert attributes["loopguard.request.trace_id"] == TRACE_ID
        assert attributes["loopguard.request.span_id"] == SPAN_ID

    @pytest.mark.parametrize(
        "request_", [None, replace(REQUEST, trace_id=None, span_id=None)], ids=["none", "no ids"]
    )
    def test_where_the_request_has_no_ids_those_of_the_active_span_are_given(
        self, tracing: Tracing, request_: object
    ) -> None:
        stall = make_stall(request=request_)
        tracing.tell(make_report(stall, context=inside(remote(UNSAMPLED))))
        attributes = tracing.stall().attributes or {}
        assert attributes["loopguard.request.trace_id"] == f"{0xABC:032x}"
        assert attributes["loopguard.request.span_id"] == f"{0xDEF:016x}"

    def test_an_unsampled_span_of_the_sdk_itself_is_treated_so_too(self) -> None:
        tracing = Tracing(ParentBased(ALWAYS_ON, remote_parent_not_sampled=ALWAYS_OFF))
        outer = trace.set_span_in_context(remote(UNSAMPLED), context.Context())
        active = tracing.tracer.start_span("request", outer)
        assert not active.is_recording()
        tracing.tell(make_report(context=inside(active)))
        assert tracing.stall().parent is None

    def test_beside_a_late_span_of_an_unsampled_trace_it_is_a_root_too(self) -> None:
        """A sampler may keep what its parent was not kept for: the parent decides, for that is where it would go."""
        tracing = Tracing(ALWAYS_ON)
        late = tracing.start("late", STARTED_NS + 50 * MS, remote(UNSAMPLED))
        tracing.tell(make_report(make_stall(request=None), context=inside(late)))
        assert tracing.stall().parent is None
        assert (tracing.stall().attributes or {})["loopguard.request.span_id"] == f"{0xDEF:016x}"

    def test_a_sampler_that_wants_nothing_gets_nothing(self) -> None:
        tracing = Tracing(ALWAYS_OFF)
        tracing.tell(make_report())
        tracing.tell(make_report(context=inside(remote(UNSAMPLED))))
        assert tracing.stalls() == []

    def test_a_ratio_keeps_all_stalls_of_sampled_traces_and_its_share_of_the_others(self) -> None:
        tracing = Tracing(ParentBased(TraceIdRatioBased(0.25)))
        for _ in range(50):
            tracing.tell(make_report(context=inside(remote(SAMPLED))))
        assert len(tracing.stalls()) == 50
        for _ in range(400):
            tracing.tell(make_report(context=inside(remote(UNSAMPLED))))
        roots = [span for span in tracing.stalls() if span.parent is None]
        # 100 are expected, and 9 is a standard deviation: outside of this once in a hundred million runs.
        assert 50 < len(roots) < 150

    def test_it_is_sent_also_where_the_blocked_code_had_suppressed_instrumentation(
        self, tracing: Tracing
    ) -> None:
        active = tracing.start("request", STARTED_NS - 10 * MS)
        blocked = inside(active)
        for key in (context._SUPPRESS_INSTRUMENTATION_KEY, "suppress_instrumentation"):
            blocked.run(attach, context.set_value(key, True, blocked.run(context.get_current)))
        tracing.tell(make_report(context=blocked))
        assert parent_id(tracing.stall()) == span_id(active)


class TestWhat:
    """Its attributes and its status."""

    def attributes(self, tracing: Tracing, stall: Stall = STALL) -> dict[str, object]:
        tracing.tell(make_report(stall))
        return dict(tracing.stall().attributes or {})

    def test_the_attributes_are_these(self, tracing: Tracing) -> None:
        assert self.attributes(tracing) == {
            "code.function.name": "app.users.list_users",
            "code.file.path": "app/users.py",
            "code.line.number": 42,
            "code.stacktrace": "[2 library frames left out]\napp/users.py:42 in list_users",
            "thread.name": "MainThread",
            "loopguard.stall.id": STALL.id,
            "loopguard.stall.fingerprint": "c0ffee",
            "loopguard.stall.cause": "blocking_call",
            "loopguard.stall.severity": "warning",
            "loopguard.stall.budget": 0.1,
            "loopguard.stall.duration": 0.4,
            "loopguard.stall.cpu_time": 0.012346,
            "loopguard.stall.gc_time": 0.0,
            "loopguard.stall.call": "time.sleep",
            "loopguard.stall.waited_on": "clock_nanosleep",
            "loopguard.stall.samples": 5,
            "loopguard.stall.confidence": 1.0,
            "loopguard.stall.suppressed": 0,
            "loopguard.task.name": "Task-7",
            "http.route": "/v1/users/{id}",
            "http.request.method": "GET",
        }

    def test_what_is_not_known_has_no_attribute(self, tracing: Tracing) -> None:
        names = ("culprit", "call", "waited_on", "cpu_time", "gc_time", "confidence", "task")
        unknown = make_stall(stack=(), request=None, **dict.fromkeys(names))
        assert set(self.attributes(tracing, unknown)) == {
            "thread.name",
            "loopguard.stall.id",
            "loopguard.stall.fingerprint",
            "loopguard.stall.cause",
            "loopguard.stall.severity",
            "loopguard.stall.budget",
            "loopguard.stall.duration",
            "loopguard.stall.samples",
            "loopguard.stall.suppressed",
        }

    def test_delayed_requests_are_told_where_they_are_known(self, tracing: Tracing) -> None:
        stall = make_stall(delayed_requests=3)
        assert self.attributes(tracing, stall)["loopguard.stall.delayed_requests"] == 3

    def test_each_run_of_library_frames_is_one_line(self, tracing: Tracing) -> None:
        mine = replace(CULPRIT, file="app/main.py", line=7, function="main")
        stall = make_stall(stack=(*[LIBRARY] * 30, mine, LIBRARY, CULPRIT, *[LIBRARY] * 2))
        assert self.attributes(tracing, stall)["code.stacktrace"] == (
            "[30 library frames left out]\n"
            "app/main.py:7 in main\n"
            "[1 library frame left out]\n"
            "app/users.py:42 in list_users\n"
            "[2 library frames left out]"
        )

    def test_a_culprit_in_a_library_keeps_its_line(self, tracing: Tracing) -> None:
        culprit = replace(LIBRARY, line=8)
        stall = make_stall(culprit=culprit, stack=(LIBRARY, culprit, LIBRARY))
        assert self.attributes(tracing, stall)["code.stacktrace"] == (
            "[1 library frame left out]\n"
            "starlette/routing.py:8 in Route.handle\n"
            "[1 library frame left out]"
        )

    def test_a_deep_recursion_is_shown_by_its_two_ends(self, tracing: Tracing) -> None:
        deep = tuple(replace(CULPRIT, line=number) for number in range(500))
        stall = make_stall(stack=deep, culprit=deep[-1])
        lines = str(self.attributes(tracing, stall)["code.stacktrace"]).splitlines()
        assert len(lines) == 40
        assert lines[0] == str(deep[0])
        assert lines[10] == "[461 lines left out]"
        assert lines[-1] == str(deep[-1])

    def test_names_that_could_fool_a_reader_or_break_the_export_are_escaped(
        self, tracing: Tracing
    ) -> None:
        culprit = replace(CULPRIT, file="caf\udce9.py")
        stall = make_stall(task="a\nb\x1b[31m\u202e", culprit=culprit, stack=(culprit,))
        attributes = self.attributes(tracing, stall)
        assert attributes["loopguard.task.name"] == r"a\nb\x1b[31m\u202e"
        assert attributes["code.file.path"] == r"caf\udce9.py"
        assert attributes["code.stacktrace"] == r"caf\udce9.py:42 in list_users"

    @pytest.mark.parametrize(
        "changes, description",
        [
            ({}, "event loop blocked 400 ms by time.sleep at app/users.py:42"),
            (
                {"call": None, "cause": "cpu"},
                "event loop blocked 400 ms (cpu) at app/users.py:42",
            ),
            ({"call": None, "culprit": None, "cause": "gc"}, "event loop blocked 400 ms (gc)"),
            ({"duration": 12.3456}, "event loop blocked 12346 ms by time.sleep at app/users.py:42"),
        ],
    )
    def test_an_error_says_in_its_status_what_blocked_the_loop(
        self, tracing: Tracing, changes: dict[str, object], description: str
    ) -> None:
        tracing.tell(make_report(make_stall(severity="error", **changes)))
        status = tracing.stall().status
        assert (status.status_code, status.description) == (StatusCode.ERROR, description)

    @pytest.mark.parametrize("severity", ["info", "warning"])
    def test_what_is_no_error_leaves_the_status_unset(
        self, tracing: Tracing, severity: str
    ) -> None:
        tracing.tell(make_report(make_stall(severity=severity)))
        assert tracing.stall().status.status_code is StatusCode.UNSET

    def test_its_kind_is_internal_and_its_scope_is_ours(self, tracing: Tracing) -> None:
        tracing.tell(make_report())
        scope = tracing.stall().instrumentation_scope
        assert tracing.stall().kind is SpanKind.INTERNAL
        assert scope is not None
        assert (scope.name, scope.version) == ("loopguard", "1.2.3")


def test_a_span_is_sent_whatever_the_limits_of_the_log_say(tracing: Tracing) -> None:
    tracing.tell(make_report(allowed=False))
    assert len(tracing.stalls()) == 1


def test_the_active_span_is_left_as_it_was(tracing: Tracing) -> None:
    active = tracing.start("request", STARTED_NS - 10 * MS)
    tracing.tell(make_report(make_stall(severity="error"), context=inside(active)))
    active.end(ENDED_NS)
    (request,) = [span for span in tracing.exporter.get_finished_spans() if span.name == "request"]
    assert dict(request.attributes or {}) == {}
    assert (request.events, request.links) == ((), ())
    assert request.status.status_code is StatusCode.UNSET


def test_it_is_sent_also_while_another_sink_is_still_busy_in_the_context(tracing: Tracing) -> None:
    blocked = inside(tracing.start("request", STARTED_NS - 10 * MS))
    blocked.run(tracing.tell, make_report(context=blocked))
    assert len(tracing.stalls()) == 1


def test_baggage_of_the_request_is_not_copied_onto_the_span(tracing: Tracing) -> None:
    """It came in a header, and other people's processors write what they find there."""
    seen = list[context.Context | None]()

    class Spy(SimpleSpanProcessor):
        def on_start(self, span: object, parent_context: context.Context | None = None) -> None:
            seen.append(parent_context)

    active = tracing.start("request", STARTED_NS - 10 * MS)
    tracing.provider.add_span_processor(Spy(InMemorySpanExporter()))
    blocked = inside(active)
    blocked.run(attach, baggage.set_baggage("password", "secret", blocked.run(context.get_current)))
    assert blocked.run(baggage.get_all) == {"password": "secret"}
    tracing.tell(make_report(context=blocked))
    assert [baggage.get_all(parent) for parent in seen] == [{}]


def test_without_an_sdk_nothing_happens_and_with_one_that_is_set_late_it_works() -> None:
    """Without any mention of the SDK before it is there: the API alone is a hard dependency."""
    code = """
import sys
from loopguard.tell.spans import Spans
from tests.records import make_report
spans = Spans("1.2.3")
spans(make_report())
assert "opentelemetry.sdk" not in sys.modules
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
spans(make_report())
assert [span.name for span in exporter.get_finished_spans()] == ["event_loop.stall"]
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("part", ["sampler", "start", "end", "exporter"])
def test_tracing_that_raises_costs_its_own_spans_and_nothing_else(
    part: str, tmp_path: Path
) -> None:
    """The user's sampler, span processors and exporter run in ours: what they raise is contained and counted."""
    jsonl = tmp_path / "stalls.jsonl"
    code = f"""
import asyncio, json, logging, sys, time
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
import loopguard

broken, sent = {part!r}, []

def fail(part):
    if part == broken:
        raise LookupError("broken on purpose")

class Sampling(Sampler):
    def should_sample(self, *arguments, **named):
        fail("sampler")
        return ALWAYS_ON.should_sample(*arguments, **named)
    def get_description(self):
        return "sampling"

class Processor(SpanProcessor):
    def on_start(self, span, parent_context=None):
        fail("start")
    def on_end(self, span):
        fail("end")

class Exporter(SpanExporter):
    def export(self, spans):
        fail("exporter")
        sent.extend(spans)

logging.getLogger("opentelemetry").addHandler(logging.NullHandler())
logging.getLogger("opentelemetry").propagate = False
provider = TracerProvider(sampler=Sampling())
provider.add_span_processor(Processor())
provider.add_span_processor(SimpleSpanProcessor(Exporter()))
trace.set_tracer_provider(provider)
heard = []

async def hold():
    global broken
    for _ in range(2):
        await asyncio.sleep(0.1)
        time.sleep(0.3)
        await asyncio.sleep(0.1)
        assert guard.flush(10)
        broken = None  # the next one is sent again

guard = loopguard.install(jsonl={str(jsonl)!r}, on_stall=heard.append)
asyncio.run(hold())
print(json.dumps({{"heard": len(heard), "sent": len(sent), **guard.stats()}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout)
    logged = [json.loads(line) for line in done.stderr.splitlines()]
    stalls = [event for event in logged if event["event"] == "event_loop.stall"]
    troubles = [event for event in logged if event["event"] == "event_loop.guard.trouble"]
    # An exporter's errors are contained by the SDK already.
    contained_by_sdk = part == "exporter"
    assert (told["heard"], told["sent"]) == (2, 1)
    assert len(stalls) == len(jsonl.read_text().splitlines()) == 2
    assert told["sink_errors"] == (0 if contained_by_sdk else 1)
    assert [event["error"] for event in troubles] == (
        [] if contained_by_sdk else ["broken on purpose"]
    )
