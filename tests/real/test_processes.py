"""Servers of several processes, and children of every kind beside a live guard: each is guarded, and none is harmed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.real.server import ROOT, Child, Row, read_rows, wait_until
from tests.reliability import Say

SECONDS = 30.0

APP = """
import asyncio, os, time
from fastapi import APIRouter, FastAPI
import loopguard

app = FastAPI()
router = APIRouter(prefix="/v1")

@router.get("/hold/{item}")
async def hold(item: str):
    time.sleep(0.3)
    return os.getpid()

@router.get("/ready")
async def ready():
    return os.getpid()

app.include_router(router)
loopguard.install(app, budget=0.1, jsonl=os.environ["SHOP_JSONL"])
"""

NEEDS_GUNICORN = pytest.mark.skipif(
    importlib.util.find_spec("uvicorn_worker") is None, reason="gunicorn is not installed"
)
GUNICORN = ["-m", "gunicorn", "--bind", "127.0.0.1:0", "-k", "uvicorn_worker.UvicornWorker"]
UVICORN = ["-m", "uvicorn", "--port", "0", "--no-access-log"]
SERVERS = [
    pytest.param([*UVICORN, "--workers", "2"], id="uvicorn"),
    pytest.param([*GUNICORN, "--workers", "2"], id="gunicorn", marks=NEEDS_GUNICORN),
    pytest.param([*GUNICORN, "-w", "2", "--preload"], id="preload", marks=NEEDS_GUNICORN),
]


@contextmanager
def shop(server: list[str], directory: Path) -> Iterator[tuple[httpx.Client, Child, Path]]:
    """Serve it; at the end it must have stopped in good order, with nothing left and nothing said."""
    jsonl = directory / "stalls.jsonl"
    jsonl.touch()
    (directory / "shop.py").write_text(APP)
    at = "--app-dir" if "uvicorn" in server else "--pythonpath"
    child = Child(
        [*server, at, str(directory), "shop:app"], directory / "log", {"SHOP_JSONL": str(jsonl)}
    )
    try:
        url = child.wait_for(r"(http://127\.0\.0\.1:\d+)")
        transport = httpx.HTTPTransport(retries=3)
        headers = {"connection": "close"}  # so that the workers take turns
        with httpx.Client(
            base_url=url, timeout=30, trust_env=False, transport=transport, headers=headers
        ) as client:
            assert wait_until(lambda: answers(client), SECONDS), child.read()
            yield client, child, jsonl
    finally:
        code = child.stop()
    assert code in (0, -signal.SIGTERM), f"ended with {code}:\n{child.read()}"
    for word in ("Traceback", "Exception ignored", "guard.trouble", "Warning"):
        assert word not in child.read(), child.read()


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/v1/ready").status_code == 200
    except httpx.TransportError:
        return False


def pid_of(response: httpx.Response) -> int:
    assert response.status_code == 200, response.text
    return int(response.text)


def hold_both(client: httpx.Client, but: int = 0) -> Counter[int]:
    """Have two workers hold their loops, none of them the one that is gone; how often each did."""
    held: Counter[int] = Counter()

    def ask(_: int) -> int | None:
        try:
            return pid_of(client.get("/v1/hold/4711"))
        except httpx.TransportError:  # it came to the worker that is being killed
            return None

    def both() -> bool:
        with ThreadPoolExecutor(4) as pool:
            held.update(pid for pid in pool.map(ask, range(4)) if pid is not None)
        return len(held.keys() - {but}) == 2

    assert wait_until(both, SECONDS), held
    return held


def stalls(jsonl: Path) -> list[Row]:
    """All that were told of requests."""
    return [
        row
        for row in read_rows(jsonl)
        if row["cause"] != "not_scheduled" and not row["ongoing"] and row["request"]
    ]


def counted(jsonl: Path) -> Counter[int]:
    return Counter(row["pid"] for row in stalls(jsonl))


@pytest.mark.fault(
    "a worker killed",
    "SIGKILL to one of two workers of uvicorn, gunicorn, and gunicorn with `--preload`",
)
@pytest.mark.parametrize("server", SERVERS)
def test_each_worker_is_guarded_and_so_is_the_one_that_takes_its_place(
    server: list[str], tmp_path: Path, row: Say
) -> None:
    """Every stall is told once, by its own process, with its route."""
    with shop(server, tmp_path) as (client, child, jsonl):
        held = hold_both(client)
        assert wait_until(lambda: counted(jsonl) == held, 5), (counted(jsonl), child.read())
        killed = next(iter(held))
        os.kill(killed, signal.SIGKILL)
        later = hold_both(client, but=killed)
        assert later.keys() - held.keys(), "no new worker"
        assert wait_until(lambda: counted(jsonl) >= held + later, 5), counted(jsonl)
        told = stalls(jsonl)
        assert {row["request"]["route"] for row in told} == {"/v1/hold/{item}"}
        assert {(row["culprit"]["function"], row["call"]) for row in told} == {
            ("hold", "time.sleep")
        }
        assert {row["phase"] for row in told} == {"serving"}
        assert child.process.pid not in counted(jsonl)
        assert len({row["process"]["instance"] for row in told}) == len(counted(jsonl)) == 3
    for pid in (*held, *later):
        assert not Path(f"/proc/{pid}").exists() or sys.platform != "linux"
    row("the worker that takes its place is guarded; each stall is told once, by its own process")


def test_a_reloaded_app_is_guarded_anew(tmp_path: Path) -> None:
    with shop([*UVICORN, "--reload", "--reload-dir", str(tmp_path)], tmp_path) as served:
        client, child, jsonl = served
        first = pid_of(client.get("/v1/hold/4711"))
        (tmp_path / "shop.py").write_text(APP.replace("0.3", "0.35"))
        second: list[int] = []

        def reloaded() -> bool:
            try:
                second.append(pid_of(client.get("/v1/ready")))
            except httpx.TransportError:
                return False
            return second[-1] != first

        assert wait_until(reloaded, SECONDS), child.read()
        assert pid_of(client.get("/v1/hold/4711")) == second[-1]
        assert wait_until(lambda: len(stalls(jsonl)) == 2, 5), child.read()
        assert [row["pid"] for row in stalls(jsonl)] == [first, second[-1]]
        assert stalls(jsonl)[1]["culprit"]["code"] == "time.sleep(0.35)"


CHILDREN = """
import asyncio, multiprocessing, os, subprocess, sys, time, warnings
from concurrent.futures import ProcessPoolExecutor
import loopguard

warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork beside threads
METHOD, JSONL = sys.argv[1:]

async def hold():
    await asyncio.sleep(0.1)
    time.sleep(0.3)

def work(_=None):
    loopguard.install(budget=0.1, jsonl=JSONL, log=False)
    asyncio.run(hold())  # and it ends at once
    return os.getpid()

def inherited():
    asyncio.run(hold())

def idle(_=None):
    return os.getpid()

async def main():
    context = multiprocessing.get_context(METHOD)
    await hold()
    for target in (work, inherited, idle):
        child = context.Process(target=target)
        child.start()
        await asyncio.to_thread(child.join, 60)
        assert child.exitcode == 0, child.exitcode
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        for function in (work, idle):
            pids = await asyncio.gather(*(loop.run_in_executor(pool, function, n) for n in range(4)))
            assert os.getpid() not in pids
    for before in (None, lambda: os.nice(0)):
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", "print(4711)"],
            preexec_fn=before, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, "4711\\n", ""), done
    await hold()
    await asyncio.sleep(0.1)

if __name__ == "__main__":
    guard = loopguard.install(budget=0.1, jsonl=JSONL, log=False)
    asyncio.run(main())
    assert guard.flush(20)
    assert guard.stats()["troubles"] == guard.stats()["watchdog_restarts"] == 0
    print(os.getpid())
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_end_well_and_are_guarded(method: str, tmp_path: Path) -> None:
    """Processes, pools and programs that are started beside a live guard; also the last stall of one is told."""
    script, jsonl = tmp_path / "parent.py", tmp_path / "stalls.jsonl"
    script.write_text(CHILDREN)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), method, str(jsonl)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    told = Counter(row["pid"] for row in read_rows(jsonl) if row["culprit"]["function"] == "hold")
    assert told.pop(int(done.stdout)) == 2, read_rows(jsonl)
    assert sum(told.values()) == 4 + (2 if method == "fork" else 1), json.dumps(told)
