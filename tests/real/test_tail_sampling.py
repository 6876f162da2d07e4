"""The documented Collector configuration keeps each trace that a stall touched, whole, and few others."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra `otlp`")
yaml = pytest.importorskip("yaml", reason="needs PyYAML, to read the documented configuration")
httpx = pytest.importorskip("httpx", reason="needs the extra `demo`")
pytest.importorskip("uvicorn", reason="needs the extra `demo`")

from tests.jaeger import Jaeger, Span, find_jaeger, running_jaeger  # noqa: E402
from tests.real.server import ROOT, Row, Server, read_rows, serve, wait_until  # noqa: E402

PAGE = (ROOT / "docs" / "jaeger.md").read_text()
WAIT = "3s"  # the page's own is longer than a test should be
STALLS, INNOCENT = 3, 60
SERVICE = "tail"


def block(language: str) -> str:
    [found] = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def documented() -> dict[str, Any]:
    """The processors of the page's configuration, in the order of its pipeline."""
    config = yaml.safe_load(block("yaml"))
    order = config["service"]["pipelines"]["traces"]["processors"]
    processors = {name: config["processors"][name] or {} for name in order}
    processors["tail_sampling"] |= {"decision_wait": WAIT}
    return processors


@pytest.fixture(scope="module")
def jaeger() -> Iterator[Jaeger]:
    binary = find_jaeger()
    if binary is None:
        pytest.skip("no Jaeger here: build one with .ci/jaeger, or name one in LOOPGUARD_JAEGER")
    with running_jaeger(binary, documented()) as running:
        yield running


@dataclass(frozen=True)
class Sent:
    """What an app sent, by trace, and the records of its stalls; it has ended since."""

    traces: dict[str, list[Row]]
    records: list[Row]


@pytest.fixture(scope="module")
def sent(jaeger: Jaeger, tmp_path_factory: pytest.TempPathFactory) -> Sent:
    """Stalls with other requests beside them, which wait for it or for something else, and many that meet none."""
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.otlp_http,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_SERVICE_NAME": SERVICE,
        "OTEL_TRACES_SAMPLER": "always_on",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    directory: Path = tmp_path_factory.mktemp("tail")
    with serve(directory, loop="asyncio", variables=variables) as server:
        get(
            server, "/innocent/served/all"
        )  # the first request of all is slow before it gets anywhere
        for _ in range(STALLS):
            together(server, "/v1/cases/sleep/7", *["/innocent/sleep/7"] * 6)
        assert wait_until(lambda: len(final(server)) >= STALLS, 10)
        for _ in range(INNOCENT):
            get(server, "/innocent/served/all")
    traces = defaultdict(list)
    for span in read_rows(server.spans):
        traces[span["trace_id"]].append(span)
    return Sent(dict(traces), final(server))


def final(server: Server) -> list[Row]:
    return [row for row in read_rows(server.jsonl) if row["request"] and not row["ongoing"]]


def get(server: Server, path: str) -> None:
    assert httpx.get(server.url + path, timeout=30, trust_env=False).status_code == 200


def together(server: Server, *paths: str) -> None:
    with ThreadPoolExecutor(len(paths)) as pool:
        list(pool.map(lambda path: get(server, path), paths))


@pytest.fixture(scope="module")
def kept(jaeger: Jaeger, sent: Sent) -> dict[str, list[Span]]:
    """The traces that came through, once those of all stalls have."""

    def found() -> set[str]:
        return set(jaeger.search(SERVICE))

    touched = {
        trace_id
        for trace_id, spans in sent.traces.items()
        if any("loopguard.stall.id" in s["attributes"] for s in spans)
    }
    assert wait_until(lambda: touched <= found(), 20), touched - found()
    return {
        trace_id: jaeger.wait_for_spans(trace_id, len(sent.traces[trace_id]))
        for trace_id in found()
    }


def test_each_trace_that_a_stall_touched_is_kept_whole(
    sent: Sent, kept: dict[str, list[Span]]
) -> None:
    assert len(sent.records) >= STALLS
    for record in sent.records:
        spans = kept[record["request"]["trace_id"]]
        ids = [span["attributes"].get("loopguard.stall.id") for span in spans]
        assert record["id"] in ids
    for trace_id, spans in kept.items():
        assert {s["spanId"] for s in spans} == {s["span_id"] for s in sent.traces[trace_id]}


def test_each_request_that_waited_is_kept_with_the_stall_that_it_waited_for(
    sent: Sent, kept: dict[str, list[Span]], jaeger: Jaeger
) -> None:
    for record in sent.records:
        waited = {each["trace_id"] for each in record["delayed"] or () if each["trace_id"]}
        found = set(jaeger.search(SERVICE, tags={"loopguard.stall.id": record["id"]}))
        assert waited | {record["request"]["trace_id"]} <= found <= kept.keys()


def test_no_link_leads_nowhere(kept: dict[str, list[Span]]) -> None:
    there = {(span["traceId"], span["spanId"]) for spans in kept.values() for span in spans}
    links = [link for spans in kept.values() for span in spans for link in span["links"]]
    assert [link for link in links if (link["traceId"], link["spanId"]) not in there] == []


def test_of_those_that_met_no_stall_few_are_kept(sent: Sent, kept: dict[str, list[Span]]) -> None:
    innocent = [
        trace_id
        for trace_id, spans in sent.traces.items()
        if not any("loopguard.stall.id" in span["attributes"] for span in spans)
    ]
    assert len(innocent) >= INNOCENT
    assert len(kept.keys() & set(innocent)) <= INNOCENT // 6, "one in a hundred is to be expected"


def test_the_settings_of_the_page_are_such_as_it_reads() -> None:
    """Its own tags, by their names; a link to a search for the id."""
    settings = json.loads(block("json"))
    assert settings["topTagPrefixes"][0] == "code."
    [pattern] = settings["linkPatterns"]
    assert (pattern["type"], pattern["key"]) == ("tags", "loopguard.stall.id")
    assert "#{loopguard.stall.id}" in pattern["url"]
