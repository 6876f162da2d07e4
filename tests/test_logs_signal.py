"""The Logs signal of OpenTelemetry: exactly one record of each event, however the application logs."""

from __future__ import annotations

import logging
import logging.handlers
import queue
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextvars import Context
from pathlib import Path
from typing import Any

import pytest
import structlog

pytest.importorskip("opentelemetry.sdk._logs", reason="needs the extra `otlp`")

from opentelemetry import _logs, trace
from opentelemetry.context import attach
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider

from loopguard.tell.log import log_event, log_stall, stall_fields
from tests.records import STALL, make_report, make_stall

ROOT = Path(__file__).resolve().parents[1]


def records(exported: InMemoryLogRecordExporter) -> list[Any]:
    return list(exported.get_finished_logs())


@pytest.fixture
def exported() -> InMemoryLogRecordExporter:
    return InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]


@pytest.fixture
def provider(exported: InMemoryLogRecordExporter) -> Iterator[LoggerProvider]:
    made = LoggerProvider(shutdown_on_exit=False)
    made.add_log_record_processor(SimpleLogRecordProcessor(exported))
    yield made
    made.shutdown()


@pytest.fixture
def set_globally(provider: LoggerProvider, monkeypatch: pytest.MonkeyPatch) -> LoggerProvider:
    """The API lets it be set once in a process; each test has its own."""
    monkeypatch.setattr(_logs._internal, "_LOGGER_PROVIDER", provider)
    return provider


@pytest.fixture(autouse=True)
def nobodys_log() -> Iterator[None]:
    """As it was, whatever a test does to it."""
    root, ours = logging.getLogger(), logging.getLogger("loopguard")
    kept = root.handlers.copy()
    structlog.reset_defaults()
    yield
    root.handlers[:] = kept
    ours.handlers.clear()
    ours.setLevel(logging.NOTSET)
    ours.propagate = True
    structlog.reset_defaults()


def handler_of(provider: LoggerProvider, kind: str = "sdk") -> logging.Handler:
    if kind == "contrib":
        contrib = pytest.importorskip("opentelemetry.instrumentation.logging.handler")
        made: logging.Handler = contrib.LoggingHandler(logger_provider=provider)
        return made
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # contrib's is its successor
        return LoggingHandler(logger_provider=provider)


def no_structlog() -> None:
    """As it is when nobody has configured it."""


def structlog_prints() -> None:
    structlog.configure(
        [structlog.processors.JSONRenderer()], logger_factory=structlog.PrintLoggerFactory()
    )


def structlog_to_logging() -> None:
    structlog.configure(
        [structlog.stdlib.render_to_log_kwargs],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


CONFIGURED = [no_structlog, structlog_prints, structlog_to_logging]


@pytest.mark.parametrize("configure", CONFIGURED)
@pytest.mark.parametrize("where", ["nowhere", "another", "root", "loopguard"])
@pytest.mark.parametrize("kind", ["sdk", "contrib"])
def test_with_a_provider_there_is_exactly_one_record(
    configure: Callable[[], None],
    where: str,
    kind: str,
    set_globally: LoggerProvider,
    exported: InMemoryLogRecordExporter,
) -> None:
    configure()
    handler = logging.NullHandler() if where == "another" else handler_of(set_globally, kind)
    if where == "nowhere":
        logging.getLogger("loopguard").propagate = False  # pytest's own are on the root logger
    else:
        logging.getLogger("" if where == "root" else "loopguard").addHandler(handler)
    log_stall(make_report())
    [one] = records(exported)
    assert (one.log_record.body, one.log_record.severity_text) == ("event_loop.stall", "WARN")
    assert one.log_record.attributes["stall_id"] == STALL.id


@pytest.mark.parametrize("configure", CONFIGURED)
@pytest.mark.parametrize("handled", [False, True], ids=["no handler", "handler"])
def test_without_a_provider_there_is_one_where_the_log_comes_to_a_handler_and_else_none(
    configure: Callable[[], None],
    handled: bool,
    provider: LoggerProvider,
    exported: InMemoryLogRecordExporter,
) -> None:
    configure()
    if handled:
        logging.getLogger().addHandler(handler_of(provider))
    log_stall(make_report())
    to_logging = configure is not structlog_prints
    assert len(records(exported)) == (1 if handled and to_logging else 0)


def behind_a_queue(handler: logging.Handler) -> Any:
    """As `dictConfig` ties the two together since 3.12."""
    made: Any = logging.handlers.QueueHandler(queue.Queue())
    made.listener = logging.handlers.QueueListener(made.queue, handler)
    made.listener.start()
    return made


def behind_a_buffer(handler: logging.Handler) -> logging.Handler:
    return logging.handlers.MemoryHandler(1, target=handler)


@pytest.mark.parametrize("wrap", [behind_a_queue, behind_a_buffer])
def test_a_handler_behind_another_is_found(
    wrap: Callable[[logging.Handler], Any],
    set_globally: LoggerProvider,
    exported: InMemoryLogRecordExporter,
) -> None:
    outer = wrap(handler_of(set_globally))
    logging.getLogger().addHandler(outer)
    log_stall(make_report())
    if wrap is behind_a_queue:
        outer.listener.stop()
    assert len(records(exported)) == 1
    outer.close()


def test_a_handler_that_the_log_does_not_reach_is_none(
    set_globally: LoggerProvider, exported: InMemoryLogRecordExporter
) -> None:
    logging.getLogger().addHandler(handler_of(set_globally))
    logging.getLogger("loopguard").propagate = False
    logging.getLogger("loopguard").addHandler(logging.NullHandler())
    log_stall(make_report())
    assert len(records(exported)) == 1


def test_whom_the_level_silences_is_silent_here_too(
    set_globally: LoggerProvider, exported: InMemoryLogRecordExporter
) -> None:
    logging.getLogger("loopguard").addHandler(logging.NullHandler())
    logging.getLogger("loopguard").setLevel(logging.ERROR)
    log_stall(make_report())
    assert records(exported) == []
    log_stall(make_report(make_stall(severity="error")))
    assert len(records(exported)) == 1


def test_the_record_is_the_event_of_the_log_in_the_trace_of_the_blocked_code(
    set_globally: LoggerProvider, exported: InMemoryLogRecordExporter
) -> None:
    span = TracerProvider(shutdown_on_exit=False).get_tracer("app").start_span("GET /")
    blocked = Context()
    blocked.run(attach, trace.set_span_in_context(span))
    log_stall(make_report(make_stall(severity="error"), context=blocked))
    [one] = records(exported)
    record = one.log_record
    fields = {key: value for key, value in stall_fields(STALL).items() if value is not None}
    assert dict(record.attributes) == {
        key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
    }
    assert (record.event_name, record.body) == ("event_loop.stall", "event_loop.stall")
    assert (record.severity_text, record.severity_number.value) == ("ERROR", 17)
    assert (record.trace_id, record.span_id) == (
        span.get_span_context().trace_id,
        span.get_span_context().span_id,
    )
    assert one.instrumentation_scope.name == "loopguard"


def test_what_loopguard_says_of_itself_is_there_once_too(
    set_globally: LoggerProvider, exported: InMemoryLogRecordExporter
) -> None:
    logging.getLogger("loopguard").setLevel(logging.INFO)
    log_event("info", "event_loop.guard", {"budget_ms": 100.0, "evidence": ["probe"]})
    [one] = records(exported)
    assert (one.log_record.body, one.log_record.severity_text) == ("event_loop.guard", "INFO")
    assert one.log_record.attributes["budget_ms"] == 100.0


WITHOUT_THE_SDK = """
import sys
from loopguard.tell.log import log_stall
from tests.records import make_report
log_stall(make_report())
assert not [name for name in sys.modules if name.startswith("opentelemetry.sdk")]
"""


def test_without_an_sdk_nothing_is_imported_or_missed() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_THE_SDK],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1
