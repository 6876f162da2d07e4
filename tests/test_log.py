"""A stall is logged where the application's own log goes, as one flat event that fools nobody."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextvars import Context, ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from loopguard.record import Holder, Severity
from loopguard.tell.log import log_event, log_stall, stall_fields
from loopguard.tell.printable import printable
from loopguard.tell.resource import resource_attributes
from tests.records import CULPRIT, SPAN_ID, STALL, TRACE_ID, make_report, make_stall

pytestmark = pytest.mark.core

ROOT = Path(__file__).parent.parent
HOSTILE = "a\nb\r\x1b[31m\u202e\u2028\x00\x85\udce9c"
HARMLESS = r"a\nb\r\x1b[31m\u202e\u2028\x00\x85\udce9c"


@pytest.fixture(autouse=True)
def fresh_structlog() -> Iterator[None]:
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


class Records(logging.Handler):
    """Keeps what the logging module gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record)


@pytest.fixture
def handler() -> Iterator[Records]:
    """A user's handler on logger `loopguard`."""
    logger, handler = logging.getLogger("loopguard"), Records()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def json_log(*processors: Any, **options: Any) -> io.StringIO:
    """Configure structlog to write JSON, as an application would, and give what it writes to."""
    out = io.StringIO()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            *processors,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(out),
        **options,
    )
    return out


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


class TestFields:
    """What is in the event."""

    def test_the_keys_are_flat_and_those_without_a_value_are_left_out(self) -> None:
        out = json_log()
        log_stall(make_report())
        assert lines(out) == [
            {
                "event": "event_loop.stall",
                "level": "warning",
                "stall_id": STALL.id,
                "cause": "blocking_call",
                "duration_ms": 400.0,
                "budget_ms": 100.0,
                "culprit": "app/users.py:42 in list_users",
                "code": "time.sleep(0.4)",
                "call": "time.sleep",
                "waited_on": "clock_nanosleep",
                "advice": "await asyncio.sleep(…) instead",
                "method": "GET",
                "route": "/v1/users/{id}",
                "phase": "serving",
                "task": "Task-7",
                "coroutine": "RequestResponseCycle.run_asgi",
                "trace_id": TRACE_ID,
                "span_id": SPAN_ID,
                "cpu_ms": 12.3,
                "gc_ms": 0.0,
                "samples": 5,
                "confidence": 1.0,
                "fingerprint": "c0ffee",
                "suppressed": 0,
                "pid": 4711,
                "thread_name": "MainThread",
                "frames": ["[2 library frames left out]", "app/users.py:42 in list_users"],
            }
        ]

    @pytest.mark.parametrize(
        "culprit, text",
        [(CULPRIT, "app/users.py:42 in list_users (thread pool-1)"), (None, "thread pool-1")],
    )
    def test_the_holder_is_told_like_a_culprit_with_its_thread(
        self, culprit: Any, text: str
    ) -> None:
        holder = Holder(thread="pool-1", native_id=12, culprit=culprit, stack=())
        assert stall_fields(make_stall(holder=holder))["holder"] == text

    def test_no_key_is_one_that_logging_or_structlog_treat_apart(self) -> None:
        taken = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
        apart = {
            *("event", "level", "timestamp", "logger", "logger_name", "positional_args"),
            *("stack", "stack_info", "stacklevel", "exception", "exc_info", "_record"),
        }
        assert not (taken | apart) & stall_fields(STALL).keys()

    def test_a_stack_however_deep_is_a_bounded_list(self) -> None:
        deep = tuple(replace(CULPRIT, line=number) for number in range(3000))
        frames = stall_fields(make_stall(stack=deep))["frames"]
        assert isinstance(frames, list)
        assert len(frames) == 40
        assert frames[-1] == str(deep[-1])

    def test_what_the_limits_keep_out_is_not_logged(self) -> None:
        out = json_log()
        log_stall(make_report(allowed=False))
        assert lines(out) == []

    @pytest.mark.parametrize("severity", ["info", "warning", "error"])
    def test_its_level_is_its_severity(self, severity: Severity) -> None:
        out = json_log()
        log_stall(make_report(make_stall(severity=severity)))
        assert lines(out)[0]["level"] == severity


class TestUsersStructlog:
    """structlog is configured: the event takes the way of all other events of the application."""

    def test_the_console_gets_one_line(self) -> None:
        out = io.StringIO()
        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.dev.ConsoleRenderer(colors=False),
            ],
            logger_factory=structlog.PrintLoggerFactory(out),
        )
        log_stall(make_report(make_stall(task=HOSTILE, coroutine=HOSTILE)))
        (line,) = out.getvalue().splitlines()
        assert line.startswith("[warning  ] event_loop.stall ")
        assert "app/users.py:42 in list_users" in line
        assert line.isprintable()

    def test_contextvars_of_the_blocked_code_are_on_it(self) -> None:
        out = json_log()
        blocked = Context()
        blocked.run(structlog.contextvars.bind_contextvars, tenant="acme", phase="of the moon")
        log_stall(make_report(context=blocked))
        (line,) = lines(out)
        assert line["tenant"] == "acme"
        assert line["phase"] == "serving", "the stall's own keys win"

    def test_what_a_processor_does_to_contextvars_stays_there(self) -> None:
        """Other sinks look into the same context."""
        variable: ContextVar[str] = ContextVar("variable")

        def meddle(_: Any, __: str, event: Any) -> Any:
            variable.set("meddled")
            return event

        out = json_log(meddle)
        blocked = Context()
        log_stall(make_report(context=blocked))
        assert len(lines(out)) == 1
        assert variable not in blocked

    @pytest.mark.parametrize(
        "wrapper", [structlog.stdlib.BoundLogger, structlog.BoundLogger, None], ids=repr
    )
    def test_logging_gets_the_keys_as_attributes(self, handler: Records, wrapper: Any) -> None:
        structlog.configure(
            processors=[
                structlog.stdlib.PositionalArgumentsFormatter(),
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.processors.StackInfoRenderer(),
                structlog.processors.format_exc_info,
                structlog.stdlib.render_to_log_kwargs,
            ],
            wrapper_class=wrapper,
            logger_factory=structlog.stdlib.LoggerFactory(),
        )
        log_stall(make_report())
        (record,) = handler.seen
        assert (record.name, record.levelname) == ("loopguard", "WARNING")
        assert record.getMessage() == "event_loop.stall"
        assert vars(record)["culprit"] == "app/users.py:42 in list_users"
        assert vars(record)["duration_ms"] == 400.0

    def test_a_formatter_of_structlog_renders_it(self, handler: Records) -> None:
        out = io.StringIO()
        stream = logging.StreamHandler(out)
        stream.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                processors=[
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    structlog.processors.JSONRenderer(),
                ]
            )
        )
        structlog.configure(
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.stdlib.add_log_level,
                structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
            ],
            wrapper_class=structlog.stdlib.BoundLogger,
            logger_factory=structlog.stdlib.LoggerFactory(),
        )
        logging.getLogger("loopguard").addHandler(stream)
        try:
            log_stall(make_report())
        finally:
            logging.getLogger("loopguard").removeHandler(stream)
        assert lines(out)[0]["call"] == "time.sleep"

    @pytest.mark.parametrize(
        "renderer",
        [
            structlog.processors.LogfmtRenderer(),
            structlog.processors.KeyValueRenderer(sort_keys=True),
        ],
    )
    def test_other_renderers_take_it_too(self, renderer: Any) -> None:
        out = io.StringIO()
        structlog.configure([renderer], logger_factory=structlog.PrintLoggerFactory(out))
        log_stall(make_report(make_stall(task=HOSTILE)))
        (line,) = out.getvalue().splitlines()
        assert "stall_id=" in line
        assert line.isprintable()

    def test_a_filter_by_level_holds(self) -> None:
        out = json_log(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
        log_stall(make_report())
        log_stall(make_report(make_stall(severity="error")))
        assert [line["level"] for line in lines(out)] == ["error"]

    def test_a_configuration_that_comes_late_holds_from_then_on(self, handler: Records) -> None:
        log_stall(make_report())
        out = json_log(cache_logger_on_first_use=True)
        log_stall(make_report())
        later = json_log()
        log_stall(make_report())
        assert (len(handler.seen), len(lines(out)), len(lines(later))) == (1, 1, 1)

    @pytest.mark.parametrize("in_loop", [False, True], ids=["other thread", "in the loop"])
    @pytest.mark.filterwarnings("ignore:.*AsyncBoundLogger.*:DeprecationWarning")
    def test_an_async_bound_logger_loses_nothing(self, handler: Records, in_loop: bool) -> None:
        structlog.configure(
            processors=[structlog.stdlib.add_log_level, structlog.stdlib.render_to_log_kwargs],
            wrapper_class=structlog.stdlib.AsyncBoundLogger,
            logger_factory=structlog.stdlib.LoggerFactory(),
        )

        async def log() -> None:
            log_stall(make_report())

        if in_loop:
            asyncio.run(log())
        else:
            log_stall(make_report())
        (record,) = handler.seen
        assert vars(record)["call"] == "time.sleep"

    def test_where_the_innermost_logger_is_async_logging_gets_it(self, handler: Records) -> None:
        class Async:
            async def warning(self, *_: object, **__: object) -> None:
                raise AssertionError

        structlog.configure(
            wrapper_class=structlog.BoundLogger, logger_factory=lambda *_: Async(), processors=[]
        )
        log_stall(make_report())
        assert [record.getMessage() for record in handler.seen] == ["event_loop.stall"]

    def test_a_logger_factory_need_not_take_a_name(self, handler: Records) -> None:
        structlog.configure(
            processors=[structlog.stdlib.render_to_log_kwargs],
            logger_factory=lambda: logging.getLogger("loopguard.of.app"),
        )
        log_stall(make_report())
        assert [record.name for record in handler.seen] == ["loopguard.of.app"]

    def test_capture_logs_of_structlog_sees_it(self) -> None:
        with structlog.testing.capture_logs() as events:
            json_log()
            log_stall(make_report())
        assert events == []
        json_log()
        with structlog.testing.capture_logs() as events:
            log_stall(make_report())
        assert [event["event"] for event in events] == ["event_loop.stall"]


class TestUsersLogging:
    """Only logging is configured: logger `loopguard`, with the keys as `extra`."""

    def test_the_keys_are_attributes_of_the_record(self, handler: Records) -> None:
        log_stall(make_report(make_stall(severity="error")))
        (record,) = handler.seen
        assert (record.name, record.levelname) == ("loopguard", "ERROR")
        assert record.getMessage() == "event_loop.stall"
        assert vars(record)["culprit"] == "app/users.py:42 in list_users"
        assert vars(record)["frames"][-1] == "app/users.py:42 in list_users"
        assert not hasattr(record, "holder")

    def test_a_handler_of_the_root_logger_is_enough(self, caplog: pytest.LogCaptureFixture) -> None:
        log_stall(make_report())
        assert [record.name for record in caplog.records] == ["loopguard"]

    @pytest.mark.parametrize("to_structlog", [False, True], ids=["logging", "structlog"])
    def test_a_log_that_is_configured_late_does_not_silence_it(
        self, handler: Records, to_structlog: bool
    ) -> None:
        """By default, logging disables all loggers that it knew before and is not told of."""
        if to_structlog:
            structlog.configure(
                processors=[
                    structlog.stdlib.filter_by_level,
                    structlog.stdlib.render_to_log_kwargs,
                ],
                wrapper_class=structlog.stdlib.BoundLogger,
                logger_factory=structlog.stdlib.LoggerFactory(),
            )
        logging.getLogger("loopguard").disabled = True  # as dictConfig() leaves it
        log_stall(make_report())
        assert [record.getMessage() for record in handler.seen] == ["event_loop.stall"]

    def test_it_is_logged_in_the_context_of_the_blocked_code(self, handler: Records) -> None:
        request_id: ContextVar[str] = ContextVar("request_id", default="-")
        seen = list[str]()

        def note(_: logging.LogRecord) -> bool:
            seen.append(request_id.get())
            return True

        handler.addFilter(note)
        blocked = Context()
        blocked.run(request_id.set, "42")
        log_stall(make_report(context=blocked))
        assert seen == ["42"]

    def test_hostile_names_are_harmless_in_it(self, handler: Records) -> None:
        log_stall(make_report(make_stall(task=HOSTILE, culprit=replace(CULPRIT, file=HOSTILE))))
        values = vars(handler.seen[0])
        assert values["task"] == HARMLESS
        assert values["culprit"] == f"{HARMLESS}:42 in list_users"


class TestOwnEvents:
    """What loopguard says of itself goes the same way."""

    def test_the_given_fields_are_on_it(self) -> None:
        out = json_log()
        log_event(
            "info",
            "event_loop.guard",
            {
                "budget_ms": 100.0,
                "evidence": {"syscall": True, "stolen\n": None},
                "missing": ("probe", HOSTILE),
                "nothing": None,
                "odd": float("nan"),
                "path": Path("a\nb"),
            },
        )
        assert lines(out) == [
            {
                "event": "event_loop.guard",
                "level": "info",
                "budget_ms": 100.0,
                "evidence": {"syscall": True, r"stolen\n": None},
                "missing": ["probe", HARMLESS],
                "path": r"a\nb",
            }
        ]


def on_stderr(code: str, **environ: str) -> list[str]:
    """What a process of its own writes to stderr: pytest puts handlers on the root logger of this one."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env={**os.environ, **environ},
        stderr=subprocess.PIPE,
        check=True,
    )
    return run.stderr.decode().splitlines()


class TestNobodysLog:
    """Nothing is configured: a line of JSON on stderr."""

    CODE = f"""
        import logging
        from loopguard.tell.log import log_event, log_stall
        from tests.records import make_report, make_stall
        log_stall(make_report(make_stall(task={HOSTILE!r}, coroutine="größe")))
        log_event("info", "event_loop.guard", {{"budget_ms": 100.0}})
        assert not logging.getLogger().handlers
        assert not logging.getLogger("loopguard").handlers
    """

    def test_each_event_is_one_line_with_its_time_and_level(self) -> None:
        stall, guard = map(json.loads, on_stderr(self.CODE))
        assert (stall["event"], stall["level"]) == ("event_loop.stall", "warning")
        assert stall["timestamp"].endswith("+00:00")
        assert stall["culprit"] == "app/users.py:42 in list_users"
        assert stall["task"] == HARMLESS
        assert (guard["event"], guard["level"]) == ("event_loop.guard", "info")
        assert "service.name" not in guard

    def test_it_is_json_also_where_stderr_can_only_write_ascii(self) -> None:
        stall, _ = map(json.loads, on_stderr(self.CODE, PYTHONIOENCODING="ascii"))
        assert stall["coroutine"] == "größe"

    def test_it_says_which_service_it_was_where_opentelemetry_is_told(self) -> None:
        events = on_stderr(
            self.CODE,
            OTEL_SERVICE_NAME="shop",
            OTEL_RESOURCE_ATTRIBUTES="service.instance.id=i%2C7,k8s.pod.name=shop-1,secret=x",
        )
        for event in map(json.loads, events):
            assert event["service.name"] == "shop"
            assert event["service.instance.id"] == "i,7"
            assert event["k8s.pod.name"] == "shop-1"
            assert "secret" not in event

    def test_without_a_stderr_nothing_is_written_and_nothing_breaks(self) -> None:
        assert on_stderr("import sys; sys.stderr = None\n" + textwrap.dedent(self.CODE)) == []


@pytest.mark.parametrize(
    "text, escaped",
    [
        (HOSTILE, HARMLESS),
        ("größe ✓ 漢字 C:\\temp", "größe ✓ 漢字 C:\\temp"),
        ("\u2066x\u2069\u200b\t", r"\u2066x\u2069\u200b\t"),
        ("", ""),
    ],
)
def test_printable_escapes_what_does_not_print_and_nothing_else(text: str, escaped: str) -> None:
    assert printable(text) == escaped
    assert printable(text).isprintable()


@pytest.mark.parametrize(
    "variables, attributes",
    [
        ({}, {}),
        ({"OTEL_SERVICE_NAME": "a"}, {"service.name": "a"}),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=b"}, {"service.name": "b"}),
        (
            {"OTEL_SERVICE_NAME": "a", "OTEL_RESOURCE_ATTRIBUTES": "service.name=b"},
            {"service.name": "a"},
        ),
        ({"OTEL_RESOURCE_ATTRIBUTES": " x = 1%3D2 ,,broken,=y,z="}, {"x": "1=2"}),
    ],
)
def test_resource_attributes_are_read_as_opentelemetry_says(
    variables: dict[str, str], attributes: dict[str, str]
) -> None:
    assert resource_attributes(variables) == attributes
