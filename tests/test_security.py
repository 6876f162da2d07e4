"""What passes through an application stays in it; and what comes from outside is read, never run."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Body, Cookie, FastAPI, Header
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import loopguard
from loopguard.tell.log import LOGGER
from tests.holding import BUDGET, REST, run, told

HOUSE = Path(loopguard.__file__).parent
SECRET = "hunter2-correct-horse"


def calls_and_imports() -> Iterator[tuple[str, str]]:
    """All names that the package calls, and all modules that it imports, with the file."""
    for path in HOUSE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            file = path.relative_to(HOUSE).as_posix()
            if isinstance(node, ast.Call):
                yield file, ast.unparse(node.func)
            elif isinstance(node, ast.Import):
                yield from ((file, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield file, node.module or ""


def test_nothing_that_is_read_is_ever_run_or_unpickled() -> None:
    """`compile` is there to compare the source with the running code, and to stand in for code that is gone."""
    never = {
        *("eval", "exec", "__import__", "builtins.eval", "builtins.exec", "os.system", "os.popen"),
        *("pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "tempfile.mktemp"),
    }
    found = set(calls_and_imports())
    assert {(file, name) for file, name in found if name in never} == set()
    assert {file for file, name in found if name == "compile"} == {
        "capture/resolve.py",
        "explain/source.py",
    }


def test_no_child_is_started_through_a_shell() -> None:
    shells = [
        path
        for path in HOUSE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.keyword) and node.arg == "shell"
    ]
    assert shells == []


class Order:
    """An object whose every word is a secret."""

    def __init__(self, number: str) -> None:
        self.number = number

    def __repr__(self) -> str:
        return f"Order({self.number})"

    def charge(self, card: str) -> str:
        time.sleep(8 * BUDGET)
        return card


app = FastAPI()


@app.post("/orders/{number}")
async def take(
    number: str,
    coupon: str,
    card: str = Body(embed=True),
    session: str = Cookie(),
    authorization: str = Header(),
) -> str:
    order = Order(number)
    known = {coupon: session, authorization: order}
    return order.charge(card) and str(len(known))


@pytest.mark.skipif(sys.platform == "win32", reason="the black box needs flock")
@pytest.mark.parametrize("source", [True, False])
def test_nothing_of_a_request_is_in_any_output(
    source: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not its path, query, headers, cookies or body, and no local variable: also of what lasts, and of the black box."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    handler.setFormatter(Everything())
    monkeypatch.setattr(logging.getLogger(LOGGER), "handlers", [handler])
    logging.getLogger(LOGGER).setLevel(logging.INFO)
    box, jsonl = tmp_path / "box", tmp_path / "stalls.jsonl"
    box.mkdir()
    early: list[str] = []

    def note(_stall: loopguard.Stall) -> None:
        early.extend(file.read_text() for file in box.iterdir())

    guard = loopguard.install(
        app, budget=BUDGET, jsonl=jsonl, black_box=box, source=source, on_ongoing=note
    )

    async def main() -> None:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://shop"
        ) as client:
            answer = await client.post(
                f"/orders/{SECRET}",
                params={"coupon": SECRET},
                json={"card": SECRET},
                headers={"authorization": SECRET, "cookie": f"session={SECRET}", "x-more": SECRET},
            )
            assert answer.status_code == 200, answer.text
            await asyncio.sleep(REST)

    run(main())
    [stall] = told(guard)
    assert stall.request is not None
    assert (stall.request.method, stall.request.route) == ("POST", "/orders/{number}")
    loopguard.uninstall()
    finished = exporter.get_finished_spans()
    ours = [span for span in finished if span.instrumentation_scope.name == "loopguard"]  # type: ignore[union-attr]
    spans = [span.to_json() for span in ours]
    written = {"jsonl": jsonl.read_text(), "log": log.getvalue(), "box": "".join(early)}
    written |= {"record": repr(stall), "spans": "".join(spans), "guard": repr(guard)}
    assert '"stall"' in written["box"]
    assert all(text for text in written.values())
    assert [name for name, text in written.items() if SECRET in text] == []
    shows_source = [name for name, text in written.items() if "8 * BUDGET" in text]
    assert shows_source == (["jsonl", "log", "box", "record"] if source else [])
    assert oct(jsonl.stat().st_mode & 0o777) == "0o600"


class Everything(logging.Formatter):
    """All that is on a log record, and not only its message."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(vars(record), default=repr)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_a_guard_changes_neither_the_environment_nor_the_arguments_of_its_process() -> None:
    before: tuple[Any, ...] = (
        dict(os.environ),
        list(sys.argv),
        Path("/proc/self/cmdline").read_bytes(),
    )
    with loopguard.install(log=False):
        after = dict(os.environ), list(sys.argv), Path("/proc/self/cmdline").read_bytes()
    assert after == before
