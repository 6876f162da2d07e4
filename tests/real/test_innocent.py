"""Slow and busy code that never holds the loop for a budget: it is never reported."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.real.conftest import LOOPS
from tests.real.innocent import BUDGET
from tests.real.server import Row, read_rows, serve
from tests.real.told import belongs

TRAFFIC_SECONDS = float(os.environ.get("REAL_INNOCENT_SECONDS", "10"))  # a full check: 60

# Each list is one client's, in turn. Those that hold the loop for 0.6 of a budget are one client's,
# so that never more than the two that are meant fall into one iteration.
CLIENTS = [
    ("under", "busy_under", "two_under", "chunks"),
    ("sleep", "pool", "plain", "child", "stream", "upload"),
    ("sleep", "stream", "plain"),
]
UPLOAD = bytes(8_000_000)


@pytest.mark.timeout(TRAFFIC_SECONDS + 60)
@pytest.mark.parametrize("loop", LOOPS)
def test_innocent_traffic_is_never_reported(
    loop: str, tmp_path: Path, peers: dict[str, str]
) -> None:
    """Minutes of it give no record, but for times at which the system ran nothing of ours."""
    with serve(tmp_path, loop=loop, variables=peers) as server:
        for kinds in CLIENTS:  # the first of a kind imports what it needs, and that is a stall
            _visit(server.url, kinds, 0)
        since, until = time.time(), time.monotonic() + TRAFFIC_SECONDS
        with ThreadPoolExecutor() as pool:
            clients = [pool.submit(_visit, server.url, kinds, until) for kinds in CLIENTS]
            visits = [client.result() for client in clients]
        time.sleep(0.3)  # the last record would be out by now
    assert all(count >= len(kinds) for count, kinds in zip(visits, CLIENTS, strict=True))
    truths = read_rows(server.truth)
    records = [row for row in read_rows(server.jsonl) if row["started_at"] >= since]
    assert [record for record in records if not _excused(record, truths)] == []


def _visit(url: str, kinds: tuple[str, ...], until: float) -> int:
    """Ask for each kind in turn until the time is up, and at least once."""
    visits = 0
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        asks: dict[str, Callable[[str], httpx.Response]] = {
            "upload": lambda path: client.post(path, content=UPLOAD)
        }
        while visits < len(kinds) or time.monotonic() < until:
            kind = kinds[visits % len(kinds)]
            response = asks.get(kind, client.get)(f"/innocent/{kind}/4711")
            assert response.status_code == 200
            visits += 1
    return visits


def _excused(record: Row, truths: list[Row]) -> bool:
    """Not run by the system, or its innocent line did, on this machine, take a whole budget."""
    return record["cause"] == "not_scheduled" or any(
        belongs(record, truth) and truth["left"] - truth["entered"] >= BUDGET for truth in truths
    )
