"""A forked child is dormant until it runs a loop, and is then guarded anew; its parent notices nothing of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.holding import LOOPS
from tests.reliability import Say

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")

ROOT = Path(__file__).resolve().parents[1]

# A child writes to stdout what is asked of it, and ends without any exit handler.
PRELUDE = """
import asyncio, json, os, signal, sys, threading, time, warnings
import loopguard
from tests.holding import hold, new_loop, open_files, run
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork beside threads
LOOP, JSONL = sys.argv[1:3]

def ours():
    return sorted(each.name for each in threading.enumerate() if "loopguard" in each.name)

def say(**facts):
    os.write(1, json.dumps({"pid": os.getpid(), **facts}).encode() + b"\\n")

def fork(child):
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)  # a deadlock is to fail, and to leave nobody behind
        code = 1
        try:
            child()
            code = 0
        finally:
            os._exit(code)
    return pid

def ended(pid):
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, code

def loop_anew(main):
    asyncio._set_running_loop(None)  # up to 3.11, a child is in its parent's loop
    run(main, LOOP)

def guarded():
    loop_anew(hold(0.3))
    assert guard.flush(20)
    say(stats=guard.stats(), threads=ours())
"""


def ran(script: str, loop: str, path: Path, **variables: str) -> list[dict[str, Any]]:
    """What parent and children said."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script, loop, str(path)],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def records(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [each for each in found if each["cause"] != "not_scheduled" and not each["ongoing"]]


OUTSIDE = """
guard = loopguard.install(budget=0.1, jsonl=JSONL, log=False)
ended(fork(guarded))
run(hold(0.3), LOOP)
assert guard.flush(20)
say(stats=guard.stats(), threads=ours())
"""

INSIDE = """
guard = loopguard.install(budget=0.1, jsonl=JSONL, log=False)

async def parent():
    await hold(0.3)
    pid = fork(guarded)
    await asyncio.to_thread(ended, pid)
    await hold(0.3)
    pid = fork(guarded)
    time.sleep(0.3)
    await asyncio.to_thread(ended, pid)

run(parent(), LOOP)
assert guard.flush(20)
say(stats=guard.stats(), threads=ours())
"""


@pytest.mark.core
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("script", [OUTSIDE, INSIDE], ids=["outside", "inside"])
def test_a_child_that_runs_a_loop_is_guarded_anew_and_its_parent_goes_on(
    script: str, loop: str, tmp_path: Path
) -> None:
    """Each tells its own stalls under its own pid and its own instance, and no others."""
    path = tmp_path / "stalls.jsonl"
    *children, parent = ran(script, loop, path)
    for child in children:
        assert child["stats"]["stalls"] == 1
        assert child["threads"] == parent["threads"]
    for one in (*children, parent):
        assert one["stats"]["troubles"] == one["stats"]["sink_errors"] == 0
    told = records(path)
    pids = [record["pid"] for record in told]
    for child in children:
        assert pids.count(child["pid"]) == 1
    assert pids.count(parent["pid"]) == len(told) - len(children) == parent["stats"]["stalls"]
    assert {record["call"] for record in told} <= {"time.sleep", "posix.fork", "os.fork"}
    assert len({record["process"]["instance"] for record in told}) == 1 + len(children)


def test_a_configured_instance_is_kept_in_the_child(tmp_path: Path) -> None:
    path = tmp_path / "stalls.jsonl"
    ran(OUTSIDE, "asyncio", path, OTEL_RESOURCE_ATTRIBUTES="service.instance.id=web-1")
    told = records(path)
    assert [record["process"]["instance"] for record in told] == ["web-1", "web-1"]
    assert len({record["pid"] for record in told}) == 2


DORMANT = """
files = open_files()
guard = loopguard.install(budget=0.1, jsonl=JSONL, log=False)

def child():
    import gc
    left = {n: what for n, what in open_files().items() if files.get(n) != what}
    say(threads=ours(), stats=guard.stats(), files=left, flushed=guard.flush(0), hooks=len(gc.callbacks))
    assert guard.stalls == ()
    guard.pause(); guard.resume()
    guard.budget = 0.2
    guard.uninstall()
    loopguard.uninstall()

async def parent():
    await hold(0.3)
    pid = fork(child)
    await asyncio.to_thread(ended, pid)

run(parent(), LOOP)
assert guard.flush(20)
loopguard.uninstall()
"""


@pytest.mark.parametrize("loop", LOOPS)
def test_a_child_that_runs_no_loop_has_nothing_of_ours(loop: str, tmp_path: Path) -> None:
    """No thread, no timer, no file; and whatever is asked of its guard does no harm."""
    [child] = ran(DORMANT, loop, tmp_path / "stalls.jsonl")
    assert child["threads"] == []
    assert child["flushed"] is True
    assert set(child["stats"].values()) == {0}
    assert child["hooks"] == 0
    ours = [what for what in child["files"].values() if "timerfd" in what or "/task/" in what]
    assert ours == []
    assert not [what for what in child["files"].values() if "stalls.jsonl" in what]


AGAIN = """
guard = loopguard.install(budget=0.1, jsonl=JSONL, log=False)

def same():
    assert loopguard.install(budget=0.1, jsonl=JSONL, log=False) is guard
    say(threads=ours())
    guarded()

def other():
    anew = loopguard.install(budget=0.2, jsonl=JSONL, log=False)
    assert anew is not guard
    loop_anew(hold(0.4))
    assert anew.flush(20)
    assert anew.stats()["stalls"] == 1
    say(threads=ours())

def grandchild():
    ended(fork(guarded))
    guarded()

async def parent():
    await hold(0.3)
    for child in (same, other, grandchild):
        await asyncio.to_thread(ended, fork(child))
    await hold(0.3)

run(parent(), LOOP)
assert guard.flush(20)
say(stats=guard.stats(), threads=ours())
"""


def test_a_child_may_install_anew_and_have_children_of_its_own(tmp_path: Path) -> None:
    """As its parent did, which gives the same guard; or with other options."""
    path = tmp_path / "stalls.jsonl"
    early, *rest, parent = ran(AGAIN, "asyncio", path)
    assert early["threads"] == parent["threads"]
    assert all(one["threads"] == parent["threads"] for one in rest)
    told = records(path)
    assert len([record for record in told if record["pid"] != parent["pid"]]) == 4
    assert [record["budget"] for record in told].count(0.2) == 1
    assert len({record["process"]["instance"] for record in told}) == 5


STORM = """
guard = loopguard.install(budget=0.01, jsonl=JSONL, on_stall=lambda stall: time.sleep(0.001))

def storm():
    async def work():
        while not over.is_set():
            await asyncio.sleep(0.001)
            time.sleep(0.015)
    run(work(), LOOP)

def child():
    print("alive", file=sys.stderr, flush=True)
    if number % 5:
        assert ours() == []
        return
    asyncio._set_running_loop(None)
    run(hold(0.1), LOOP)
    assert guard.flush(20)
    assert guard.stats()["stalls"] > 0
    assert guard.stats()["troubles"] == 0

over = threading.Event()
thread = threading.Thread(target=storm)
thread.start()
for number in range(30):
    time.sleep(0.003 * (number % 7))
    ended(fork(child))
before = guard.stats()["stalls"]
time.sleep(0.5)
over.set()
thread.join()
assert guard.flush(30)
stats = guard.stats()
assert stats["stalls"] > before
say(stats=stats)
"""


@pytest.mark.fault("forks at any moment", "30, while watchdog, reporter and all sinks are busy")
@pytest.mark.parametrize("loop", LOOPS)
def test_no_lock_is_carried_over_into_a_child(loop: str, tmp_path: Path, row: Say) -> None:
    """Thirty forks while watchdog, reporter and all sinks are busy: each child lives, and ends in time."""
    [parent] = ran(STORM, loop, tmp_path / "stalls.jsonl")
    stats = parent["stats"]
    assert stats["troubles"] == stats["sink_errors"] == stats["watchdog_restarts"] == 0
    assert stats["stalls"] == stats["logged"] + stats["suppressed"] + stats["dropped"]
    row("each child lives, and those that run a loop are guarded; the parent goes on")


LOCKED = """
import structlog

class Slow:
    def write(self, text):
        time.sleep(0.003)
    def flush(self):
        pass

slow = Slow()
structlog.configure(logger_factory=structlog.PrintLoggerFactory(slow))
guard = loopguard.install(budget=0.01, ignore="nothing", jsonl=JSONL)

def child():
    signal.alarm(10)
    structlog.get_logger().info("alive")

def chatter():
    while not over.is_set():
        guard._engine.reporter.trouble(RuntimeError(str(time.monotonic())))
        time.sleep(0.001)

over = threading.Event()
thread = threading.Thread(target=chatter, daemon=True)
thread.start()
for number in range(30):
    time.sleep(0.002 * (number % 4))
    ended(fork(child))
over.set()
thread.join()
assert guard.flush(20)
say(stats=guard.stats())
"""


def test_no_lock_of_a_users_logger_is_carried_over_into_a_child(tmp_path: Path) -> None:
    """structlog's own loggers write under a lock, which does not mend itself in a child: nobody may be writing then."""
    [parent] = ran(LOCKED, "asyncio", tmp_path / "stalls.jsonl")
    assert parent["stats"]["troubles"] > 30
    assert parent["stats"]["sink_errors"] == 0
