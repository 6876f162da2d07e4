"""An app whose log is set up in one of the common ways: `REAL_LOG` says which."""

from __future__ import annotations

import asyncio
import json
import logging
import logging.config
import os
import sys
import time
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider

import loopguard
from tests.real.log_format import TENANT, ExtraFormatter


def handler() -> logging.Handler:
    made = logging.StreamHandler(sys.stdout)
    made.setFormatter(ExtraFormatter())
    return made


def logging_config() -> dict[str, Any]:
    """Disables all loggers that it does not name, as is the default: hence uvicorn's, which say the port."""
    return {
        "version": 1,
        "disable_existing_loggers": True,
        "formatters": {"extra": {"()": "tests.real.log_format.ExtraFormatter"}},
        "handlers": {"out": {"class": "logging.StreamHandler", "formatter": "extra"}},
        "root": {"level": "INFO", "handlers": ["out"]},
        "loggers": {"uvicorn": {"level": "INFO", "propagate": True}},
    }


def by_structlog(*processors: Any, to_logging: bool = False, **options: Any) -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            *processors,
        ],
        logger_factory=structlog.stdlib.LoggerFactory() if to_logging else None,
        **options,
    )


def root() -> None:
    logging.basicConfig(level=logging.INFO, handlers=[handler()])


def structlog_console() -> None:
    by_structlog(structlog.dev.ConsoleRenderer(colors=False))


def structlog_json() -> None:
    by_structlog(
        structlog.processors.JSONRenderer(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )


def structlog_log_kwargs() -> None:
    root()
    by_structlog(
        structlog.stdlib.render_to_log_kwargs,
        wrapper_class=structlog.stdlib.BoundLogger,
        to_logging=True,
    )


def structlog_formatter() -> None:
    made = logging.StreamHandler(sys.stdout)
    made.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ]
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[made])
    by_structlog(
        structlog.stdlib.filter_by_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        wrapper_class=structlog.stdlib.BoundLogger,
        to_logging=True,
    )


def structlog_async() -> None:
    root()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        wrapper = structlog.stdlib.AsyncBoundLogger
    by_structlog(structlog.stdlib.render_to_log_kwargs, wrapper_class=wrapper, to_logging=True)


def logging_loopguard() -> None:
    logger = logging.getLogger("loopguard")
    logger.addHandler(handler())
    logger.setLevel(logging.INFO)


def logging_dict_config() -> None:
    logging.config.dictConfig(logging_config())


def opentelemetry() -> None:
    from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler, ReadableLogRecord, export

    class Printer(export.LogRecordExporter):
        def export(self, batch: Sequence[ReadableLogRecord]) -> export.LogRecordExportResult:
            for each in batch:
                record = each.log_record
                shown = {
                    "event": record.body,
                    "level": str(record.severity_text).lower().replace("warn", "warning"),
                    "otel_trace_id": trace.format_trace_id(record.trace_id or 0),
                    "otel_span_id": trace.format_span_id(record.span_id or 0),
                }
                print(json.dumps({**(record.attributes or {}), **shown}, default=list), flush=True)
            return export.LogRecordExportResult.SUCCESS

        def force_flush(self, timeout_millis: int = 30_000) -> bool:
            return True

        def shutdown(self) -> None: ...

    provider = LoggerProvider()
    provider.add_log_record_processor(export.SimpleLogRecordProcessor(Printer()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its successor is another package
        made = LoggingHandler(logger_provider=provider)
    logging.getLogger().addHandler(made)
    logging.getLogger().setLevel(logging.INFO)


def nothing() -> None:
    pass


BEFORE: dict[str, Callable[[], None]] = {
    "structlog_console": structlog_console,
    "structlog_json": structlog_json,
    "structlog_log_kwargs": structlog_log_kwargs,
    "structlog_formatter": structlog_formatter,
    "structlog_async": structlog_async,
    "logging_root": root,
    "logging_loopguard": logging_loopguard,
    "logging_dict_config": logging_dict_config,
    "opentelemetry": opentelemetry,
}
AFTER: dict[str, Callable[[], None]] = {"logging_dict_config_late": logging_dict_config}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    if os.environ["REAL_INSTALL"] == "lifespan":
        loopguard.install(app)
    yield
    time.sleep(0.3)  # blocks closing: time.sleep, blocking_call


SETUP = os.environ["REAL_LOG"]
BEFORE.get(SETUP, nothing)()
trace.set_tracer_provider(TracerProvider())
app = FastAPI(lifespan=lifespan)
FastAPIInstrumentor.instrument_app(app)


def bind(tenant: str) -> None:
    TENANT.set(tenant)
    structlog.contextvars.bind_contextvars(tenant=tenant)


def active() -> dict[str, str]:
    found = trace.get_current_span().get_span_context()
    return {
        "trace_id": trace.format_trace_id(found.trace_id),
        "span_id": trace.format_span_id(found.span_id),
    }


@app.get("/blocking/{tenant}")
async def blocking(tenant: str, seconds: float) -> dict[str, str]:
    bind(tenant)
    time.sleep(seconds)  # blocks blocking: time.sleep, blocking_call
    return active()


@app.get("/waiting/{tenant}")
async def waiting(tenant: str, seconds: float) -> dict[str, str]:
    """Is in flight while others block."""
    bind(tenant)
    await asyncio.sleep(seconds)
    return active()


if os.environ["REAL_INSTALL"] == "module":
    loopguard.install(app).flush()  # the first event is out before the log is set up late
AFTER.get(SETUP, nothing)()
