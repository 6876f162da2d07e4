"""One culprit, and three hundred others at the same time: exactly those that had to wait are named."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra `fastapi`")
pytest.importorskip("opentelemetry.sdk", reason="needs the extra `otlp`")
pytest.importorskip("uvicorn", reason="needs the extra `demo`")

from tests.delays.client import Asked
from tests.delays.scenes import HELD, Scene, play, record_of, rows_of, spans_of, truth_of, warm
from tests.jaeger import Jaeger, Span, find_jaeger, running_jaeger
from tests.places.servers import UVICORN, serve
from tests.real.conftest import NEEDS_UVLOOP
from tests.real.server import Row

EACH = 100
AFTER = 5
EXACT = 0.01
STARTED = (
    0.02  # how much later than the line that blocks a stall may be said to begin, or sooner to end
)
# The telemetry, and the protocol by which spans travel to Jaeger: each pair once.
SETUPS = {
    "uvicorn-h11-asyncio": ("contrib", "http/protobuf"),
    "uvicorn-httptools-asyncio": ("fastapi", "grpc"),
    "uvicorn-h11-uvloop": ("fastapi", "http/protobuf"),
    "uvicorn-httptools-uvloop": ("contrib", "grpc"),
}
assert set(SETUPS) == set(UVICORN)
AT = {0.1: 60, 0.5: 300, 0.9: 540}  # milliseconds


@pytest.fixture(scope="module")
def jaeger() -> Iterator[Jaeger | None]:
    binary = find_jaeger()
    if binary is None:
        yield None
    else:
        with running_jaeger(binary) as running:
            yield running


def to_jaeger(jaeger: Jaeger | None, protocol: str, service: str) -> dict[str, str]:
    if jaeger is None:
        return {}
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.otlp_grpc if protocol == "grpc" else jaeger.otlp_http,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_SERVICE_NAME": service,
    }


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=NEEDS_UVLOOP if "uvloop" in name else ()) for name in SETUPS],
)
def scene(
    request: pytest.FixtureRequest, jaeger: Jaeger | None, tmp_path_factory: pytest.TempPathFactory
) -> Scene:
    """It has ended, and its server too, so that all spans were sent."""
    name = request.param
    telemetry, protocol = SETUPS[name]
    directory: Path = tmp_path_factory.mktemp(name)
    culprit = Asked(f"/hold/{HELD * 1000:.0f}?after=500&rest=500")
    waited = {
        "tick": [Asked("/tick/2500") for _ in range(EACH)],
        "at": [Asked(f"/at/{milliseconds}") for milliseconds in AT.values()],
        "queued": [Asked(f"/quick/{number}") for number in range(EACH)],
    }
    innocent = {
        "wait": [Asked("/wait/3500") for _ in range(EACH)],
        "after": [Asked(f"/quick/after-{number}") for number in range(AFTER)],
    }
    variables = to_jaeger(jaeger, protocol, name)
    with serve(
        directory, "tests.delays.app:app", name, telemetry=telemetry, variables=variables
    ) as server:

        async def ask() -> None:
            await warm(server.url)
            flying = [*waited["tick"], *waited["at"], *innocent["wait"]]
            await play(server, culprit, flying, waited["queued"], innocent["after"])

        asyncio.run(ask())
        truth = truth_of(server)
        record = record_of(server, truth)
        spans = spans_of(server, record)
    played = Scene(culprit, waited, innocent, truth, record, spans, rows_of(server.starts, "at"))
    played.settle()
    return played


def test_exactly_those_that_waited_are_named_and_each_once(scene: Scene) -> None:
    for kind, those in scene.waited.items():
        traces = [span["trace_id"] for span in scene.named(those)]
        assert sorted(traces) == sorted(asked.trace_id for asked in those), kind
        assert len(those) >= (2 if kind == "at" else EACH // 2)
    assert {kind: scene.named(those) for kind, those in scene.innocent.items()} == {
        kind: [] for kind in scene.innocent
    }
    assert scene.named([scene.culprit]) == []
    total = sum(len(those) for those in scene.waited.values())
    assert total <= len(scene.delays) <= total + doubtful(scene)


def doubtful(scene: Scene) -> int:
    """How many came so near to the begin or the end that they may have waited or not; none on a quiet machine."""
    groups = [*scene.waited.values(), *scene.innocent.values()]
    return 3 * EACH + len(AT) + AFTER - sum(len(those) for those in groups)


def test_the_record_counts_them_and_lists_a_hundred(scene: Scene) -> None:
    """Those that had begun when it went out; it says where some had not."""
    record = scene.record
    ready = EACH + len(scene.waited["at"])
    assert ready <= record["delayed_requests"] <= len(scene.delays)
    if record["delayed_complete"]:
        assert record["delayed_requests"] == len(scene.delays)
    assert len(record["delayed"]) == 100
    delays = [each["delay"] for each in record["delayed"]]
    assert delays == sorted(delays, reverse=True)
    named = {span["trace_id"]: span for span in scene.delays}
    for each in record["delayed"]:
        span = named[each["trace_id"]]
        assert span["parent_id"] == each["span_id"]
        assert span["attributes"]["loopguard.delay"] == round(each["delay"], 6)
        assert each["method"] == "GET"
        assert each["route"] in {"/tick/{milliseconds}", "/at/{milliseconds}", "/quick/{item}"}
    flying = 2 * EACH + len(scene.waited["at"])
    assert flying <= record["in_flight"] <= flying + doubtful(scene)
    assert record["open_connections"] == 0


def test_what_was_ready_waited_for_the_whole_stall_at_most_and_nobody_claims_to_know_better(
    scene: Scene,
) -> None:
    for span in scene.named([*scene.waited["tick"], *scene.waited["at"]]):
        attributes = span["attributes"]
        assert not attributes["loopguard.delay.exact"]
        assert not attributes["loopguard.delay.queued"]
        assert attributes["loopguard.delay"] == round(scene.record["duration"], 6)


def test_no_delay_is_too_small_wherever_in_the_stall_it_became_ready(scene: Scene) -> None:
    left = scene.truth["left"]
    assert scene.woke
    for row in scene.woke:
        [span] = [each for each in scene.delays if each["trace_id"] == row["trace_id"]]
        assert span["attributes"]["loopguard.delay"] >= left - row["due"] - STARTED


def test_of_what_lay_unread_it_is_known_since_when(scene: Scene) -> None:
    """By the kernel's account, against the client's."""
    for asked in scene.waited["queued"]:
        [span] = scene.named([asked])
        assert span["attributes"]["loopguard.delay.queued"]
        assert span["attributes"]["loopguard.delay.exact"]
        arrived = scene.ended - span["attributes"]["loopguard.delay"]
        assert asked.sending - EXACT <= arrived <= asked.sent + EXACT


def test_each_span_is_a_child_of_its_requests_own_and_within_it(scene: Scene) -> None:
    own = {span["span_id"]: span for span in scene.spans if span["kind"] == "SERVER"}
    for span in scene.delays:
        parent = own[span["parent_id"]]
        assert parent["trace_id"] == span["trace_id"]
        assert parent["start_ns"] <= span["start_ns"] < span["end_ns"] <= parent["end_ns"]
        if span["attributes"]["loopguard.delay.queued"]:
            assert span["end_ns"] - parent["start_ns"] == 1
        assert span["kind"] == "INTERNAL"


def test_each_names_the_culprits_line(scene: Scene) -> None:
    expected = {
        "code.function.name": "tests.delays.app.hold",
        "code.file.path": scene.record["culprit"]["file"],
        "code.line.number": scene.record["culprit"]["line"],
        "loopguard.stall.id": scene.record["id"],
        "loopguard.stall.cause": "blocking_call",
        "loopguard.stall.call": "time.sleep",
    }
    for span in scene.delays:
        attributes = span["attributes"]
        measured = {"loopguard.delay", "loopguard.delay.exact", "loopguard.delay.queued"}
        assert {key: attributes[key] for key in set(attributes) - measured} == expected


def test_links_lead_both_ways_and_none_is_dead(scene: Scene) -> None:
    stall = scene.stall
    for span in scene.delays:
        [link] = span["links"]
        assert (link["trace_id"], link["span_id"]) == (stall["trace_id"], stall["span_id"])
    delays = {span["span_id"]: span for span in scene.delays}
    assert len(stall["links"]) == 32
    longest = sorted((s["attributes"]["loopguard.delay"] for s in scene.delays), reverse=True)
    for link, delay in zip(stall["links"], longest, strict=False):
        span = delays[link["span_id"]]
        assert span["trace_id"] == link["trace_id"]
        assert link["attributes"] == {
            "loopguard.link.type": "delayed",
            "loopguard.delay": span["attributes"]["loopguard.delay"],
        }
        assert link["attributes"]["loopguard.delay"] == delay


def test_requests_own_spans_say_it_where_they_still_recorded(scene: Scene) -> None:
    """Those in flight went on for long enough; those that lay unread may have ended by then."""
    own = {span["trace_id"]: span for span in scene.spans if span["kind"] == "SERVER"}
    stall_id, duration = scene.record["id"], round(scene.record["duration"], 6)
    for asked in scene.waited["tick"]:
        attributes = own[asked.trace_id]["attributes"]
        assert attributes["loopguard.delay"] >= duration  # on a busy machine there are other stalls
        assert attributes["loopguard.stall.id"] == stall_id
    culprit = own[scene.culprit.trace_id]["attributes"]
    assert culprit["loopguard.blocked"] >= duration
    assert culprit["loopguard.stall.id"] == stall_id
    for those in scene.innocent.values():
        for asked in those:
            assert own[asked.trace_id]["attributes"].get("loopguard.stall.id") != stall_id


def test_jaeger_has_them_all_with_their_links_and_marks_nothing(
    scene: Scene, jaeger: Jaeger | None
) -> None:
    if jaeger is None:
        pytest.skip("no Jaeger here: build one with .ci/jaeger, or name one in LOOPGUARD_JAEGER")
    [stall] = shown(jaeger, scene.culprit.trace_id, "event_loop.stall", scene.record)
    assert len(stall["links"]) == 32
    found: dict[str, Span] = {}
    for those in scene.waited.values():
        for asked in those:
            [delay] = shown(jaeger, asked.trace_id, "event_loop.delay", scene.record)
            [link] = delay["links"]
            assert (link["traceId"], link["spanId"]) == (stall["traceId"], stall["spanId"])
            found[delay["spanId"]] = delay
    for link in stall["links"]:
        delay = found[link["spanId"]]
        assert delay["traceId"] == link["traceId"]
        assert link["attributes"]["loopguard.link.type"] == "delayed"
        assert link["attributes"]["loopguard.delay"] == delay["attributes"]["loopguard.delay"]
    for kind in ("tick", "queued"):
        assert own_warnings(jaeger, scene.waited[kind][0]) == []
    traces = jaeger.search(
        stall["resource"]["service.name"], tags={"loopguard.stall.id": scene.record["id"]}
    )
    assert {stall["traceId"], *(delay["traceId"] for delay in found.values())} <= set(traces)


def shown(jaeger: Jaeger, trace_id: str, name: str, record: Row) -> list[Span]:
    """The spans of that name and stall."""

    def of_it(spans: list[Span]) -> list[Span]:
        named = [span for span in spans if span["name"] == name]
        return [s for s in named if s["attributes"]["loopguard.stall.id"] == record["id"]]

    return of_it(jaeger.wait_for_spans(trace_id, lambda spans: bool(of_it(spans))))


def own_warnings(jaeger: Jaeger, asked: Asked) -> list[str]:
    """Without that of the missing caller's span, which nobody has sent."""
    return [each for each in jaeger.warnings(asked.trace_id) if "parent span" not in each]
