"""Every documented way to install, beside every way to have telemetry: the same truth in each."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.real.conftest import NEEDS_UVLOOP
from tests.real.marks import read_marks
from tests.real.server import ROOT, Row, Server, read_rows, serve
from tests.real.told import check_times, expected, find_record, server_span, told
from tests.withheld import excused

MARKS = read_marks("tests.real.blocking", ROOT)
CASES = ("resumed", "dependency", "own_span")
# The other tests have `("before", "module")`. The loop makes no difference to most.
SETUPS = [
    *(("before", "lifespan", "asyncio"), ("after", "module", "asyncio")),
    *(("fastapi", "module", "asyncio"), ("fastapi", "lifespan", "asyncio")),
    *(("both", "module", "asyncio"), ("both", "lifespan", "asyncio")),
    *(("none", "module", "asyncio"), ("none", "lifespan", "asyncio")),
    pytest.param(("before", "module", "uvloop"), marks=NEEDS_UVLOOP),
    pytest.param(("after", "module", "uvloop"), marks=NEEDS_UVLOOP),
    pytest.param(("fastapi", "lifespan", "uvloop"), marks=NEEDS_UVLOOP),
    pytest.param(("both", "module", "uvloop"), marks=NEEDS_UVLOOP),
    pytest.param(("none", "module", "uvloop"), marks=NEEDS_UVLOOP),
]
STALL = "event_loop.stall"
TOLERANCE = 0.005  # how much later than the stall the active span may begin and still be its parent
MICROSECOND = 1000  # in nanoseconds: as exact as unix seconds are


@dataclass(frozen=True)
class Visit:
    """One request, what the app says of it, and the record that loopguard wrote of it."""

    case: str
    trace_id: str
    sent: float
    truth: Row
    record: Row | None


@dataclass(frozen=True)
class Run:
    """A server that has ended since, and one visit of each case."""

    telemetry: str
    loop: str
    server: Server
    visits: list[Visit]

    @property
    def spans(self) -> dict[str, Row]:
        return {row["span_id"]: row for row in read_rows(self.server.spans)}


@pytest.fixture(scope="module", params=SETUPS, ids="-".join)
def run(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    peers: dict[str, str],
) -> Run:
    telemetry, install, loop = request.param
    directory: Path = tmp_path_factory.mktemp("-".join(request.param))
    with (
        serve(
            directory, loop=loop, telemetry=telemetry, install=install, variables=peers
        ) as server,
        httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client,
    ):
        client.get("/innocent/ready")  # the first request of all is slow before it gets anywhere
        time.sleep(0.2)  # where uvloop keeps an iteration's start is found out as soon as one runs
        visits = [visit(server, client, case) for case in CASES]
    return Run(telemetry, loop, server, visits)


def visit(server: Server, client: httpx.Client, case: str) -> Visit:
    trace_id = secrets.token_hex(16)
    traceparent = f"00-{trace_id}-{secrets.token_hex(8)}-01"
    sent = time.time()
    response = client.get(f"/v1/cases/{case}/4711", headers={"traceparent": traceparent})
    assert response.status_code == 200, server.child.read()
    truth = read_rows(server.truth)[-1]
    return Visit(case, trace_id, sent, truth, find_record(server.jsonl, truth))


def test_line_request_and_trace_are_told_in_every_setup(run: Run) -> None:
    """Without telemetry there is no trace to name; the line and the route are there all the same."""
    traced = run.telemetry != "none"
    for visit in run.visits:
        assert told(visit.record, MARKS[visit.case]) == expected(MARKS[visit.case]) | {
            "route": f"/v1/cases/{visit.case}/{{item}}",
            "method": "GET",
            "background": False,
            "request.trace_id": visit.trace_id if traced else None,
            "request.span_id": own_span(run, visit),
            "trace_id": visit.trace_id if traced else None,
            "span_id": visit.truth["span_id"],
            "phase": "serving",
            "pid": run.server.child.process.pid,
            "uvloop": run.loop == "uvloop",
        }


def own_span(run: Run, visit: Visit) -> str | None:
    """The span of the request itself: of two (both children of the caller's), the inner, which begins later.

    The app's own code runs in that one.
    """
    if run.telemetry != "both":
        return server_span(run.server.spans, visit.trace_id)
    servers = [row for row in run.spans.values() if row["kind"] == "SERVER"]
    both = [row for row in servers if row["trace_id"] == visit.trace_id]
    assert len(both) == 2
    return str(max(both, key=lambda row: int(row["start_ns"]))["span_id"])


def test_start_and_end_are_told_in_every_setup(run: Run) -> None:
    for visit in run.visits:
        assert visit.record is not None
        with excused(visit.truth):
            check_times(visit.record, visit.truth, visit.sent)


def test_there_is_one_record_and_one_span_for_each_stall(run: Run) -> None:
    """And no span where nothing traces."""
    records = [row for row in read_rows(run.server.jsonl) if row["cause"] != "not_scheduled"]
    assert len(records) == len(CASES)
    ids = [
        row["attributes"].get("loopguard.stall.id")
        for row in run.spans.values()
        if row["name"] == STALL
    ]
    if run.telemetry == "none":
        assert ids == []
    else:
        assert sorted(ids) == sorted(row["id"] for row in read_rows(run.server.jsonl))


def test_its_span_is_in_the_requests_trace_under_the_active_one_and_within_it(run: Run) -> None:
    """Its interval is the record's, but for what lies outside of its parent's."""
    spans = run.spans
    for visit in run.visits if run.telemetry != "none" else ():
        assert visit.record is not None
        stalls = [row for row in spans.values() if row["name"] == STALL]
        [stall] = [
            row
            for row in stalls
            if row["attributes"].get("loopguard.stall.id") == visit.record["id"]
        ]
        parent = active_since_before(visit, spans)
        assert stall["trace_id"] == visit.trace_id
        assert stall["parent_id"] == parent["span_id"]
        began = visit.record["started_at"] * 1e9
        ended = began + visit.record["duration"] * 1e9
        assert parent["start_ns"] <= stall["start_ns"] < stall["end_ns"] <= parent["end_ns"]
        assert abs(stall["start_ns"] - max(began, parent["start_ns"])) <= MICROSECOND
        assert abs(stall["end_ns"] - min(ended, parent["end_ns"])) <= MICROSECOND


def active_since_before(visit: Visit, spans: dict[str, Row]) -> Row:
    """The span that was active on the marked line; its parent where it began too late to be the stall's."""
    assert visit.record is not None
    active = spans[visit.truth["span_id"]]
    late = active["start_ns"] / 1e9 - visit.record["started_at"]
    if late > max(TOLERANCE, visit.record["duration_error"]) and active["parent_id"] in spans:
        return spans[active["parent_id"]]
    return active


def test_no_span_is_left_open_and_the_sdk_complains_of_nothing(run: Run) -> None:
    """Such as an attribute set, or an end, after a span's end."""
    started = [row["span_id"] for row in read_rows(run.server.starts)]
    assert sorted(started) == sorted(run.spans)
    output = run.server.child.read()
    complaints = ("ended span", "Tried calling", "Failed to detach", "Overriding", "Invalid type")
    assert [line for line in output.splitlines() if any(each in line for each in complaints)] == []
