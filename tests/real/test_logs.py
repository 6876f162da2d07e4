"""Every common way to set up a log, under a real uvicorn: each stall is in it once, and says what it should."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import pytest

from tests.real.conftest import NEEDS_UVLOOP
from tests.real.marks import read_marks
from tests.real.server import ROOT, Child, Row, wait_until

for needed in ("fastapi", "uvicorn", "opentelemetry.sdk", "opentelemetry.instrumentation.fastapi"):
    pytest.importorskip(needed, reason="needs the extras `demo` and `otlp`")

MARKS = read_marks("tests.real.logging_app", ROOT)
BLOCKED = {
    "warning": 0.3,
    "error": 0.7,
}  # seconds, by the severity that they make with a budget of 0.1
TENANT = "acme"
OTHER = "of-another-request"
STALL, GUARD, SUMMARY = "event_loop.stall", "event_loop.guard", "event_loop.summary"

# Those that a stall of a request always has. `delayed_requests` and `advice` come where they are known.
KEYS = {
    *(
        "stall_id",
        "cause",
        "duration_ms",
        "budget_ms",
        "cpu_ms",
        "gc_ms",
        "culprit",
        "code",
        "call",
    ),
    *("route", "method", "phase", "trace_id", "span_id", "task", "coroutine", "fingerprint"),
    *("samples", "confidence", "suppressed", "pid", "thread_name", "frames"),
}
SOMETIMES = {"waited_on", "delayed_requests", "advice"}
# What the set-ups add by themselves.
ADDED = {"event", "level", "logger", "tenant", "timestamp", "otel_trace_id", "otel_span_id"} | {
    f"code.{each}" for each in ("file.path", "function.name", "line.number")
}


@dataclass(frozen=True)
class Setup:
    """How the log is set up; whether what the request bound is on its lines."""

    name: str
    loop: str = "asyncio"
    install: str = "module"
    tenant: bool = True

    def __str__(self) -> str:
        return f"{self.name}-{self.loop}-{self.install}"


SETUPS = [
    pytest.param(Setup("structlog_console"), id="structlog_console"),
    pytest.param(Setup("structlog_json"), id="structlog_json"),
    pytest.param(
        Setup("structlog_json", loop="uvloop", install="lifespan"),
        id="structlog_json-uvloop-lifespan",
        marks=NEEDS_UVLOOP,
    ),
    *(
        pytest.param(Setup(name), id=name)
        for name in (
            *("structlog_log_kwargs", "structlog_formatter", "structlog_async"),
            *("logging_root", "logging_loopguard"),
            *("logging_dict_config", "logging_dict_config_late", "uvicorn_log_config"),
        )
    ),
    pytest.param(Setup("opentelemetry", tenant=False), id="opentelemetry"),
    pytest.param(Setup("nothing", tenant=False), id="nothing"),
    pytest.param(Setup("nothing", install="lifespan", tenant=False), id="nothing-lifespan"),
]


@dataclass(frozen=True)
class Visit:
    """What a request said of itself."""

    severity: str
    sent_trace_id: str
    trace_id: str
    span_id: str


@dataclass(frozen=True)
class Run:
    """A server from its start to its end by SIGTERM: its requests that blocked, and all that it logged."""

    setup: Setup
    pid: int
    visits: list[Visit]
    output: str
    events: list[Row]

    def named(self, event: str) -> list[Row]:
        return [each for each in self.events if each["event"] == event]

    def of(self, visit: Visit) -> list[Row]:
        return [each for each in self.named(STALL) if each.get("trace_id") == visit.trace_id]


@pytest.fixture(scope="module", params=SETUPS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    setup: Setup = request.param
    directory = tmp_path_factory.mktemp(setup.name)
    child = Child(
        [
            *("-m", "uvicorn", "tests.real.logging_app:app", "--port", "0", "--no-access-log"),
            *("--loop", setup.loop, *log_config(setup, directory)),
        ],
        directory / "output.log",
        {"REAL_LOG": setup.name, "REAL_INSTALL": setup.install},
    )
    try:
        url = child.wait_for(r"running on (http://127\.0\.0\.1:\d+)")
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(ask, f"{url}/waiting/{OTHER}?seconds=1.5")
            visits = [visit(url, severity) for severity in BLOCKED]
            other.result()
        ids = [each.trace_id for each in visits]
        wait_until(lambda: all(each in child.read() for each in ids), 5)
    finally:
        code = child.stop()
    output = child.read()
    assert code in (0, -15), f"ended with {code}:\n{output}"
    assert "Traceback" not in output, output
    return Run(setup, child.process.pid, visits, output, list(events_in(output)))


def log_config(setup: Setup, directory: Path) -> list[str]:
    """What uvicorn is told of its own log."""
    if setup.name != "uvicorn_log_config":
        return []
    file = directory / "log.json"
    file.write_text(
        json.dumps(
            {
                "version": 1,
                "disable_existing_loggers": False,
                "formatters": {"extra": {"()": "tests.real.log_format.ExtraFormatter"}},
                "handlers": {"out": {"class": "logging.StreamHandler", "formatter": "extra"}},
                "root": {"level": "INFO", "handlers": ["out"]},
            }
        )
    )
    return ["--log-config", str(file)]


def visit(url: str, severity: str) -> Visit:
    trace_id = secrets.token_hex(16)
    answer = ask(f"{url}/blocking/{TENANT}?seconds={BLOCKED[severity]}", trace_id)
    return Visit(severity, trace_id, **answer)


def ask(url: str, trace_id: str | None = None) -> dict[str, str]:
    headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"} if trace_id else {}
    with build_opener(ProxyHandler({})).open(Request(url, headers=headers), timeout=30) as response:
        answer: dict[str, str] = json.load(response)
        return answer


def events_in(output: str) -> Iterator[Row]:
    """Our events, as JSON or as structlog's console shows them."""
    for line in output.splitlines():
        if line.startswith("{"):
            event = json.loads(line)
        elif console := re.match(
            r"\[(?P<level>\w+) *\] (?P<event>event_loop\S+) +(?P<rest>.*)", line
        ):
            event = {**console.groupdict(), **pairs(console["rest"])}
            del event["rest"]
        else:
            continue
        if str(event.get("event")).startswith("event_loop."):
            yield event


def pairs(text: str) -> Row:
    """`key=value` after `key=value`, where a value may have spaces in it."""
    found = re.findall(r"(\w+)=(.*?)(?= \w+=|$)", text)
    return {key: value_of(value) for key, value in found}


def value_of(text: str) -> Any:
    try:
        return json.loads(text.replace("'", '"'))
    except ValueError:
        return text


def culprit(case: str) -> str:
    mark = MARKS[case]
    return f"{mark.file}:{mark.line} in {mark.function}"


def expected(run: Run, visit: Visit) -> Row:
    """What does not change from run to run."""
    otel = {"otel_trace_id": visit.sent_trace_id, "otel_span_id": visit.span_id}
    return {
        **(otel if run.setup.name == "opentelemetry" else {}),
        "level": visit.severity,
        "cause": "blocking_call",
        "budget_ms": 100.0,
        "culprit": culprit("blocking"),
        "code": "time.sleep(seconds)",
        "call": "time.sleep",
        "method": "GET",
        "route": "/blocking/{tenant}",
        "phase": "serving",
        "trace_id": visit.sent_trace_id,
        "span_id": visit.span_id,
        "suppressed": 0,
        "pid": run.pid,
        "thread_name": "MainThread",
    }


def test_each_stall_is_logged_once(run: Run) -> None:
    """And nothing else is, however many loggers, handlers and renderers there are."""
    assert [len(run.of(visit)) for visit in run.visits] == [1, 1], run.output
    own = [event for event in run.named(STALL) if event["cause"] != "not_scheduled"]
    assert [event["culprit"] for event in own if event["phase"] == "serving"] == [
        culprit("blocking") for _ in run.visits
    ]


def test_it_says_what_blocked_and_for_whom(run: Run) -> None:
    """Its level is its severity, its ids are those of the request's own span.

    That span is active where it is logged: OpenTelemetry's handler asks for the active one.
    """
    for visit in run.visits:
        [event] = run.of(visit)
        wanted = expected(run, visit)
        assert {key: event[key] for key in wanted} == wanted
        seconds = BLOCKED[visit.severity]
        assert seconds <= event["duration_ms"] / 1000 + 0.005 < seconds + 1
        assert event["frames"][-1] == wanted["culprit"]


def test_its_keys_are_those_of_the_contract(run: Run) -> None:
    """None of them is one that logging knows: such a one would have been refused."""
    for visit in run.visits:
        [event] = run.of(visit)
        assert event.keys() >= KEYS
        assert event.keys() <= KEYS | SOMETIMES | ADDED


def test_what_the_request_bound_is_on_it_and_nothing_of_other_requests(run: Run) -> None:
    """Another one was in flight all the while, and had bound the same names."""
    for visit in run.visits:
        [event] = run.of(visit)
        if run.setup.tenant:
            assert event["tenant"] == TENANT
        assert OTHER not in json.dumps(event)


def test_what_blocks_at_the_applications_own_end_is_logged_too(run: Run) -> None:
    [closing] = [event for event in run.named(STALL) if event["phase"] == "shutdown"]
    assert closing["culprit"] == culprit("closing")
    assert closing["level"] == "warning"


def test_it_begins_with_what_is_watched_and_ends_with_what_was_seen(run: Run) -> None:
    """Also where uvicorn, at the end of its good order, dies of the signal that stopped it."""
    [guard] = run.named(GUARD)
    assert run.events[0] == guard
    assert (guard["level"], guard["budget_ms"]) == ("info", 100.0)
    [summary] = run.named(SUMMARY)
    assert run.events[-1] == summary
    assert summary["level"] == "info"
    assert summary["stalls"] == len(run.named(STALL))
    assert [each.partition(": ")[0] for each in summary["worst"]] == [
        *(culprit("blocking"), culprit("closing"))
    ]
