"""Is the pytest plugin flaky? A suite that blocks nothing, run again and again beside busy processes.

    python benchmarks/innocent.py [--runs N] [--at-once N] [--busy N] [--quota CPUS] [--json PATH]

Each run is a pytest process of its own, some at a time, beside processes that compute all the time. Each second one has
a quota of so many CPUs, by a control group of its own, where one can be had (as root). Exit code 1 where any test failed.
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

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
    """What to put before a command, so that it and its children get so many CPUs together; None: as many as there are.

    Raises:
        OSError: no such control group can be had here.
    """
    if cpus is None:
        yield []
        return
    second_version = (GROUPS / "cgroup.controllers").exists()
    group = (GROUPS if second_version else GROUPS / "cpu") / f"innocent-{uuid4().hex}"
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


def can_be_limited(cpus: float) -> bool:
    try:
        with limited(cpus) as before:
            return subprocess.run([*before, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


def run_once(folder: Path, cpus: float | None) -> list[str]:
    """The names of the tests that failed, with a quota or without."""
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "asyncio_loopguard", "--stalls"),
        *("-p", "no:cacheprovider", "-W", "ignore", "--rootdir", str(folder), str(folder)),
    ]
    # Without the other plugins of this environment: what they load would take as long as the suite.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    with limited(cpus) as before:
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
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--busy", type=int, default=8)
    parser.add_argument("--quota", type=float, metavar="CPUS", default=0.5, help="0: none")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quota = options.quota if options.quota and can_be_limited(options.quota) else None
    quotas = [quota if number % 2 else None for number in range(options.runs)]
    failed: Counter[str] = Counter()
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as name,
        busy(options.busy),
        ThreadPoolExecutor(options.at_once) as runs,
    ):
        folder = Path(name)
        (folder / "test_innocent.py").write_text(SUITE)
        for failures in runs.map(partial(run_once, folder), quotas):
            failed.update(failures)
    seconds = time.monotonic() - began
    with_quota = sum(each is not None for each in quotas)
    print(
        f"{options.runs} runs of 39 tests, {options.at_once} at a time beside {options.busy} busy processes, "
        f"{with_quota} of them with a quota of {options.quota:g} CPUs: {sum(failed.values())} failures, {seconds:.0f} s"
    )
    if options.json:
        figures = {
            "runs": options.runs,
            "with_quota": with_quota,
            "failures": dict(failed),
            "seconds": seconds,
        }
        options.json.write_text(json.dumps(figures, indent=2))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
