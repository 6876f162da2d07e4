"""What loopguard runs beside: other watchers, debuggers, agents, and interpreters that are set up otherwise."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.faults.script import PRELUDE, ROOT, ran
from tests.reliability import Say
from tests.threads import wait_until

HELD = """
import logging
logging.basicConfig(level="ERROR")
guard = loopguard.install(budget=0.1, jsonl=sys.argv[1])
{before}
run(hold(0.3, times=2), "asyncio")
say(calls=calls(guard), stats=guard.stats())
loopguard.uninstall()
{after}
"""


def check(
    path: Path,
    *,
    before: str = "",
    after: str = "",
    options: tuple[str, ...] = (),
    variables: Mapping[str, str] | None = None,
) -> str:
    """Two stalls are told, and nothing of ours is in trouble; gives what was written on stderr."""
    script = HELD.format(before=textwrap.dedent(before), after=textwrap.dedent(after))
    done = ran(script, path, options=options, variables=variables)
    [said] = done.said
    assert said["calls"] == ["time.sleep"] * 2
    assert said["stats"]["troubles"] == said["stats"]["sink_errors"] == 0
    return done.stderr


@pytest.mark.company("`python -X dev`", "with all warnings as errors")
def test_in_development_mode_nothing_warns(tmp_path: Path, row: Say) -> None:
    """It enables faulthandler, asyncio's debug mode and the checks of the allocator."""
    stderr = check(tmp_path / "stalls.jsonl", options=("-X", "dev", "-W", "error"))
    assert "loopguard/" not in stderr
    row("both stalls are told; no warning, no file left open")


@pytest.mark.company("asyncio's debug mode", "`PYTHONASYNCIODEBUG=1`")
def test_asyncios_debug_mode_changes_nothing(tmp_path: Path, row: Say) -> None:
    check(tmp_path / "stalls.jsonl", variables={"PYTHONASYNCIODEBUG": "1"})
    row("both stalls are told")


@pytest.mark.company("`faulthandler`", "enabled before, with `dump_traceback_later` running")
def test_faulthandler_stays_enabled(tmp_path: Path, row: Say) -> None:
    check(
        tmp_path / "stalls.jsonl",
        options=("-X", "faulthandler"),
        before="""
            import faulthandler
            faulthandler.dump_traceback_later(60, file=open(os.devnull, "w"))
        """,
        after="""
            assert faulthandler.is_enabled()
            faulthandler.cancel_dump_traceback_later()
        """,
    )
    row("both stalls are told; it is enabled as before")


@pytest.mark.company(
    "a profiler by signals", "`setitimer(ITIMER_PROF)` and `ITIMER_REAL`, every 5 ms"
)
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_other_users_of_timers_get_every_signal(tmp_path: Path, row: Say) -> None:
    check(
        tmp_path / "stalls.jsonl",
        before="""
            got = {signal.SIGPROF: 0, signal.SIGALRM: 0}
            def handle(number, _frame):
                got[number] += 1
            for number, timer in ((signal.SIGPROF, signal.ITIMER_PROF), (signal.SIGALRM, signal.ITIMER_REAL)):
                signal.signal(number, handle)
                signal.setitimer(timer, 0.005, 0.005)
        """,
        after="""
            for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
                signal.setitimer(timer, 0)
            assert got[signal.SIGALRM] > 50, got
        """,
    )
    row("both stalls are told, and they get their signals")


@pytest.mark.company("`sys.setswitchinterval`", "0.5 s, and a millionth of a second")
@pytest.mark.parametrize("interval", [0.5, 1e-6])
def test_the_switch_interval_may_be_what_it_will(interval: float, tmp_path: Path, row: Say) -> None:
    check(tmp_path / "stalls.jsonl", before=f"sys.setswitchinterval({interval})")
    row("both stalls are told")


@pytest.mark.company(
    "eager tasks",
    "`asyncio.eager_task_factory`; a stall before the task's first await, and one after",
)
@pytest.mark.skipif(sys.version_info < (3, 12), reason="of Python 3.12")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_stalls_in_eager_tasks_are_told(loop: str, tmp_path: Path, row: Say) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    script = """
loop, path = sys.argv[1:]

async def eager():
    time.sleep(0.3)
    await asyncio.sleep(0.15)
    time.sleep(0.3)

async def main():
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    await asyncio.sleep(0.15)
    await asyncio.create_task(eager(), name="eager")
    await asyncio.sleep(0.15)

guard = loopguard.install(budget=0.1, log=False)
run(main(), loop)
assert guard.flush(10)
told = [stall for stall in guard.stalls if stall.culprit]
say(told=[(stall.culprit.function, stall.call, stall.culprit.line) for stall in told], stats=guard.stats())
"""
    [said] = ran(script, loop, tmp_path).said
    lines = {line for _, _, line in said["told"]}
    assert [(function, call) for function, call, _ in said["told"]] == [("eager", "time.sleep")] * 2
    assert len(lines) == 2
    assert said["stats"]["troubles"] == 0
    row("both are told, each with its line")


SUITE = """
import asyncio, time
import loopguard

def test_one():
    guard = loopguard.install(budget=0.1, log=False)
    async def main():
        await asyncio.sleep(0.15)
        time.sleep(0.3)
        await asyncio.sleep(0.15)
    asyncio.run(main())
    assert guard.flush(10)
    assert "time.sleep" in [stall.call for stall in guard.stalls]
    loopguard.uninstall()

def test_too_slow():
    loopguard.install(budget=0.1, log=False)
    async def main():
        await asyncio.sleep(0.15)
        time.sleep(20)
    asyncio.run(main())
"""


@pytest.mark.company(
    "pytest-timeout", "by signal; a test that is told of, and one that is ended in mid-stall"
)
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_pytest_timeout_ends_a_test_in_mid_stall(tmp_path: Path, row: Say) -> None:
    pytest.importorskip("pytest_timeout")
    (tmp_path / "test_suite.py").write_text(SUITE)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--timeout",
            "2",
            str(tmp_path),
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    assert "Timeout (>2.0s) from pytest-timeout" in done.stdout
    row("the stall is told; the other test is ended at its time")


# Debuggers

PDB = """
async def route():
    breakpoint()
    return 1

async def main():
    await asyncio.sleep(0.15)
    await route()
    await hold(0.3)

guard = loopguard.install(budget=0.1, log=False)
run(main())
say(calls=calls(guard), stalls=[stall.to_dict() for stall in guard.stalls], stats=guard.stats(),
    reasons=guard._engine.reporter.counts.exempt_by_reason)
"""


@pytest.mark.company(
    "`breakpoint()` in a route", "pdb, with somebody who thinks for a second before `continue`"
)
def test_a_breakpoint_is_no_stall(tmp_path: Path, row: Say) -> None:
    """A debugger's own frames are on the stack; what comes after it in another callback is told."""
    script = tmp_path / "script.py"
    script.write_text(PRELUDE + PDB)
    child = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        line = child.stdout.readline()
        while line and "script.py" not in line:
            line = child.stdout.readline()
        try:
            child.wait(1)
        except subprocess.TimeoutExpired:
            child.stdin.write("continue\n")
            child.stdin.flush()
        output, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    said: dict[str, Any] = json.loads(output[output.index('{"calls"') :])
    assert said["calls"] == ["time.sleep"]
    assert [stall for stall in said["stalls"] if stall["duration"] > 0.7] == []
    assert said["reasons"] == {"debugger": 1}
    row("counted as `exempt`, and not reported; what blocks after it is")


DEBUGPY = """
import debugpy
port = debugpy.listen(("127.0.0.1", 0))[1]
print(port, flush=True)
debugpy.wait_for_client()

async def route():
    debugpy.breakpoint()
    return 1

async def main():
    await asyncio.sleep(0.15)
    await route()
    await hold(0.3)

guard = loopguard.install(budget=0.1, log=False)
run(main())
say(calls=calls(guard), stalls=[stall.to_dict() for stall in guard.stalls], stats=guard.stats())
os._exit(0)
"""


class Debugger:
    """A client of the Debug Adapter Protocol, as little of it as will do."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._stream = self._socket.makefile("rwb")
        self._number = 0

    def ask(self, command: str, **arguments: object) -> None:
        self._number += 1
        request = {
            "seq": self._number,
            "type": "request",
            "command": command,
            "arguments": arguments,
        }
        text = json.dumps(request).encode()
        self._stream.write(b"Content-Length: %d\r\n\r\n%s" % (len(text), text))
        self._stream.flush()

    def wait_for(self, event: str) -> dict[str, Any]:
        """The event's body."""
        while True:
            length = int(self._stream.readline().split(b":")[1])
            self._stream.readline()
            message = json.loads(self._stream.read(length))
            if message.get("event") == event:
                body: dict[str, Any] = message.get("body", {})
                return body

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


@pytest.mark.company(
    "VS Code's debugger", "debugpy from PyPI with a client, stopped in a route for a second"
)
@pytest.mark.timeout(300)
def test_a_breakpoint_of_debugpy_is_no_stall(agents: Path, tmp_path: Path, row: Say) -> None:
    script, output = tmp_path / "script.py", tmp_path / "output"
    script.write_text(PRELUDE + DEBUGPY)
    # A file, for debugpy's own child outlives it and would keep a pipe open.
    with output.open("wb") as file:
        child = subprocess.Popen(
            [agents, "-Xfrozen_modules=off", str(script)],
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        wait_until(lambda: "\n" in output.read_text())
        debugger = Debugger(int(output.read_text().split()[0]))
        debugger.ask("initialize", adapterID="test", clientID="test")
        debugger.ask("attach", justMyCode=False)
        debugger.wait_for("initialized")
        debugger.ask("configurationDone")
        stopped = debugger.wait_for("stopped")
        time.sleep(1)
        debugger.ask("continue", threadId=stopped["threadId"])
        assert child.wait(60) == 0, output.read_text()
        debugger.close()
    finally:
        child.kill()
        child.wait()
    said = json.loads(output.read_text().splitlines()[-1])
    assert said["calls"] == ["time.sleep"]
    assert [stall for stall in said["stalls"] if stall["duration"] > 0.7 and stall["culprit"]] == []
    row("no code is blamed for it; what blocks after it is told")


# Agents

AGENT = """
{agent}
import asyncio, json, os, sys, threading, time
from fastapi import FastAPI
import httpx
import loopguard

app = FastAPI()

@app.get("/items/{{item}}")
async def items(item: str) -> str:
    time.sleep(0.3)
    return item

guard = loopguard.install(app, budget=0.1, jsonl=sys.argv[1], log=False)

async def main():
    async with httpx.AsyncClient(transport=httpx.ASGITransport({app}), base_url="http://a") as client:
        await asyncio.sleep(0.15)
        for _ in range(2):
            assert (await client.get("/items/1")).status_code == 200
            await asyncio.sleep(0.15)

asyncio.run(main())
assert guard.flush(20)
told = [
    (stall.culprit.function, stall.call, stall.request and stall.request.route)
    for stall in guard.stalls if stall.culprit and stall.call == "time.sleep"
]
os.write(1, json.dumps(dict(told=told, stats=guard.stats())).encode() + b"\\n")
loopguard.uninstall()
os._exit(0)
"""

AGENTS = {
    "sentry": """
import sentry_sdk
sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", traces_sample_rate=1.0, profiles_sample_rate=1.0, enable_tracing=True)
""",
    "ddtrace": """
import os
os.environ.update(DD_TRACE_AGENT_URL="http://127.0.0.1:9", DD_INSTRUMENTATION_TELEMETRY_ENABLED="false",
                  DD_REMOTE_CONFIGURATION_ENABLED="false", DD_PROFILING_ENABLED="true")
import ddtrace.auto
""",
    "newrelic": """
import os
os.environ.update(NEW_RELIC_LICENSE_KEY="0" * 40, NEW_RELIC_HOST="127.0.0.1", NEW_RELIC_LOG="stderr",
                  NEW_RELIC_LOG_LEVEL="critical", NEW_RELIC_APP_NAME="test", NEW_RELIC_DEVELOPER_MODE="true")
import newrelic.agent
newrelic.agent.initialize()
""",
}


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the agents, in an environment of their own: they patch whatever they find."""
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    directory = tmp_path_factory.mktemp("agents") / "venv"
    packages = ("sentry-sdk", "ddtrace", "newrelic", "debugpy", "fastapi", "httpx", "structlog")
    needed = (*packages, "opentelemetry-api", "pytest")
    for command in (
        ["venv", "-q", "--python", sys.executable, str(directory)],
        ["pip", "install", "-q", "--python", str(directory / "bin" / "python"), *needed],
    ):
        done = subprocess.run([uv, *command], capture_output=True, text=True, timeout=240)
        if done.returncode != 0:
            pytest.skip(f"they cannot be installed here: {done.stderr.strip()[-300:]}")
    return directory / "bin" / "python"


@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform == "win32", reason="paths of POSIX")
@pytest.mark.parametrize(
    "agent",
    [
        pytest.param(
            "sentry",
            marks=pytest.mark.company(
                "Sentry", "its SDK from PyPI, tracing and profiling, no server"
            ),
        ),
        pytest.param(
            "ddtrace",
            marks=pytest.mark.company(
                "Datadog", "`ddtrace.auto` from PyPI, with its profiler, no agent"
            ),
        ),
        pytest.param(
            "newrelic", marks=pytest.mark.company("New Relic", "its agent from PyPI, no server")
        ),
    ],
)
def test_an_agent_beside_it_changes_nothing(
    agent: str, agents: Path, tmp_path: Path, row: Say
) -> None:
    script = AGENT.format(agent=AGENTS[agent], app="app")
    [said] = ran(script, tmp_path / "stalls.jsonl", python=agents, prelude="").said
    assert said["told"] == [["items", "time.sleep", "/items/{item}"]] * 2
    assert said["stats"]["troubles"] == said["stats"]["sink_errors"] == 0
    row("both stalls are told, with line and route")
