"""What a real Jaeger shows of a stall, against the records and against known truth."""

from __future__ import annotations

import contextvars
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra `otlp`")
pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="needs the extra `otlp`")
httpx = pytest.importorskip("httpx", reason="needs the extra `demo`")
pytest.importorskip("uvicorn", reason="needs the extra `demo`")

from opentelemetry import trace  # noqa: E402
from opentelemetry.context import Context, attach  # noqa: E402
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: E402
from opentelemetry.sdk.resources import Resource  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator  # noqa: E402
from opentelemetry.sdk.trace.sampling import ALWAYS_ON  # noqa: E402
from opentelemetry.trace import (  # noqa: E402
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    TraceFlags,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import (  # noqa: E402
    TraceContextTextMapPropagator,
)

from loopguard.tell.spans import Spans  # noqa: E402
from tests.jaeger import Jaeger, Span, find_jaeger, running_jaeger  # noqa: E402
from tests.real.conftest import NEEDS_UVLOOP  # noqa: E402
from tests.real.server import Child, Row, Server, read_rows, serve, wait_until  # noqa: E402
from tests.real.told import CLOCK, LATE_BEAT, RECORD_SECONDS, belongs  # noqa: E402
from tests.records import STARTED_NS, make_report  # noqa: E402

STALL = "event_loop.stall"
DEMO = "jaeger-demo"
INTERNAL, SERVER = 1, 2
UNSET, ERROR = 0, 2
MICROSECOND = 1000  # in nanoseconds: what a record's unix seconds are exact to, as floats
DEMO_SECONDS = 60.0  # it takes 13 of them on an idle machine

# Telemetry, loop, and the protocol by which its spans travel.
# In each the active span began in an earlier callback: so it is the parent however busy the machine.
CASES = ["resumed", "child_task"]
SETUPS = [
    *(("before", "asyncio", "http/protobuf"), ("after", "asyncio", "grpc")),
    ("fastapi", "asyncio", "http/protobuf"),
    pytest.param(("before", "uvloop", "grpc"), marks=NEEDS_UVLOOP),
    pytest.param(("after", "uvloop", "http/protobuf"), marks=NEEDS_UVLOOP),
    pytest.param(("fastapi", "uvloop", "http/protobuf"), marks=NEEDS_UVLOOP),
]


@pytest.fixture(scope="module")
def jaeger() -> Iterator[Jaeger]:
    binary = find_jaeger()
    if binary is None:
        pytest.skip("no Jaeger here: build one with .ci/jaeger, or name one in LOOPGUARD_JAEGER")
    with running_jaeger(binary) as running:
        yield running


def sending_to(jaeger: Jaeger, service: str, protocol: str = "http/protobuf") -> dict[str, str]:
    """OpenTelemetry's variables for a process that sends all its spans there."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.otlp_grpc if protocol == "grpc" else jaeger.otlp_http,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_SERVICE_NAME": service,
        "OTEL_TRACES_SAMPLER": "parentbased_always_on",
    }


@dataclass(frozen=True)
class Shown:
    """One record, and the trace that it names as Jaeger has it."""

    record: Row
    spans: list[Span]

    @property
    def trace_id(self) -> str:
        return str(self.record["trace_id"])

    @property
    def stall(self) -> Span:
        [stall] = [span for span in self.spans if is_of(span, self.record)]
        return stall

    @property
    def parent(self) -> Span:
        [parent] = [span for span in self.spans if span["spanId"] == self.stall["parentSpanId"]]
        return parent

    @property
    def server(self) -> Span:
        [server] = [span for span in self.spans if span["kind"] == SERVER]
        return server


def is_of(span: Span, record: Row) -> bool:
    """Its delays, and the spans of the requests that it delayed, name it too."""
    return span["name"] == STALL and span["attributes"]["loopguard.stall.id"] == record["id"]


def read_back(jaeger: Jaeger, record: Row) -> Shown:
    """The trace that a record names, once stall and request are in it."""

    def is_whole(spans: list[Span]) -> bool:
        return any(is_of(span, record) for span in spans) and any(
            span["kind"] == SERVER for span in spans
        )

    return Shown(record, jaeger.wait_for_spans(record["trace_id"], is_whole))


def within_parent(shown: Shown, unix_seconds: float) -> int:
    """The moment in nanoseconds, moved into the parent's interval where it is outside."""
    parent = shown.parent
    moment = round(unix_seconds * 1e9)
    return min(max(moment, parent["startTimeUnixNano"]), parent["endTimeUnixNano"])


def check_interval(shown: Shown) -> None:
    """The span's is the record's, cut to the parent's: to the microsecond, and never outside."""
    record, stall, parent = shown.record, shown.stall, shown.parent
    assert parent["startTimeUnixNano"] <= stall["startTimeUnixNano"]
    assert stall["startTimeUnixNano"] <= stall["endTimeUnixNano"] <= parent["endTimeUnixNano"]
    began = within_parent(shown, record["started_at"])
    ended = within_parent(shown, record["started_at"] + record["duration"])
    assert abs(stall["startTimeUnixNano"] - began) <= MICROSECOND
    assert abs(stall["endTimeUnixNano"] - ended) <= MICROSECOND


@dataclass(frozen=True)
class Demo:
    """What the demo printed, its records that name a trace, with that, and those that name none."""

    output: str
    traces: list[Shown]
    untraced: list[Row]


@pytest.fixture(scope="module")
def demo(jaeger: Jaeger, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    directory = tmp_path_factory.mktemp("demo")
    jsonl = directory / "stalls.jsonl"
    child = Child(
        [
            *("-m", "loopguard", "demo", "--jsonl", str(jsonl)),
            *("--trace-url", jaeger.query + "/trace/{trace_id}"),
        ],
        directory / "output.log",
        sending_to(jaeger, DEMO),
    )
    try:
        assert child.process.wait(DEMO_SECONDS) == 0, child.read()
    finally:
        child.stop()
    records = [row for row in read_rows(jsonl) if not row["ongoing"]]
    traces = [read_back(jaeger, record) for record in records if record["trace_id"]]
    assert traces, child.read()
    return Demo(child.read(), traces, [record for record in records if not record["trace_id"]])


def test_each_record_has_one_span_in_its_trace(demo: Demo) -> None:
    """And no span is there that has no record."""
    for shown in demo.traces:
        stalls = [span for span in shown.spans if span["name"] == STALL]
        records = [each.record for each in demo.traces if each.trace_id == shown.trace_id]
        assert sorted(span["attributes"]["loopguard.stall.id"] for span in stalls) == sorted(
            record["id"] for record in records
        )


def test_it_is_an_internal_span_of_ours_beside_the_requests_own(demo: Demo) -> None:
    for shown in demo.traces:
        stall = shown.stall
        assert (stall["name"], stall["kind"], stall["scope"]) == (STALL, INTERNAL, "loopguard")
        assert stall["resource"] == shown.server["resource"]
        assert stall["resource"]["service.name"] == DEMO
        assert {link["attributes"]["loopguard.link.type"] for link in stall["links"]} <= {"delayed"}


def test_its_parent_is_the_span_that_was_active_the_server_span_of_that_route(demo: Demo) -> None:
    """The app makes no spans of its own: in each trace there is one span for the request."""
    for shown in demo.traces:
        record, request = shown.record, shown.record["request"]
        assert shown.stall["traceId"] == record["trace_id"] == request["trace_id"]
        assert shown.stall["parentSpanId"] == record["span_id"] == request["span_id"]
        assert shown.parent == shown.server
        assert shown.parent["parentSpanId"] == ""
        assert shown.parent["name"] == f"{request['method']} {request['route']}"
        assert shown.parent["attributes"]["http.route"] == request["route"]


def test_its_attributes_are_the_record_field_by_field(demo: Demo) -> None:
    """And there are no others, but for the stack and the thread's number."""
    for shown in demo.traces:
        found = dict(shown.stall["attributes"])
        found.pop("code.stacktrace", None)
        assert isinstance(found.pop("thread.id"), int)
        assert found == expected_attributes(shown.record)


def test_its_stack_is_the_records_with_library_frames_by_number(demo: Demo) -> None:
    for shown in demo.traces:
        frames, culprit = shown.record["stack"], shown.record["culprit"]
        lines = shown.stall["attributes"].get("code.stacktrace", "").splitlines()
        own = [frame for frame in frames if not frame["library"] or frame == culprit]
        numbers = [re.match(r"\[(\d+) library frames? left out\]$", line) for line in lines]
        assert [line for line, number in zip(lines, numbers, strict=True) if not number] == [
            f"{frame['file']}:{frame['line']} in {frame['function']}" for frame in own
        ]
        left_out = [int(number[1]) if number else 0 for number in numbers]
        assert sum(left_out) == len(frames) - len(own)
        assert not any(one and two for one, two in pairwise(left_out))


def test_its_interval_is_the_records_within_its_parents(demo: Demo) -> None:
    for shown in demo.traces:
        check_interval(shown)


def test_an_error_says_so_in_its_status_and_nothing_else_does(demo: Demo) -> None:
    for shown in demo.traces:
        record, status = shown.record, shown.stall["status"]
        if record["severity"] == "error":
            assert status == {"code": ERROR, "message": description(record)}
        else:
            assert status == {"code": UNSET, "message": ""}
        assert shown.server["status"]["code"] == UNSET


def test_jaeger_marks_nothing(demo: Demo, jaeger: Jaeger) -> None:
    """As it does a span that leaves its parent's interval by a microsecond."""
    assert [warning for shown in demo.traces for warning in jaeger.warnings(shown.trace_id)] == []


def test_it_is_found_by_its_name_and_by_its_id(demo: Demo, jaeger: Jaeger) -> None:
    """A stall beside no span is found so too, as a trace of its own."""
    roots = [root for record in demo.untraced for root in jaeger.search(DEMO, STALL, by_id(record))]
    assert [[span["name"] for span in jaeger.trace_v3(root)] for root in roots] == [
        [STALL] for _ in demo.untraced
    ]
    for shown in demo.traces:
        assert jaeger.search(DEMO, STALL, by_id(shown.record)) == [shown.trace_id]
    assert set(jaeger.search(DEMO, STALL)) == {*roots, *(shown.trace_id for shown in demo.traces)}


def test_the_addresses_that_it_prints_are_those_of_these_traces(demo: Demo, jaeger: Jaeger) -> None:
    printed = re.findall(re.escape(jaeger.query) + r"/trace/(\S+)", demo.output)
    assert printed == [shown.trace_id for shown in demo.traces]


def expected_attributes(record: Row) -> Row:
    same = (
        *("id", "fingerprint", "cause", "severity", "budget", "duration", "cpu_time", "gc_time"),
        *("call", "waited_on", "samples", "confidence", "delayed_requests", "suppressed"),
    )
    culprit, request = record["culprit"] or {}, record["request"] or {}
    values = {
        **{f"loopguard.stall.{name}": record[name] for name in same},
        "loopguard.task.name": record["task"],
        "thread.name": record["thread"],
        "http.route": request.get("route"),
        "http.request.method": request.get("method"),
        "code.file.path": culprit.get("file"),
        "code.line.number": culprit.get("line"),
        "code.function.name": culprit and f"{culprit['module']}.{culprit['function']}",
    }
    return {
        key: round(value, 6) if isinstance(value, float) else value
        for key, value in values.items()
        if value not in (None, {})
    }


def description(record: Row) -> str:
    by = f" by {record['call']}" if record["call"] else f" ({record['cause']})"
    culprit = record["culprit"]
    at = f" at {culprit['file']}:{culprit['line']}" if culprit else ""
    return f"event loop blocked {record['duration'] * 1000:.0f} ms{by}{at}"


@dataclass(frozen=True)
class Visit:
    """One call of the real app: the span that made it, what blocked, and the record of it."""

    caller: SpanContext
    truth: Row
    record: Row


def visit(server: Server, case: str, caller: trace.Span) -> Visit:
    headers = dict[str, str]()
    TraceContextTextMapPropagator().inject(headers, set_span_in_context(caller, Context()))
    response = httpx.get(
        f"{server.url}/v1/cases/{case}/4711", headers=headers, timeout=30, trust_env=False
    )
    assert response.status_code == 200, server.child.read()
    truth = read_rows(server.truth)[-1]
    record = await_record(server.jsonl, truth)
    assert record is not None, server.child.read()
    caller.end()  # not before the request's own span, which ends after the answer is out
    return Visit(caller.get_span_context(), truth, record)


def await_record(jsonl: Path, truth: Row) -> Row | None:
    """Whatever it says of the cause: that is held elsewhere."""

    def found() -> list[Row]:
        return [record for record in read_rows(jsonl) if belongs(record, truth)]

    wait_until(lambda: bool(found()), RECORD_SECONDS)
    return next(iter(found()), None)


@pytest.fixture(scope="module")
def provider(jaeger: Jaeger) -> Iterator[TracerProvider]:
    """The caller's: without the span that began it, Jaeger would mark every trace as broken."""
    provider = TracerProvider(
        sampler=ALWAYS_ON, resource=Resource({"service.name": "caller"}), shutdown_on_exit=False
    )
    exporter = OTLPSpanExporter(endpoint=f"{jaeger.otlp_http}/v1/traces")
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider
    provider.shutdown()


@dataclass(frozen=True)
class Visits:
    """All calls of one app, which has ended since and sent all that it had."""

    service: str
    sampled: dict[str, Visit]
    unsampled: Visit


@pytest.fixture(scope="module", params=SETUPS, ids="-".join)
def visits(
    request: pytest.FixtureRequest,
    jaeger: Jaeger,
    provider: TracerProvider,
    tmp_path_factory: pytest.TempPathFactory,
) -> Visits:
    """Nothing is read before the app has ended.

    For Jaeger never takes back what it marked in a trace when asked for it half-way.
    """
    telemetry, loop, protocol = request.param
    service = f"{telemetry}-{loop}"
    variables = sending_to(jaeger, service, protocol)
    tracer = provider.get_tracer(__name__)
    directory: Path = tmp_path_factory.mktemp(service)
    with serve(directory, loop=loop, telemetry=telemetry, variables=variables) as server:
        # The first request of all is slow before it gets anywhere.
        httpx.get(f"{server.url}/innocent/ready", timeout=30, trust_env=False)
        sampled = {
            case: visit(server, case, tracer.start_span("call", Context(), SpanKind.CLIENT))
            for case in CASES
        }
        unsampled = visit(server, "resumed", NonRecordingSpan(unsampled_context()))
    return Visits(service, sampled, unsampled)


def unsampled_context() -> SpanContext:
    ids = RandomIdGenerator()
    return SpanContext(
        ids.generate_trace_id(), ids.generate_span_id(), False, TraceFlags(TraceFlags.DEFAULT)
    )


@pytest.mark.parametrize("case", CASES)
def test_its_span_is_in_the_callers_trace_under_the_active_span_and_at_the_true_time(
    visits: Visits, jaeger: Jaeger, case: str
) -> None:
    visit = visits.sampled[case]
    shown = read_back(jaeger, visit.record)
    stall, server = shown.stall, shown.server
    trace_id = format_trace_id(visit.caller.trace_id)
    assert stall["traceId"] == trace_id
    assert stall["parentSpanId"] == visit.truth["span_id"]
    assert server["spanId"] == visit.record["request"]["span_id"]
    assert server["parentSpanId"] == format_span_id(visit.caller.span_id)
    check_interval(shown)
    check_truth(stall, visit)
    assert jaeger.search(visits.service, tags=by_id(visit.record)) == [trace_id]
    assert jaeger.warnings(trace_id) == []


def check_truth(stall: Span, visit: Visit) -> None:
    """The callback may begin a little before the line that blocks, and end a little after it."""
    uncertain = visit.record["duration_error"] + CLOCK
    before = visit.truth["entered"] - stall["startTimeUnixNano"] / 1e9
    after = stall["endTimeUnixNano"] / 1e9 - visit.truth["left"]
    assert -uncertain <= before <= uncertain + LATE_BEAT
    assert -uncertain <= after <= uncertain + LATE_BEAT


def test_of_an_unsampled_request_it_is_a_trace_of_its_own_that_names_the_request(
    visits: Visits, jaeger: Jaeger
) -> None:
    """Where the sampler wants roots, as the default one does; and nothing else arrives."""
    record, caller = visits.unsampled.record, visits.unsampled.caller
    [trace_id] = jaeger.search(visits.service, tags=by_id(record))
    [stall] = jaeger.trace_v3(trace_id)
    request = record["request"]
    assert (stall["name"], stall["parentSpanId"], stall["links"]) == (STALL, "", [])
    assert request["trace_id"] == format_trace_id(caller.trace_id) != trace_id
    assert stall["attributes"]["loopguard.request.trace_id"] == request["trace_id"]
    assert stall["attributes"]["loopguard.request.span_id"] == request["span_id"]
    assert jaeger.warnings(trace_id) == []
    assert jaeger.trace_v3(request["trace_id"]) == []


@pytest.mark.parametrize(
    "request_ms, active_ms",
    [
        pytest.param((-10, -5), None, id="a span that ended before"),
        pytest.param((2, 399), None, id="a span within the stall"),
        pytest.param((1, 399), (50, 398), id="beside a span that began in mid-stall"),
        pytest.param((-10, 300), (50, 100), id="beside one that ended long before its parent"),
    ],
)
def test_jaeger_marks_no_stall_that_is_longer_than_its_request(
    jaeger: Jaeger,
    provider: TracerProvider,
    request_ms: tuple[int, int],
    active_ms: tuple[int, int] | None,
) -> None:
    """Nor one of a task that outlived it: that has a length, if only of a nanosecond."""

    def lasting(span_ms: tuple[int, int], inside: Context) -> Context:
        begin_ns, end_ns = (STARTED_NS + each * 1_000_000 for each in span_ms)
        span = provider.get_tracer(__name__).start_span("span", inside, start_time=begin_ns)
        span.end(end_ns)
        return set_span_in_context(span, inside)

    outer = lasting(request_ms, Context())
    own = trace.get_current_span(outer).get_span_context()
    inner = outer if active_ms is None else lasting(active_ms, outer)
    Spans(provider=provider)(make_report(context=inside(inner), request_context=inside(outer)))
    trace_id = format_trace_id(own.trace_id)
    assert [span["name"] for span in jaeger.trace_v3(trace_id)].count(STALL) == 1
    assert jaeger.warnings(trace_id) == []


def inside(active: Context) -> contextvars.Context:
    made = contextvars.Context()
    made.run(attach, active)
    return made


def by_id(record: Row) -> dict[str, str]:
    return {"loopguard.stall.id": record["id"]}
