"""`opentelemetry-instrument uvicorn app:app`, the real command: the app is guarded without a line of code in it."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

for needed in ("fastapi", "uvicorn", "httpx", "opentelemetry.distro", "opentelemetry.proto"):
    pytest.importorskip(
        needed, reason="needs the extras `demo` and `otlp`, and opentelemetry-distro"
    )

import httpx  # noqa: E402

from tests.otlp import Received, receiving  # noqa: E402
from tests.real.conftest import LOOPS  # noqa: E402
from tests.real.server import ROOT, Child, Row, read_rows, wait_until  # noqa: E402

COMMAND = Path(sys.executable).with_name("opentelemetry-instrument")
SECONDS = 30.0

SHOP = """
import os, time
from fastapi import APIRouter, FastAPI

app, mounted, router = FastAPI(), FastAPI(), APIRouter(prefix="/v1")

@router.get("/hold/{item}")
async def hold(item: str) -> str:
    time.sleep(0.4)
    return item

@mounted.get("/hold/{item}")
async def hold_mounted(item: str) -> str:
    time.sleep(0.4)
    return item

app.include_router(router)
app.mount("/tenants/{tenant}", mounted)

if os.environ.get("SHOP_BUDGET"):
    import loopguard
    loopguard.install(app, budget=float(os.environ["SHOP_BUDGET"]), jsonl=os.environ["LOOPGUARD_JSONL"])
"""


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The entry points of a wheel of this checkout, for whoever runs the tests from its directory alone."""
    directory = tmp_path_factory.mktemp("site")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = directory / "asyncio_loopguard-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: asyncio-loopguard\nVersion: 0\n")
    [(name, target)] = project["entry-points"]["opentelemetry_instrumentor"].items()
    (info / "entry_points.txt").write_text(f"[opentelemetry_instrumentor]\n{name} = {target}\n")
    (directory / "shop.py").write_text(SHOP)
    return directory


@contextmanager
def instrumented(
    metadata: Path, log: Path, loop: str, endpoint: str, variables: Mapping[str, str]
) -> Iterator[tuple[str, Child]]:
    """The shop under the command, sending all signals often; its address."""
    child = Child(
        [str(COMMAND), "uvicorn", "shop:app", "--port", "0", "--loop", loop],
        log,
        {
            "PATH": f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(metadata), str(ROOT)]),
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_SERVICE_NAME": "shop",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_BLRP_SCHEDULE_DELAY": "100",
            "OTEL_METRIC_EXPORT_INTERVAL": "300",
            **variables,
        },
    )
    try:
        yield child.wait_for(r"running on (http://127\.0\.0\.1:\d+)"), child
    finally:
        child.stop()
    assert "Traceback" not in child.read(), child.read()


def get(url: str) -> None:
    assert httpx.get(url, timeout=30, trust_env=False).status_code == 200


def final(jsonl: Path) -> list[Row]:
    """Of the stalls that were meant: the machine may add some of its own."""
    return [row for row in read_rows(jsonl) if row["call"] == "time.sleep" and not row["ongoing"]]


@pytest.mark.parametrize("loop", LOOPS)
def test_the_app_is_guarded_and_all_three_signals_arrive(
    loop: str, metadata: Path, tmp_path: Path
) -> None:
    """With every option from the environment; a mounted app's requests are its parent's, and counted once."""
    jsonl = tmp_path / "stalls.jsonl"
    options = {
        "LOOPGUARD_BUDGET": "0.15",
        "LOOPGUARD_JSONL": str(jsonl),
        "LOOPGUARD_ROOT": str(metadata),
    }
    if loop == "asyncio":  # so that the log comes to no handler of OpenTelemetry's
        options["OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"] = "logging"
    with (
        receiving() as received,
        instrumented(metadata, tmp_path / "log", loop, received.endpoint, options) as (url, _),
    ):
        for path in ("/v1/hold/7", "/tenants/acme/hold/8"):
            get(url + path)
        assert wait_until(lambda: len(final(jsonl)) == 2, SECONDS)
        first, second = final(jsonl)
        assert wait_until(lambda: _arrived(received, [first, second]), SECONDS)
    assert [row["request"]["route"] for row in (first, second)] == [
        "/v1/hold/{item}",
        "/tenants/{tenant}/hold/{item}",
    ]
    assert {row["budget"] for row in (first, second)} == {0.15}
    assert first["culprit"]["file"] == "shop.py"
    assert second["process"]["requests"] == 2
    assert ("uvloop" in first["loop"]) == (loop == "uvloop")

    spans = {span["span_id"]: span for span in received.spans}
    for row in (first, second):
        [stall] = [
            s for s in spans.values() if s["attributes"].get("loopguard.stall.id") == row["id"]
        ]
        assert stall["trace_id"] == row["request"]["trace_id"]
        assert stall["parent_id"] in spans
        [log] = [each for each in received.logs if each["attributes"].get("stall_id") == row["id"]]
        assert (log["body"], log["trace_id"]) == ("event_loop.stall", row["trace_id"])
    assert _counted(received) == {row["request"]["route"]: 1 for row in (first, second)}
    [(_, delay)] = received.points("loopguard.eventloop.delay")
    late = sum(
        n
        for bound, n in zip(delay.explicit_bounds, delay.bucket_counts[1:], strict=True)
        if bound >= 0.1
    )
    assert late >= 4, "each stall skipped some beats, and each of them counts"
    assert received.points("loopguard.up") == [({}, 1)]


def _arrived(received: Received, rows: list[Row]) -> bool:
    """Whether span, log record and count of each have come."""
    ids = {row["id"] for row in rows}
    spans = {span["attributes"].get("loopguard.stall.id") for span in received.spans}
    logs = {each["attributes"].get("stall_id") for each in received.logs}
    return ids <= spans and ids <= logs and sum(_counted(received).values()) == len(ids)


def _counted(received: Received) -> dict[str, int]:
    """The stalls of each route that waited, by the metrics."""
    points = received.points("loopguard.stalls")
    blocking = [point for point in points if point[0]["loopguard.stall.cause"] == "blocking_call"]
    return {each["http.route"]: value for each, value in blocking if "http.route" in each}


def test_an_explicit_install_replaces_it(metadata: Path, tmp_path: Path) -> None:
    """Its options hold, each stall is told once, and one guard alone has begun."""
    jsonl = tmp_path / "stalls.jsonl"
    options = {"SHOP_BUDGET": "0.2", "LOOPGUARD_BUDGET": "0.15", "LOOPGUARD_JSONL": str(jsonl)}
    with (
        receiving() as received,
        instrumented(metadata, tmp_path / "log", "asyncio", received.endpoint, options) as (url, _),
    ):
        get(f"{url}/v1/hold/7")
        assert wait_until(lambda: bool(final(jsonl)), SECONDS)
        [row] = final(jsonl)
        assert wait_until(lambda: _arrived(received, [row]), SECONDS)
    [row] = final(jsonl)
    assert (row["budget"], row["request"]["route"]) == (0.2, "/v1/hold/{item}")
    assert row["process"]["requests"] == 1


def test_an_option_that_cannot_be_used_is_said_and_costs_the_app_nothing(
    metadata: Path, tmp_path: Path
) -> None:
    """The instrumentors that come after are loaded, and the app serves as it would without."""
    with (
        receiving() as received,
        instrumented(
            metadata, tmp_path / "log", "asyncio", received.endpoint, {"LOOPGUARD_BUDGET": "soon"}
        ) as (url, child),
    ):
        get(f"{url}/v1/hold/7")
        assert wait_until(
            lambda: any(span["attributes"].get("http.route") for span in received.spans), SECONDS
        )
        said = child.read()
    assert re.search(r"loopguard guards nothing: budget='soon' \(from environment variable", said)
