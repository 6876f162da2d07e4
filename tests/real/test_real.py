"""A FastAPI app under uvicorn that blocks in every common way: each record against known truth."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import pytest

from tests.real.conftest import LOOPS
from tests.real.marks import Mark, read_marks
from tests.real.server import ROOT, Row, Server, read_rows, serve
from tests.real.told import belongs, check_times, expected, find_record, server_span, told
from tests.withheld import excused

MARKS = read_marks("tests.real.blocking", ROOT)
CORE = {
    *("sleep", "posted", "urllib", "recv", "acquire", "queue", "loop", "helper"),
    *("regex", "resumed", "dependency", "lambda"),
}
CASES = [pytest.param(case, marks=[pytest.mark.core] if case in CORE else []) for case in MARKS]

HTTP = {"asyncio": "h11", "uvloop": "httptools"}


@dataclass
class Visit:
    """One request, what the app says of it, and the record that loopguard wrote of it."""

    mark: Mark
    method: str
    route: str
    trace_id: str
    server_span: str
    sent: float
    truth: Row
    record: Row | None


@dataclass
class World:
    """A server and its client. Each case is asked for once, and its visit kept."""

    server: Server
    client: httpx.Client
    loop: str
    visits: dict[str, Visit] = field(default_factory=dict)

    def visit(self, case: str, query: dict[str, str]) -> Visit:
        if case not in self.visits:
            self.visits[case] = self._visit(case, query)
        return self.visits[case]

    def _visit(self, case: str, query: dict[str, str]) -> Visit:
        method = "POST" if case == "posted" else "GET"
        route = (
            "/tenants/{tenant}/reports/{item}"
            if case == "mounted"
            else f"/v1/cases/{case}/{{item}}"
        )
        trace_id = secrets.token_hex(16)
        sent = time.time()
        response = self.client.request(
            method,
            route.format(item="4711", tenant="acme"),
            params=query,
            json={"word": "secret"} if method == "POST" else None,
            headers={"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"},
        )
        assert response.status_code == 200, f"{response.text}\n{self.server.child.read()}"
        truth = read_rows(self.server.truth)[-1]
        assert truth["case"] == case
        record = find_record(self.server.jsonl, truth)
        span = server_span(self.server.spans, trace_id)
        assert span is not None
        return Visit(MARKS[case], method, route, trace_id, span, sent, truth, record)


@pytest.fixture(scope="module", params=LOOPS)
def world(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    peers: dict[str, str],
) -> Iterator[World]:
    loop = request.param
    with (
        serve(tmp_path_factory.mktemp(loop), loop=loop, http=HTTP[loop], variables=peers) as server,
        httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client,
    ):
        client.get("/innocent/ready")  # the first request of all is slow before it gets anywhere
        yield World(server, client, loop)


@pytest.fixture
def visit(request: pytest.FixtureRequest, world: World, case: str) -> Visit:
    query = {"dsn": request.getfixturevalue("postgres")} if case == "psycopg2" else {}
    return world.visit(case, query)


@pytest.mark.parametrize("case", CASES)
def test_the_record_says_what_blocked_and_for_whom(visit: Visit, world: World) -> None:
    """Line, function, code, call, cause, route, method, trace and span are those of the truth."""
    asked_for = {
        "route": visit.route,
        "method": visit.method,
        "background": False,
        "request.trace_id": visit.trace_id,
        "request.span_id": visit.server_span,
        "trace_id": visit.trace_id,
        "span_id": visit.truth["span_id"],
        "phase": "serving",
        "pid": world.server.child.process.pid,
        "uvloop": world.loop == "uvloop",
    }
    with excused(visit.truth):
        assert told(visit.record, visit.mark) == expected(visit.mark) | asked_for


@pytest.mark.parametrize("case", CASES)
def test_the_record_says_when_it_began_and_ended(visit: Visit) -> None:
    """Start and duration are the truth's, to within what the record itself admits."""
    assert visit.record is not None, "no record"
    with excused(visit.truth):
        check_times(visit.record, visit.truth, visit.sent)


@pytest.mark.core
def test_each_request_is_reported_once_and_nothing_else(world: World) -> None:
    """Every record belongs to a request that blocked, and none has two."""
    world.visit("sleep", {})
    time.sleep(0.3)  # a second record of the last request would be out by now
    truths = read_rows(world.server.truth)
    final = [row for row in read_rows(world.server.jsonl) if not row["ongoing"]]
    records = [row for row in final if row["cause"] != "not_scheduled"]
    owners = Counter(
        next((truth["case"] for truth in truths if belongs(record, truth)), "nobody")
        for record in records
    )
    assert owners == Counter(truth["case"] for truth in truths)
