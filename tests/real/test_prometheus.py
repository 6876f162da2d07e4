"""A real Prometheus scrapes a real app: every query of the dashboard and of the alert rules is answered, and moves."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

httpx = pytest.importorskip("httpx", reason="needs the extra `demo`")
yaml = pytest.importorskip("yaml", reason="needs PyYAML, which uvicorn's extra `standard` brings")
for needed in ("fastapi", "uvicorn", "opentelemetry.exporter.prometheus"):
    pytest.importorskip(
        needed, reason="needs the extra `demo`, and OpenTelemetry's Prometheus exporter"
    )

from loopguard.tell import metrics  # noqa: E402
from tests.jaeger import find_jaeger, running_jaeger  # noqa: E402
from tests.prometheus import Prometheus, Series, find_prometheus, running_prometheus  # noqa: E402
from tests.real.server import ROOT, Child, Row, read_rows, wait_until  # noqa: E402

DOCS = ROOT / "docs"
DASHBOARD, ALERTS = DOCS / "grafana-loopguard.json", DOCS / "alerts-loopguard.yml"
SECONDS = 60.0
WINDOW = "12s"  # instead of minutes, so that there is something in it and something before it
# No stall makes these move: they tell of evidence that is lost, and none is.
LOST = ("loopguard_reports_dropped_total", "loopguard_eventloop_delay_lost_total")

pytestmark = pytest.mark.timeout(180)


@dataclass(frozen=True)
class Query:
    """One that a reader of our documents would run, as Prometheus gets it."""

    where: str
    expression: str

    @property
    def moves(self) -> bool:
        return not any(name in self.expression for name in LOST)

    @property
    def of_delayed(self) -> bool:
        return "loopguard_request_delay" in self.expression


def queries() -> list[Query]:
    found = [
        Query(f"panel {panel['title']}: {target['refId']}", target["expr"])
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for target in panel.get("targets", ())
    ]
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        found += [Query(f"alert {rule['alert']}", rule["expr"]) for rule in group["rules"]]
    return [Query(each.where, _concrete(each.expression)) for each in found]


def _concrete(expression: str) -> str:
    """With Grafana's variables filled in, and short windows."""
    for name in ("$__rate_interval", "$__interval", "$__range"):
        expression = expression.replace(name, WINDOW)
    expression = expression.replace("$job", ".*").replace("$instance", ".*")
    return re.sub(r"(\[|offset )\d+m\b", rf"\g<1>{WINDOW}", expression)


@dataclass(frozen=True)
class Shop:
    """The app, and the Prometheus that scrapes it."""

    url: str
    prometheus: Prometheus
    jsonl: Path

    def get(self, path: str) -> None:
        assert httpx.get(f"{self.url}{path}", timeout=60, trust_env=False).status_code == 200

    def together(self, *paths: str) -> None:
        with ThreadPoolExecutor(len(paths)) as pool:
            list(pool.map(self.get, paths))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    binary = find_prometheus()
    if binary is None:
        pytest.skip("no Prometheus here: `apt-get install prometheus` brings one")
    directory = tmp_path_factory.mktemp("metered")
    jsonl = directory / "stalls.jsonl"
    child = Child(
        ["-m", "uvicorn", "tests.real.metered_app:app", "--port", "0", "--no-access-log"],
        directory / "uvicorn.log",
        {"REAL_JSONL": str(jsonl)},
    )
    try:
        url = child.wait_for(r"running on (http://127\.0\.0\.1:\d+)")
        port = child.wait_for(r"scraped on (\d+)")
        targets = [f"127.0.0.1:{port}"]
        with running_prometheus(binary, directory / "prometheus", targets, ALERTS) as prometheus:
            yield Shop(url, prometheus, jsonl)
    finally:
        child.stop()
    assert "Traceback" not in child.read(), child.read()


def plant(shop: Shop) -> None:
    """All that the metrics tell of: stalls long and short, allowed ones, one line often; a pool that is exhausted."""
    shop.get("/threaded/0.01")
    shop.get("/allowed")
    shop.get("/often")
    shop.together("/hold/2.5", *(["/waits/0.1"] * 24))
    shop.together(*(["/threaded/3"] * 44))
    shop.get("/pause")


def differ(before: Series, now: Series) -> bool:
    """A quantile of nothing is no answer."""
    return _known(before) != _known(now)


def _known(answer: Series) -> Series:
    return {series: value for series, value in answer.items() if not math.isnan(value)}


def test_every_query_is_answered_and_a_stall_changes_its_answer(shop: Shop) -> None:
    """Before, no alert fires; afterwards each does that is about what was planted."""
    asked = queries()
    assert len(asked) > 20
    assert wait_until(lambda: bool(shop.prometheus.query("loopguard_up")), SECONDS)
    time.sleep(3)  # so that rates have two samples
    assert wait_until(lambda: firing(shop, asked) == [], SECONDS), firing(shop, asked)
    before = {each: shop.prometheus.query(each.expression) for each in asked}

    left = {each for each in asked if each.moves}
    with ThreadPoolExecutor(1) as pool:
        planted = pool.submit(plant, shop)
        deadline = time.monotonic() + SECONDS
        while left and time.monotonic() < deadline:
            time.sleep(0.4)
            left -= {
                each
                for each in left
                if differ(before[each], shop.prometheus.query(each.expression))
            }
            if planted.done() and not delayed_at_all(shop):
                left -= {each for each in left if each.of_delayed}
        planted.result()
    assert sorted(each.where for each in left) == []
    lost = {each: shop.prometheus.query(each.expression) for each in asked if not each.moves}
    assert all(set(answer.values()) <= {0.0} for answer in lost.values()), lost


def firing(shop: Shop, asked: list[Query]) -> list[str]:
    alerts = [each for each in asked if each.where.startswith("alert")]
    return [each.where for each in alerts if shop.prometheus.query(each.expression)]


def delayed_at_all(shop: Shop) -> bool:
    return any(row["delayed"] for row in read_rows(shop.jsonl))


def test_prometheus_counts_what_the_records_tell(shop: Shop) -> None:
    """Each stall, once, by cause, severity and route; and all that its sum of durations says."""
    rows: list[Row] = [row for row in read_rows(shop.jsonl) if not row["ongoing"]]
    assert any(row["call"] == "time.sleep" for row in rows)
    expected: dict[tuple[str, ...], int] = {}
    for row in rows:
        route = (row["request"] or {}).get("route") or ""
        key = (row["cause"], row["severity"], route)
        expected[key] = expected.get(key, 0) + 1

    def counted() -> dict[tuple[str, ...], int]:
        by = "loopguard_stall_cause, loopguard_stall_severity, http_route"
        found: dict[tuple[str, ...], int] = {}
        for labels, value in shop.prometheus.query(
            f"sum by ({by}) (loopguard_stalls_total)"
        ).items():
            named: dict[str, Any] = json.loads(labels)
            found[
                named["loopguard_stall_cause"],
                named["loopguard_stall_severity"],
                named.get("http_route", ""),
            ] = round(value)
        return found

    assert wait_until(lambda: counted() == expected, 10), (counted(), expected)
    [seconds] = shop.prometheus.query("sum(loopguard_stall_duration_seconds_sum)").values()
    assert seconds == pytest.approx(sum(row["duration"] for row in rows), abs=0.001)


def test_prometheus_takes_the_rules_and_promtool_finds_them_right(shop: Shop) -> None:
    rules = shop.prometheus.rules()
    assert {rule["health"] for rule in rules} == {"ok"}
    assert len(rules) == len([each for each in queries() if each.where.startswith("alert")])
    promtool = shutil.which("promtool")
    assert promtool is not None, "Debian's package brings both"
    checked = subprocess.run([promtool, "check", "rules", ALERTS], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


PUSHED = """
import asyncio, time
import anyio.to_thread
from opentelemetry import metrics
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
import loopguard

provider = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())])
metrics.set_meter_provider(provider)
guard = loopguard.install(log=False)

async def main():
    await anyio.to_thread.run_sync(time.sleep, 0.1)
    with loopguard.allow_blocking("once a day"):
        time.sleep(0.3)
    await asyncio.sleep(0.3)
    time.sleep(0.4)
    await asyncio.sleep(1.5)
    guard.flush()
    await asyncio.to_thread(provider.force_flush)

asyncio.run(main())
"""


def test_the_queries_ask_for_the_names_that_come_through_a_collector_too(tmp_path: Path) -> None:
    """There a gauge of unit 1 gets an ending that it does not have when it is scraped."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra `otlp`")
    binary = find_jaeger()
    if binary is None:
        pytest.skip("no Jaeger here, which is a Collector: build one with .ci/jaeger")
    with running_jaeger(binary, metrics=True) as collector:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.otlp_http}
        child = Child(["-c", PUSHED], tmp_path / "log", variables)
        assert child.process.wait(60) == 0, child.read()
        assert collector.scraped is not None
        text = httpx.get(collector.scraped, trust_env=False).text
    names = set(re.findall(r"^(loopguard_\w+)", text, re.MULTILINE))
    asked = set(
        re.findall(r"loopguard_[a-z_]+(?:\(_ratio\)\?)?", "".join(q.expression for q in queries()))
    )
    labels = {"loopguard_stall_cause", "loopguard_stall_severity", "loopguard_exempt_reason"}
    nobody_waited = {name for name in asked if name.startswith("loopguard_request_delay")}
    unanswered = asked - labels - nobody_waited
    unanswered -= {each for each in unanswered if any(re.fullmatch(each, name) for name in names)}
    assert unanswered == set()
    assert "loopguard_up_ratio" in names


def test_each_metric_is_on_the_dashboard() -> None:
    text = "".join(each.expression for each in queries())
    offered = [*metrics.HISTOGRAMS, *metrics.COUNTERS, *metrics.GAUGES]
    assert [each.name for each in offered if each.name.replace(".", "_") not in text] == []


def test_panels_do_not_overlap_and_each_has_its_own_number() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23
    assert len({panel["id"] for panel in panels}) == len(panels)
