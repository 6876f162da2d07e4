"""The demo's app behind gunicorn with two workers, under load: workers are killed, and sinks fail."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]

# What stands around the demo's app: it writes down each time that the loop is held, and what its guard has counted.
APP = """
import asyncio, contextlib, json, os, threading, time
from loopguard.cli.demo import shop
import loopguard

DIRECTORY = os.environ["SOAK_DIRECTORY"]
app, tidy, raised = shop.app, shop.tidy, 0
started = app.router.lifespan_context

def note(name, **facts):
    with open(f"{DIRECTORY}/{name}", "a") as file:
        file.write(json.dumps({"pid": os.getpid(), "at": time.time(), **facts}) + "\\n")

def held(text):
    note("truth", what="began")
    try:
        return tidy(text.replace(" " * 6000, "", 1))  # a shorter stall, for more of them
    finally:
        note("truth", what="ended")

def listen(stall):
    global raised
    if stall.id[-1] in "01234":
        raised += 1
        raise RuntimeError("about every third time")

def count():
    note("counts", **guard.stats(), raised=raised)

def keep_counting():
    while True:
        time.sleep(0.05)
        count()

@contextlib.asynccontextmanager
async def lifespan(app):
    async with started(app) as state:
        yield state
    await asyncio.to_thread(guard.flush, 10)
    count()

shop.tidy, app.router.lifespan_context = held, lifespan
guard = loopguard.install(app, budget=0.05, jsonl=f"{DIRECTORY}/stalls.jsonl", on_stall=listen, log=False)
threading.Thread(target=keep_counting, daemon=True).start()
"""
AT_THE_KILL = 0.3  # seconds before it of which a killed process may have told nobody yet
_TURNS = 3  # of two seconds: as long as a worker may take to begin, and to do some work
_CERTAIN = 0.085  # seconds: budget and beat, and some; what is shorter may go unreported
Row = dict[str, Any]


def run(quick: bool) -> tuple[list[str], bool]:
    """The rows of the table, and whether all is accounted for."""
    seconds = 8.0 if quick else 90.0
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "kept.jsonl").touch()
        (directory / "stalls.jsonl").symlink_to(directory / "kept.jsonl")
        (directory / "soaked_shop.py").write_text(APP)
        served, killed = _serve(directory, seconds)
        return _report(directory, seconds, served, killed)


def _serve(directory: Path, seconds: float) -> tuple[int, dict[int, float]]:
    log = directory / "log"
    server = [
        "-m",
        "gunicorn",
        "--bind",
        "127.0.0.1:0",
        "-k",
        "uvicorn_worker.UvicornWorker",
        "-w",
        "2",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *server, "--pythonpath", str(directory), "soaked_shop:app"],
            env={**os.environ, "SOAK_DIRECTORY": str(directory), "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=output,
        )
    try:
        while not (found := re.search(r"(http://127\.0\.0\.1:\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        over = threading.Event()
        with ThreadPoolExecutor(4) as pool:
            visits = [pool.submit(_visit, found[1], over, n) for n in range(4)]
            killed = _disturb(process.pid, directory, seconds)
            over.set()
            return sum(visit.result() for visit in visits), killed
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _visit(url: str, over: threading.Event, number: int) -> int:
    """Load: quick ones, and one in four that holds its worker's loop."""
    paths, served = ("/items/1/reviews", "/health", "/events/a", "/health"), number
    headers = {"connection": "close"}  # so that the workers take turns
    with httpx.Client(base_url=url, timeout=30, trust_env=False, headers=headers) as client:
        while not over.is_set():
            with suppress(httpx.TransportError):  # it came to a worker that was killed
                served += client.get(paths[served % 4]).is_success
    return served - number


def _disturb(master: int, directory: Path, seconds: float) -> dict[int, float]:
    """End a worker now and then, killed and asked in turn; let the JSONL file fail for a tenth of the time."""
    killed: dict[int, float] = {}
    path, until, turn = directory / "stalls.jsonl", time.monotonic() + seconds, 0
    while time.monotonic() < until:
        for target, part in ((directory / "kept.jsonl", 1.4), (Path("/dev/full"), 0.6)):
            new = directory / "new"
            new.symlink_to(target)
            new.replace(path)
            time.sleep(part)
        turn += 1
        children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        if children and turn % _TURNS == 0:
            number = signal.SIGTERM if turn % (2 * _TURNS) == 0 else signal.SIGKILL
            pid = int(children[0])
            with suppress(ProcessLookupError):
                os.kill(pid, number)
                if number == signal.SIGKILL:
                    killed[pid] = time.time()
    return killed


def _report(
    directory: Path, seconds: float, served: int, killed: dict[int, float]
) -> tuple[list[str], bool]:
    truth = _blocks(_rows(directory / "truth"))
    counts = {row["pid"]: row for row in _rows(directory / "counts")}  # the last of each
    records = [row for row in _rows(directory / "kept.jsonl") if not row["ongoing"]]
    told = sum(any(_is_of(record, block) for record in records) for block in truth)
    at_the_kill = sum(
        block["pid"] in killed
        and block["ended"] > killed[block["pid"]] - AT_THE_KILL
        and not any(_is_of(record, block) for record in records)
        for block in truth
    )
    lost = sum(row["sink_errors"] - row["raised"] for row in counts.values())
    raised = sum(row["raised"] for row in counts.values())
    uncounted = len(truth) - told - at_the_kill - lost
    lines = Counter(row["pid"] for row in records)
    exact = all(
        row["stalls"] == row["logged"] + row["suppressed"] + row["dropped"]
        and row["stalls"] <= lines[pid] + row["sink_errors"] - row["raised"] + row["dropped"]
        for pid, row in counts.items()
        if pid not in killed
    )
    good = exact and uncounted <= 0 < told
    return [
        f"| the demo's app behind gunicorn, two workers | {seconds:.0f} s, {served:,} requests, {len(truth):,} stalls |",
        f"| workers killed; ended in good order | {len(killed)}; {len(counts) - len(killed)} |",
        f"| told in the JSONL file, which was full for three tenths of the time | {told:,} |",
        f"| lost by that and counted as `sink_errors`; by an `on_stall` that raises about every third time | {lost:,}; {raised:,} |",
        f"| in the hands of a worker as it was killed | {at_the_kill} |",
        f"| lost and not counted | {max(0, uncounted)} |",
    ], good


def _rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines(True) if line.endswith("\n")]


def _blocks(rows: list[Row]) -> list[Row]:
    """Each time that a loop was held to its end: a loop does one thing at a time."""
    began: dict[int, float] = {}
    blocks = []
    for row in rows:
        if row["what"] == "began":
            began[row["pid"]] = row["at"]
        else:
            blocks.append({"pid": row["pid"], "began": began.pop(row["pid"]), "ended": row["at"]})
    return [block for block in blocks if block["ended"] - block["began"] > _CERTAIN]


def _is_of(record: Row, block: Row) -> bool:
    middle = (block["began"] + block["ended"]) / 2
    since = record["started_at"] - record["duration_error"]
    within = since < middle < record["started_at"] + record["duration"]
    return bool(record["pid"] == block["pid"] and within)
