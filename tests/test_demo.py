"""`loopguard demo`, run as a user runs it: in a process of its own, with real peers, and taken at its word."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import structlog

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
requests = pytest.importorskip("requests")

import loopguard  # noqa: E402
from loopguard.cli.demo.routes import get_paths  # noqa: E402
from loopguard.cli.demo.show import screen, show_findings, show_log, show_traces  # noqa: E402
from loopguard.cli.demo.stage import load_shop  # noqa: E402
from tests.records import CULPRIT, REQUEST, TRACE_ID, make_stall  # noqa: E402

ROOT = Path(loopguard.__file__).parent.parent
SHOP = ROOT / "loopguard/cli/demo/shop.py"
# Which call blocks in which route, as somebody knows it who has read the app.
BLOCKING = {
    "/stock/{item_id}": "requests.get(",
    "/reports/{year}": "cursor.execute(",
    "/items/{item_id}/forecast": "sum(",
    "/items/{item_id}/reviews": "TRAILING_SPACE.sub(",
}

ADDED = """
import sys
import time

from fastapi import APIRouter, FastAPI

from loopguard.cli.demo.stage import run_demo

app = FastAPI(openapi_url=None)
router = APIRouter(prefix="/added")


@router.get("/{number}/nap")
async def nap(number: int) -> int:
    time.sleep(0.3)  # blocks
    return number


@router.get("/{number}")
async def number(number: int) -> int:
    return number


app.include_router(router)
sys.exit(run_demo(app, **eval(sys.argv[1])))
"""


@dataclass(frozen=True)
class Ended:
    """A demo that has ended, and what it left in its working directory."""

    code: int
    out: str
    err: str
    seconds: float
    directory: Path

    def records(self, name: str = "loopguard-demo.jsonl") -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / name).read_text().splitlines()]


def environment(**more: str) -> dict[str, str]:
    """This process's, without what would configure loopguard or OpenTelemetry."""
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("LOOPGUARD_", "OTEL_"))
    }
    return {**clean, "PYTHONPATH": str(ROOT), **more}


def run(arguments: list[str], directory: Path, **variables: str) -> Ended:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=100,
    )
    return Ended(done.returncode, done.stdout, done.stderr, time.monotonic() - began, directory)


def run_added(directory: Path, options: str = "{}", **variables: str) -> Ended:
    """Run the demo with a small app of our own, which has one route that blocks and one that does not."""
    script = directory / "added.py"
    script.write_text(ADDED)
    return run([str(script), options], directory, **variables)


def marked_lines(source: str) -> set[int]:
    return {
        number for number, line in enumerate(source.splitlines(), 1) if line.endswith("# blocks")
    }


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    directory = tmp_path_factory.mktemp("demo")
    (directory / "loopguard-demo.jsonl").write_text("of an earlier run\n")
    return run(["-m", "loopguard", "demo"], directory)


def named(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that blame a line: where the evidence gave none, or the system was late, nobody is blamed."""
    return [record for record in records if record["culprit"]]


def test_it_ends_by_itself_with_0(demo: Ended) -> None:
    assert demo.code == 0, demo.err
    assert demo.seconds < 30  # 20 are promised; other tests may be running


def test_each_blocking_line_of_the_app_is_named_and_no_other(demo: Ended) -> None:
    lines = {
        (record["culprit"]["file"], record["culprit"]["line"]) for record in named(demo.records())
    }
    assert lines == {(str(SHOP), line) for line in marked_lines(SHOP.read_text())}


def with_route(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that know their request: where native code kept the GIL, another thread may have it next, unlike us."""
    known = [record for record in named(records) if record["request"]]
    assert all(record in known or record["cause"] == "gil_hold" for record in named(records))
    return known


def test_each_blocking_line_is_named_with_its_route_and_no_innocent_route_is(demo: Ended) -> None:
    source = SHOP.read_text().splitlines()
    found = {
        (record["request"]["route"], record["culprit"]["line"])
        for record in with_route(demo.records())
    }
    assert {route for route, _ in found} == set(BLOCKING)
    for route, line in found:
        assert BLOCKING[route] in source[line - 1]


def test_every_stall_is_in_the_log_as_it_happens(demo: Ended) -> None:
    logged = [line for line in demo.err.splitlines() if "event_loop.stall" in line]
    assert len(logged) == len(demo.records())
    for record in named(demo.records()):
        place = f"{record['culprit']['file']}:{record['culprit']['line']} in"
        whose = f"route={record['request']['route']}" if record["request"] else ""
        assert any(place in line and whose in line for line in logged)


def test_the_table_has_every_finding_once(demo: Ended) -> None:
    table = demo.out.partition("longest")[2]
    for record in named(demo.records()):
        assert table.count(f"{record['culprit']['file']}:{record['culprit']['line']} in") == 1
        assert f"{record['cause']}  " in table
    for record in with_route(demo.records()):
        assert f"GET {record['request']['route']}\n" in table


def test_the_report_page_stands_beside_the_records(demo: Ended) -> None:
    page = demo.directory / "loopguard-demo.html"
    assert f"Their report: {page.as_uri()}" in demo.out
    written = page.read_text().replace("\\u003c", "<").replace("\\u003e", ">")
    assert all(record["process"]["instance"] in written for record in demo.records())
    assert all(record["culprit"]["function"] in written for record in named(demo.records()))


def test_the_records_are_a_file_begun_anew_and_it_says_where(demo: Ended) -> None:
    path = demo.directory / "loopguard-demo.jsonl"
    ended = [record for record in demo.records() if not record["ongoing"]]
    assert f"{len(ended)} stalls in {path}" in demo.out


def test_without_a_terminal_there_are_no_colours(demo: Ended) -> None:
    assert "\x1b" not in demo.out + demo.err


def test_a_route_that_it_does_not_know_is_found_too(tmp_path: Path) -> None:
    """Nothing in the demo knows what is to come out; and records are appended to a file that was asked for."""
    (tmp_path / "asked.jsonl").write_text('{"from": "earlier"}\n')
    (tmp_path / "asked.html").write_text("mine")
    ended = run_added(tmp_path, "{'jsonl': 'asked.jsonl'}")
    assert (tmp_path / "asked.html").read_text() == "mine"
    assert "asked.html: File exists" in ended.out
    assert ended.code == 0, ended.err
    earlier, *records = ended.records("asked.jsonl")
    assert earlier == {"from": "earlier"}
    found = {(record["culprit"]["file"], record["culprit"]["line"]) for record in named(records)}
    assert found == {("added.py", line) for line in marked_lines(ADDED)}
    assert {record["request"]["route"] for record in named(records)} == {"/added/{number}/nap"}
    assert "GET /added/{number}/nap\n" in ended.out


def test_jsonl_dash_is_stdout_and_leaves_the_words_to_stderr(tmp_path: Path) -> None:
    ended = run_added(tmp_path, "{'jsonl': '-'}")
    assert ended.code == 0, ended.err
    assert {json.loads(line)["schema"] for line in ended.out.splitlines()} == {1}
    assert "GET /added/{number}/nap\n" in ended.err
    assert not (tmp_path / "loopguard-demo.jsonl").exists()


def test_no_uvloop_and_no_driver_for_postgresql_are_said_in_a_line_each(tmp_path: Path) -> None:
    """It goes on with asyncio's own loop, and without the one route."""
    script = (
        "import sys; sys.modules.update(uvloop=None, psycopg2=None)\n"
        "from loopguard.cli import main; sys.exit(main(['demo']))"
    )
    ended = run(["-c", script], tmp_path)
    assert ended.code == 0, ended.err
    assert len([line for line in ended.out.splitlines() if line.startswith("No PostgreSQL")]) == 1
    assert len([line for line in ended.out.splitlines() if line.startswith("uvloop")]) == 1
    assert {record["request"]["route"] for record in named(ended.records())} == set(BLOCKING) - {
        "/reports/{year}"
    }
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("module", ["fastapi", "uvicorn", "requests", "rich"])
def test_a_missing_extra_is_named_in_one_line(module: str, tmp_path: Path) -> None:
    script = f"import sys; from loopguard.cli import main; sys.modules[{module!r}] = None; sys.exit(main(['demo']))"
    ended = run(["-c", script], tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.count("\n") == 1
    assert module in ended.err
    assert "asyncio-loopguard[demo]" in ended.err


@pytest.mark.parametrize(
    "arguments, variables",
    [
        (["--jsonl", "no/such/directory/x.jsonl"], {}),
        (["--jsonl", "."], {}),
        (["--jsonl", ""], {}),
        ([], {"LOOPGUARD_BUDGET": "soon"}),
        (
            [],
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "smoke",
            },
        ),
    ],
)
def test_what_cannot_be_used_ends_with_2_and_one_line(
    arguments: list[str], variables: dict[str, str], tmp_path: Path
) -> None:
    ended = run(["-m", "loopguard", "demo", *arguments], tmp_path, **variables)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.count("\n") == 1


def test_a_default_file_that_cannot_be_begun_anew_ends_with_2_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "loopguard-demo.jsonl").mkdir()
    ended = run(["-m", "loopguard", "demo"], tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.count("\n") == 1


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory for temporary files that every user may enter, as /tmp: root runs PostgreSQL as nobody."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def running(
    arguments: list[str], directory: Path, temporary: Path
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "loopguard", "demo", *arguments],
        cwd=directory,
        env=environment(TMPDIR=str(temporary), PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def await_line(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    assert process.stdout
    for line in process.stdout:
        if found := re.search(pattern, line):
            return found
    raise AssertionError(f"ended without a line like {pattern!r}")


def child_processes(parent: int) -> set[int]:
    """All that descend from it, by the kernel's own account."""
    children = {pid for pid, (_, its_parent) in processes().items() if its_parent == parent}
    return children.union(*map(child_processes, children))


def processes() -> dict[int, tuple[str, int]]:
    """State and parent of every process."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            found[int(stat.parent.name)] = state, int(parent)
    return found


def alive(children: set[int]) -> set[int]:
    """Those that still run; one that waits to be reaped by the system has ended."""
    return {pid for pid, (state, _) in processes().items() if pid in children and state != "Z"}


@pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="child processes are found in /proc"
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_it_nothing_is_left_behind(
    number: signal.Signals, tmp_path: Path, temporary: Path
) -> None:
    """No child process, no PostgreSQL, no temporary directory, and no traceback."""
    with running([], tmp_path, temporary) as process:
        await_line(process, "Visitors call")
        children = child_processes(process.pid)
        assert len(children) >= 2
        time.sleep(0.5)  # amid the traffic
        asked = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
        took = time.monotonic() - asked
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in err
    assert took < 5  # one is promised; other tests may be running
    if number == signal.SIGKILL:  # then its children clear up by themselves
        await_that(lambda: not alive(children) and not any(temporary.iterdir()))
    assert list(temporary.iterdir()) == []
    assert alive(children) == set()


def await_that(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def test_serve_keeps_it_open_for_a_browser_until_ctrl_c(tmp_path: Path, temporary: Path) -> None:
    with running(["--serve"], tmp_path, temporary) as process:
        address = await_line(process, r"http://127\.0\.0\.1:\d+/")[0]
        page = requests.get(address, timeout=10).text
        links = re.findall(r'href="([^"]+)"', page)
        assert links == get_paths(load_shop())
        assert requests.get(address.rstrip("/") + "/health", timeout=10).json() == {"status": "ok"}
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in err
    assert list(temporary.iterdir()) == []


@contextlib.contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """An OTLP endpoint on loopback: its address, and the spans that come in with their service and scope."""
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in service.ExportTraceServiceRequest.FromString(body).resource_spans:
                names = {item.key: item.value.string_value for item in resource.resource.attributes}
                spans.extend(
                    (names["service.name"], scope.scope.name, span)
                    for scope in resource.scope_spans
                    for span in scope.spans
                )
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", spans
        server.shutdown()
        thread.join()


def test_with_an_endpoint_each_stall_has_a_trace_and_it_says_where(tmp_path: Path) -> None:
    """One server span for each request, and the stall's span in the same trace."""
    with collector() as (endpoint, spans):
        template = "https://traces.example/{trace_id}?view=1"
        ended = run_added(
            tmp_path, f"{{'trace_url': {template!r}}}", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint
        )
    assert ended.code == 0, ended.err
    assert {service for service, _, _ in spans} == {"loopguard-demo"}
    server_spans = [span for _, _, span in spans if span.kind == 2]
    assert len(server_spans) == len({span.trace_id for span in server_spans})
    assert {span.name for span in server_spans} == {
        "GET /added/{number}/nap",
        "GET /added/{number}",
    }
    stalls = {span.trace_id.hex() for _, scope, span in spans if scope == "loopguard"}
    traces = {record["trace_id"] for record in named(ended.records())}
    assert traces
    assert traces <= stalls
    for trace_id in traces:
        assert template.replace("{trace_id}", trace_id) in ended.out


def test_the_environment_names_the_service(tmp_path: Path) -> None:
    with collector() as (endpoint, spans):
        run_added(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_SERVICE_NAME="mine")
    assert {service for service, _, _ in spans} == {"mine"}


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_an_endpoint_that_does_not_answer_costs_one_line(protocol: str, tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk")
    ended = run_added(
        tmp_path,
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
    )
    assert ended.code == 0, ended.err
    assert len([line for line in ended.out.splitlines() if line.startswith("No traces")]) == 1
    assert "Traceback" not in ended.err
    assert [line for line in ended.err.splitlines() if "event_loop." not in line] == []


def test_get_paths_are_those_of_included_routers_and_mounted_apps_too() -> None:
    from fastapi import APIRouter, FastAPI

    app, inner, mounted = FastAPI(openapi_url=None), APIRouter(), FastAPI(openapi_url=None)

    @inner.get("/{a}/x/{b:path}")
    @mounted.get("/y")
    @app.post("/never")
    async def answer() -> None:
        """Answer nothing."""

    app.include_router(inner, prefix="/in")
    app.mount("/sub/{tenant}", mounted)
    assert get_paths(app) == ["/in/1/x/1", "/sub/1/y"]


def shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *stalls: loopguard.Stall
) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    show_findings(screen(), stalls)
    return capsys.readouterr().out


def test_the_table_groups_by_fingerprint_and_gives_the_longest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_stall(fingerprint="other", duration=0.2, cause="cpu", call=None)
    table = shown(capsys, monkeypatch, make_stall(), other, make_stall(duration=1.25))
    assert table.splitlines()[1:] == [
        "longest  count  cause          route",
        "1250 ms      2  blocking_call  GET /v1/users/{id}",
        "                app/users.py:42 in list_users",
        "                calls time.sleep",
        " 200 ms      1  cpu            GET /v1/users/{id}",
        "                app/users.py:42 in list_users",
    ]


def test_file_and_line_stay_whole_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/srv/" + "long/" * 30 + "users.py"
    assert f"{path}:42 in" in shown(
        capsys, monkeypatch, make_stall(culprit=replace(CULPRIT, file=path))
    )


def test_names_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = "\x1b]0;owned\x07\n"
    stall = make_stall(
        culprit=replace(CULPRIT, file=hostile, function=hostile),
        call=hostile,
        request=replace(REQUEST, route=hostile),
    )
    assert shown(capsys, monkeypatch, stall).replace("\n", "").isprintable()


def test_what_no_line_is_to_blame_for_is_told_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    late = make_stall(cause="not_scheduled", culprit=None, request=None)
    unseen = make_stall(
        fingerprint="unseen", cause="unknown", culprit=None, request=None, call=None
    )
    assert "Nothing held the event loop for longer than its budget." in shown(
        capsys, monkeypatch, late
    )
    assert "could not be seen" in shown(capsys, monkeypatch, unseen)


def test_a_trace_is_shown_for_each_stall_that_has_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    show_traces(
        screen(),
        [make_stall(), make_stall(trace_id=None)],
        "http://localhost:16686/trace/{trace_id}",
    )
    out = capsys.readouterr().out
    assert out.count("http://localhost:16686/trace/" + TRACE_ID) == 1
    assert out.count("http") == 1


@pytest.mark.parametrize(
    "variables, coloured",
    [({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False), ({}, False)],
)
def test_colours_are_as_the_environment_wants_them(
    variables: dict[str, str],
    coloured: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the table and of the log alike; without a word, only a terminal gets any."""
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", **variables}.items():
        monkeypatch.setenv(name, value)
    assert ("\x1b[" in shown(capsys, monkeypatch, make_stall())) is coloured
    show_log()
    try:
        structlog.get_logger().warning("event_loop.stall", cause="cpu")
    finally:
        structlog.reset_defaults()
    assert ("\x1b[" in capsys.readouterr().err) is coloured
