"""docs/signals.md names exactly what is emitted."""

from __future__ import annotations

import re
from contextvars import Context
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import loopguard
from loopguard.evidence import StoodStill
from loopguard.record import Cause, Delayed, Stall
from loopguard.show.diff import compare, comparison_as_json
from loopguard.show.document import document
from loopguard.show.read import LeftOut
from loopguard.show.summary import Summary
from loopguard.tell import metrics
from loopguard.tell.log import stall_fields
from loopguard.tell.spans import Spans
from tests.records import STARTED_NS, make_report, make_stall

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "signals.md").read_text()
HOW = (Path(__file__).resolve().parents[1] / "docs" / "how-it-works.md").read_text()
REPORT = (Path(__file__).resolve().parents[1] / "docs" / "report.md").read_text()


def _section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def _first_column(section: str) -> set[str]:
    """The names in code marks in the first column of a section's tables."""
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| ")]
    return {name for cell in rows for name in re.findall(r"`([\w.]+)`", cell)}


def test_the_record_page_names_each_field() -> None:
    assert _first_column(_section("The record")) == {field.name for field in fields(Stall)}


def test_the_log_page_names_each_key() -> None:
    listed = _section("Log").partition("left out: ")[2].partition(".\n\n")[0]
    listed = re.sub(r"\([^)]*\)", "", listed)
    assert set(re.findall(r"`(\w+)`", listed)) == set(stall_fields(make_stall()))


def test_the_span_page_names_each_attribute() -> None:
    """Those of a stall that has them all, in a trace that is not sampled too."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    Spans(provider=provider)(make_report(make_stall(), context=Context()))
    (span,) = exporter.get_finished_spans()
    named = _first_column(_section("Span")) - {"attribute"}
    page = {f"loopguard.stall{name}" if name.startswith(".") else name for name in named}
    assert set(span.attributes or {}) <= page


def test_the_metrics_page_names_each_instrument_with_its_kind_and_unit() -> None:
    kinds = {"histogram": metrics.HISTOGRAMS, "counter": metrics.COUNTERS, "gauge": metrics.GAUGES}
    emitted = {(m.name, f"{kind}, {m.unit}") for kind, each in kinds.items() for m in each}
    rows = [line.split("|") for line in _section("Metrics").splitlines() if "`loopguard." in line]
    told = {(row[1].strip(" `"), row[2].strip()) for row in rows if row[0] == ""}
    assert told == emitted
    assert all(
        len(row) == 6 and all(cell.strip() for cell in row[1:5]) for row in rows if row[0] == ""
    )


def test_the_metrics_page_names_each_attribute() -> None:
    for attribute in (metrics.CAUSE, metrics.SEVERITY, metrics.ROUTE, metrics.REASON):
        assert f"`{attribute}`" in _section("Metrics")


def test_the_span_page_names_each_attribute_of_a_delay() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    own = provider.get_tracer("app").start_span("request")
    told = Delayed("GET", "/quick", None, None, 0.4, True, True, None)
    delay = StoodStill(told, own, STARTED_NS, STARTED_NS + 1, object())
    Spans(provider=provider)(replace(make_report(), delays=(delay,)))
    (span,) = [each for each in exporter.get_finished_spans() if each.name == "event_loop.delay"]
    named = _first_column(_section("Span")) - {"attribute"}
    page = {f"loopguard.stall{name}" if name.startswith(".") else name for name in named}
    assert set(span.attributes or {}) <= page
    assert {"loopguard.delay", "loopguard.blocked", "loopguard.stall.id"} <= page


def test_the_record_page_tells_of_each_key_of_a_delayed_request() -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("| `delayed` |"))
    assert {field.name for field in fields(Delayed)} <= set(re.findall(r"`(\w+)`", row))


def test_the_statistics_page_names_each_count() -> None:
    with loopguard.install(log=False) as guard:
        assert _first_column(_section("Statistics")) == set(guard.stats())


def test_each_cause_is_explained() -> None:
    named = set(re.findall(r"^\| `(\w+)` \|", HOW, re.MULTILINE))
    assert named == set(get_args(Cause))


def test_the_report_page_names_each_field_of_the_json() -> None:
    told = document(Summary(), LeftOut(), title="", written_at=0.0)
    table = REPORT.partition("\n## The JSON\n")[2].partition("\n## ")[0]
    assert _first_column(table) - {"field"} == set(told)
    (totals,) = (line for line in table.splitlines() if line.startswith("| `totals`"))
    assert set(re.findall(r"`(\w+)`", totals)) - {"totals"} == set(told["totals"])


def test_the_report_page_names_each_field_of_the_diff() -> None:
    told = comparison_as_json(compare(Summary(), Summary()))
    words = set(re.findall(r"`(\w+)`", REPORT.partition("As JSON: ")[2]))
    assert set(told) | set(told["before"]) <= words


def test_each_picture_of_the_report_page_is_there() -> None:
    pictures = re.findall(r"\]\((pictures/[^)]+)\)", REPORT)
    assert pictures
    docs = Path(__file__).resolve().parents[1] / "docs"
    assert [name for name in pictures if not (docs / name).is_file()] == []
