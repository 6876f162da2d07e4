"""The wheel, in environments that have only some of the extras: what is not there is not missed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.environments import ROOT, Environment, clean_environment

pytestmark = pytest.mark.timeout(300)  # a package index may be slow

# Argument: the file for the records. Writes on stdout, as JSON, what else was imported and how it went.
PLAIN = """
import json, sys
import loopguard
HEAVY = ("fastapi", "uvicorn", "rich", "requests", "uvloop", "opentelemetry.sdk", "sqlite3")
heavy = [name for name in HEAVY if name in sys.modules]
import asyncio, time
guard = loopguard.install(budget=0.05, jsonl=sys.argv[1])
async def main():
    await asyncio.sleep(0.1)
    time.sleep(0.2)
    await asyncio.sleep(0.1)
if sys.argv[2] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
flushed = guard.flush(10)
loopguard.uninstall()
print(json.dumps({"heavy": heavy, "flushed": flushed, "stats": guard.stats()}))
"""

SERVED = """
import sys, time
import uvicorn
from fastapi import FastAPI
import loopguard
app = FastAPI()
loopguard.install(app, budget=0.05, jsonl=sys.argv[1])
@app.get("/items/{item}")
async def items(item: str) -> str:
    time.sleep(0.2)
    return item
uvicorn.run(app, port=0)
"""


def block(
    environment: Environment, loop: str = "asyncio"
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Hold a plain loop: what the script says, its one record, its stderr."""
    stalls = environment.directory / f"{loop}.jsonl"
    done = environment.run("-W", "error", "-c", PLAIN, str(stalls), loop)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in stalls.read_text().splitlines()]
    (record,) = [record for record in records if record["call"] == "time.sleep"]
    return json.loads(done.stdout), record, done.stderr


@pytest.fixture(scope="module")
def bare(uv: str, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("bare") / "env", uv, str(wheel))


@pytest.fixture(scope="module")
def with_uvloop(uv: str, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    if sys.platform == "win32":
        pytest.skip("uvloop is not for Windows")
    wanted = f"asyncio-loopguard[uvloop] @ {wheel.as_uri()}"
    return Environment(tmp_path_factory.mktemp("uvloop") / "env", uv, wanted)


@pytest.fixture(scope="module")
def with_fastapi(uv: str, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(
        tmp_path_factory.mktemp("fastapi") / "env", uv, str(wheel), "fastapi", "uvicorn"
    )


def test_the_wheel_holds_the_package_and_nothing_of_the_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "loopguard/py.typed" in names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"loopguard", f"{wheel.name.removesuffix('-py3-none-any.whl')}.dist-info"}
    modules = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "loopguard").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if name.startswith("loopguard/")} == modules
    assert [name for name in names if re.search(r"(^|/)tests?(/|_)", name)] == []


def test_the_bare_wheel_needs_structlog_and_the_api_of_opentelemetry(bare: Environment) -> None:
    theirs = {"structlog", "opentelemetry-api", "typing-extensions"}
    older = {"importlib-metadata", "zipp"}  # of OpenTelemetry's, up to some version
    assert bare.packages - older == {"asyncio-loopguard", *theirs}


def test_the_bare_wheel_catches_a_stall(bare: Environment) -> None:
    """With its record, its log, and no import of what only the extras bring."""
    said, record, stderr = block(bare)
    assert said["heavy"] == []
    assert said["flushed"]
    assert (said["stats"]["sink_errors"], said["stats"]["troubles"]) == (0, 0)
    assert (record["cause"], record["culprit"]["function"]) == ("blocking_call", "main")
    assert (record["trace_id"], record["request"]) == (None, None)
    logged = [json.loads(line) for line in stderr.splitlines()]
    events = {event["event"]: event for event in logged}
    assert set(events) == {"event_loop.guard", "event_loop.stall", "event_loop.summary"}
    assert events["event_loop.guard"]["version"] == version_of(bare)
    assert events["event_loop.stall"]["stall_id"] == record["id"]


def version_of(environment: Environment) -> str:
    code = "from importlib.metadata import version; print(version('asyncio-loopguard'))"
    return environment.run("-c", code).stdout.strip()


@pytest.mark.parametrize("command", ["loopguard", "asyncio-loopguard", None])
def test_the_demo_says_in_one_line_what_it_lacks(bare: Environment, command: str | None) -> None:
    script = ["-m", "loopguard"]
    if command is not None:
        script = ["-c", "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"]
        script.append(str(bare.python.parent / command))
    done = bare.run(*script, "demo")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "asyncio-loopguard[demo]" in done.stderr


def test_with_uvloop_alone_its_loops_are_guarded(with_uvloop: Environment) -> None:
    assert "fastapi" not in with_uvloop.packages
    said, record, _ = block(with_uvloop, "uvloop")
    assert said["heavy"] == [], "uvloop is imported where it is used, not with loopguard"
    assert record["loop"] == "uvloop.Loop"
    assert record["culprit"]["function"] == "main"


@pytest.fixture
def served(with_fastapi: Environment) -> Iterator[tuple[str, Path]]:
    """The address of an app under uvicorn, and its records."""
    stalls, log = with_fastapi.directory / "served.jsonl", with_fastapi.directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [with_fastapi.python, "-c", SERVED, str(stalls)],
            cwd=with_fastapi.directory,
            env={**clean_environment(), "NO_PROXY": "127.0.0.1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        from tests.real.server import wait_until

        assert wait_until(lambda: "running on" in log.read_text(), 30), log.read_text()
        (url,) = re.findall(r"running on (http://127\.0\.0\.1:\d+)", log.read_text())
        yield url, stalls
    finally:
        process.terminate()
        process.wait(10)
    assert "Traceback" not in log.read_text()


def test_with_fastapi_alone_the_route_is_told_and_no_trace(
    with_fastapi: Environment, served: tuple[str, Path]
) -> None:
    """Without uvloop, and without the SDK of OpenTelemetry."""
    import urllib.request

    from tests.real.server import read_rows, wait_until

    assert {"uvloop", "opentelemetry-sdk"}.isdisjoint(with_fastapi.packages)
    url, stalls = served
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    assert opener.open(f"{url}/items/4711", timeout=30).read() == b'"4711"'
    assert wait_until(lambda: any(row["request"] for row in read_rows(stalls)), 5)
    record = next(row for row in read_rows(stalls) if row["request"])
    assert (record["request"]["method"], record["request"]["route"]) == ("GET", "/items/{item}")
    assert record["culprit"]["function"] == "items"
    assert (record["request"]["trace_id"], record["trace_id"], record["span_id"]) == (None,) * 3
    assert record["phase"] == "serving"
