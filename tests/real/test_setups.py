"""Every documented way to install, beside every way to have telemetry: the same truth in each."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import httpx
import pytest

from tests.real.conftest import NEEDS_UVLOOP
from tests.real.marks import read_marks
from tests.real.server import ROOT, read_rows, serve
from tests.real.told import check_times, expected, find_record, server_span, told

MARKS = read_marks("tests.real.blocking", ROOT)
CASES = ("resumed", "dependency", "own_span")
# Beside `("before", "module")`, which the other tests have. The loop makes no difference to most.
SETUPS = [
    *(("before", "lifespan", "asyncio"), ("after", "module", "asyncio")),
    *(("fastapi", "module", "asyncio"), ("fastapi", "lifespan", "asyncio")),
    *(("none", "module", "asyncio"), ("none", "lifespan", "asyncio")),
    pytest.param("after", "module", "uvloop", marks=NEEDS_UVLOOP),
    pytest.param("fastapi", "lifespan", "uvloop", marks=NEEDS_UVLOOP),
    pytest.param("none", "module", "uvloop", marks=NEEDS_UVLOOP),
]


@pytest.mark.parametrize("telemetry, install, loop", SETUPS)
def test_line_request_and_trace_are_told_in_every_setup(
    telemetry: str, install: str, loop: str, tmp_path: Path, peers: dict[str, str]
) -> None:
    """Without telemetry there is no trace to name; the line and the route are there all the same."""
    with (
        serve(tmp_path, loop=loop, telemetry=telemetry, install=install, variables=peers) as server,
        httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client,
    ):
        client.get("/innocent/ready")  # the first request of all is slow before it gets anywhere
        for case in CASES:
            trace_id = secrets.token_hex(16)
            traceparent = f"00-{trace_id}-{secrets.token_hex(8)}-01"
            path = f"/v1/cases/{case}/4711"
            sent = time.time()
            response = client.get(path, headers={"traceparent": traceparent})
            assert response.status_code == 200, server.child.read()
            truth = read_rows(server.truth)[-1]
            record = find_record(server.jsonl, truth)
            traced = telemetry != "none"
            assert told(record, MARKS[case]) == expected(MARKS[case]) | {
                "route": f"/v1/cases/{case}/{{item}}",
                "method": "GET",
                "background": False,
                "request.trace_id": trace_id if traced else None,
                "request.span_id": server_span(server.spans, trace_id),
                "trace_id": trace_id if traced else None,
                "span_id": truth["span_id"],
                "phase": "serving",
                "pid": server.child.process.pid,
                "uvloop": loop == "uvloop",
            }
            assert record is not None
            check_times(record, truth, sent)
        records = [row for row in read_rows(server.jsonl) if row["cause"] != "not_scheduled"]
        assert len(records) == len(CASES)
