"""uvicorn is stopped while a request of it holds the loop: it ends as it would without us, and the stall is told."""

from __future__ import annotations

import functools
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.real.conftest import LOOPS
from tests.real.server import Child, read_rows, wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

STALL = 1.0
APP = f"""
import os, time
from fastapi import FastAPI
import loopguard

app = FastAPI()

@app.get("/hold")
async def hold():
    print("entered", flush=True)
    time.sleep({STALL})
    return time.time()

if os.environ["SHOP_JSONL"] != "none":
    loopguard.install(app, budget=0.1, jsonl=os.environ["SHOP_JSONL"])
"""


def end_of(directory: Path, loop: str, number: int, guarded: bool) -> tuple[int, float, str]:
    """Exit code, seconds from the stall's end to the server's, and what it wrote."""
    (directory / "shop.py").write_text(APP)
    jsonl = directory / "stalls.jsonl"
    arguments = ["-m", "uvicorn", "--port", "0", "--loop", loop, "--app-dir", str(directory)]
    child = Child(
        [*arguments, "shop:app"],
        directory / "log",
        {"SHOP_JSONL": str(jsonl) if guarded else "none"},
    )
    try:
        url = child.wait_for(r"running on (http://127\.0\.0\.1:\d+)")
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(httpx.get, f"{url}/hold", timeout=30, trust_env=False)
            assert wait_until(lambda: "entered" in child.read(), 20), child.read()
            time.sleep(0.3)
            child.process.send_signal(number)
            over = float(answer.result().text)
            code = child.process.wait(30)
            return code, time.time() - over, child.read()
    finally:
        child.stop()


@pytest.fixture(scope="module")
def without_us(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], int]:
    """The exit code of the server alone; the loop makes no difference to it."""

    @functools.cache
    def code(number: int) -> int:
        return end_of(tmp_path_factory.mktemp("alone"), "asyncio", number, guarded=False)[0]

    return code


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_in_mid_stall_ends_the_server_as_it_would_without_us(
    number: int, loop: str, tmp_path: Path, without_us: Callable[[int], int]
) -> None:
    """The same exit code; the response is sent, the shutdown runs, and the record is out."""
    code, seconds, output = end_of(tmp_path, loop, number, guarded=True)
    assert code == without_us(number)
    assert seconds < 3
    assert "Application shutdown complete" in output
    for word in ("Exception ignored", "guard.trouble"):
        assert word not in output
    told = [row for row in read_rows(tmp_path / "stalls.jsonl") if not row["ongoing"]]
    assert [(row["call"], row["request"]["route"]) for row in told] == [("time.sleep", "/hold")]
    assert "event_loop.summary" in output
