"""Is the pytest plugin flaky? A suite that blocks nothing, run again and again beside busy processes.

    python benchmarks/innocent.py [--runs N] [--busy N] [--quota CPUS] [--json PATH]

Each run is a pytest process of its own, with as many processes beside it that compute all the time. With --quota it gets
so many CPUs by a control group (as root). Exit code 1 where any test failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GROUPS = Path("/sys/fs/cgroup")
PERIOD_US = 100_000

SUITE = '''
import asyncio, gc, json, threading, time
import pytest

def compute(seconds):
    """So much CPU time, and not so much of the clock's."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        sum(range(500))

async def ping(times=100):
    for _ in range(times):
        await asyncio.sleep(0.001)

def test_pings():
    asyncio.run(ping())

def test_many_at_once():
    async def main():
        await asyncio.gather(*(ping(30) for _ in range(50)))
    asyncio.run(main())

def test_computes_within_its_budget():
    async def main():
        for _ in range(5):
            compute(0.02)
            await asyncio.sleep(0)
    asyncio.run(main())

def test_computes_in_a_thread():
    async def main():
        await asyncio.gather(ping(100), asyncio.to_thread(compute, 0.1))
    asyncio.run(main())

def test_waits_in_a_thread():
    async def main():
        await asyncio.gather(ping(100), asyncio.to_thread(time.sleep, 0.2))
    asyncio.run(main())

def test_collects_garbage():
    async def main():
        kept = [[n] for n in range(10_000)]
        for _ in range(3):
            gc.collect()
            await asyncio.sleep(0.001)
    asyncio.run(main())

def test_child_process():
    async def main():
        child = await asyncio.create_subprocess_exec("sleep", "0.15")
        await asyncio.gather(child.wait(), ping(50))
    asyncio.run(main())

def test_streams():
    async def serve(reader, writer):
        while line := await reader.readline():
            writer.write(line)
        writer.close()
    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for n in range(200):
            writer.write(json.dumps({"n": n}).encode() + b"\\n")
            assert json.loads(await reader.readline()) == {"n": n}
        writer.close()
        server.close()
    asyncio.run(main())

def test_a_loop_beside_the_tests_own_work():
    thread = threading.Thread(target=asyncio.run, args=(ping(200),))
    thread.start()
    compute(0.2)
    thread.join()

@pytest.mark.parametrize("n", range(30))
def test_small(n):
    asyncio.run(ping(3))
'''


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute all the time."""
    children = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


@contextmanager
def limited(cpus: float | None) -> Iterator[list[str]]:
    """What to put before a command, so that it and its children get so many CPUs together."""
    if cpus is None:
        yield []
        return
    second_version = (GROUPS / "cgroup.controllers").exists()
    group = (GROUPS if second_version else GROUPS / "cpu") / f"innocent-{os.getpid()}"
    group.mkdir()
    try:
        if second_version:
            (group / "cpu.max").write_text(f"{int(cpus * PERIOD_US)} {PERIOD_US}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(int(cpus * PERIOD_US)))
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$0" "$@"']
    finally:
        group.rmdir()


def run_once(folder: Path, before: list[str]) -> list[str]:
    """The names of the tests that failed."""
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "asyncio_loopguard", "--stalls"),
        *("-p", "no:cacheprovider", "-W", "ignore", "--rootdir", str(folder), str(folder)),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*before, *command], cwd=folder, env=environment, capture_output=True, text=True
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode not in (0, 1) or (done.returncode == 1 and not failed):
        raise SystemExit(done.stdout + done.stderr)
    if failed:
        print(done.stdout)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--busy", type=int, default=8)
    parser.add_argument("--quota", type=float, metavar="CPUS")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    failed: Counter[str] = Counter()
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as name,
        limited(options.quota) as before,
        busy(options.busy),
    ):
        folder = Path(name)
        (folder / "test_innocent.py").write_text(SUITE)
        for _ in range(options.runs):
            failed.update(run_once(folder, before))
    seconds = time.monotonic() - began
    print(
        f"{options.runs} runs of 39 tests beside {options.busy} busy processes, quota {options.quota}: "
        f"{sum(failed.values())} failures, {seconds:.0f} s"
    )
    if options.json:
        figures = {"runs": options.runs, "failures": dict(failed), "seconds": seconds}
        options.json.write_text(json.dumps(figures, indent=2))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
