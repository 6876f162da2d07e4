"""At shutdown the log says what was seen in all."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import loopguard
from loopguard.record import Frame
from loopguard.tell.summary import WORST, Summary
from tests.holding import BUDGET, LONG, REST, run
from tests.records import make_stall

ROOT = Path(__file__).resolve().parents[1]
CULPRIT = Frame("app.py", 1, "app", "f", None, library=False)


def test_nothing_seen_is_nothing_said() -> None:
    assert Summary().take() is None


def test_stalls_add_up_by_culprit_the_longest_first() -> None:
    summary = Summary()
    for line, duration in [(1, 0.2), (2, 0.5), (1, 0.4)]:
        summary.add(make_stall(culprit=replace(CULPRIT, line=line), duration=duration))
    assert summary.take() == {
        "stalls": 3,
        "blocked_s": 1.1,
        "worst": ["app.py:1 in f: 0.600 s in 2", "app.py:2 in f: 0.500 s in 1"],
    }


def test_only_the_five_worst_are_named() -> None:
    summary = Summary()
    for line in range(WORST + 3):
        summary.add(make_stall(culprit=replace(CULPRIT, line=line), duration=1.0 + line))
    fields = summary.take()
    assert fields is not None
    assert fields["worst"] == [
        f"app.py:{line} in f: {1.0 + line:.3f} s in 1" for line in (7, 6, 5, 4, 3)
    ]


def test_what_the_system_did_not_run_blames_nobody() -> None:
    summary = Summary()
    summary.add(make_stall(cause="not_scheduled", culprit=None, duration=2.0))
    assert summary.take() == {"stalls": 1, "blocked_s": 0.0, "worst": []}


@pytest.mark.parametrize("seconds, events", [(0.3, ["guard", "stall", "summary"]), (0, ["guard"])])
def test_a_process_that_ends_says_it_last(
    seconds: float, events: list[str], tmp_path: Path
) -> None:
    """Without any call of ours at its end; a process in which nothing stalled says nothing."""
    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio, time, loopguard\n"
        "async def main():\n"
        "    await asyncio.sleep(0.06)\n"
        f"    time.sleep({seconds})\n"
        "    await asyncio.sleep(0.06)\n"
        "loopguard.install()\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    said = [json.loads(line) for line in done.stderr.splitlines()]
    assert [
        row["event"].rpartition(".")[2] for row in said if row.get("cause") != "not_scheduled"
    ] == events
    if seconds:
        assert said[-1]["worst"][0].startswith(f"{script}:4 in main: 0.")


@pytest.mark.core
@pytest.mark.parametrize("install_in", ["module", "lifespan"])
def test_it_is_said_before_the_server_hears_that_the_application_has_ended(
    install_in: str, caplog: pytest.LogCaptureFixture
) -> None:
    """For then a server may end its process by the signal that stopped it. What the end itself blocked is in the sum."""
    fastapi = pytest.importorskip("fastapi", reason="needs the extra `fastapi`")
    caplog.set_level("INFO", "loopguard")
    heard = dict[str, list[str]]()

    def install() -> None:
        loopguard.install(app, budget=BUDGET)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        if install_in == "lifespan":
            install()
        yield
        await asyncio.sleep(REST)
        time.sleep(LONG)

    app = fastapi.FastAPI(lifespan=lifespan)
    if install_in == "module":
        install()
    told = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> dict[str, str]:
        return {"type": next(told)}

    async def send(message: dict[str, str]) -> None:
        heard[message["type"]] = [record.getMessage() for record in caplog.records]

    run(app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send))
    events = heard["lifespan.shutdown.complete"]
    assert events.count("event_loop.stall") >= 1
    assert events[-1] == "event_loop.summary"
    assert events.count("event_loop.summary") == 1
