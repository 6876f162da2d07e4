"""The log: each stall as one structured event, wherever the application's own log goes."""

from __future__ import annotations

import inspect
import logging
import math
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from loopguard.record import Holder, Severity, Stall
from loopguard.tell.jsonl import json_line
from loopguard.tell.logs_signal import emit_unless_logged
from loopguard.tell.printable import printable
from loopguard.tell.report import Report
from loopguard.tell.resource import resource_attributes
from loopguard.tell.stacktrace import stack_lines

LOGGER = "loopguard"
STALL = "event_loop.stall"
ONGOING = "event_loop.stall.ongoing"
FATAL = "event_loop.stall.fatal"

_LEVELS: dict[Severity, int] = {
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_IDENTITY = ("service.name", "service.instance.id", "k8s.pod.name")


def log_stall(report: Report) -> None:
    """A sink: log the stall, if the limits let it in, with the contextvars and the span of the blocked code.

    It runs in a further copy, so that a processor which binds or clears contextvars changes nothing for other sinks.
    """
    if report.allowed:
        stall = report.stall
        event = FATAL if report.fatal else ONGOING if stall.ongoing else STALL
        level = "error" if report.fatal else stall.severity
        report.context.copy().run(log_event, level, event, stall_fields(stall))


def stall_fields(stall: Stall) -> dict[str, object]:
    """The stall as flat keys, None where there is no value.

    None of them is an attribute of `logging.LogRecord`, or one that structlog's renderers treat apart.
    """
    culprit, request = stall.culprit, stall.request
    return {
        "stall_id": stall.id,
        "cause": stall.cause,
        "duration_ms": _milliseconds(stall.duration),
        "budget_ms": _milliseconds(stall.budget),
        "culprit": str(culprit) if culprit else None,
        "code": culprit.code if culprit else None,
        "call": stall.call,
        "waited_on": stall.waited_on,
        "holder": _holder(stall.holder) if stall.holder else None,
        "advice": stall.advice,
        "method": request.method if request else None,
        "route": request.route if request else None,
        "phase": stall.phase,
        "task": stall.task,
        "coroutine": stall.coroutine,
        "trace_id": stall.trace_id,
        "span_id": stall.span_id,
        "delayed_requests": stall.delayed_requests,
        "cpu_ms": _milliseconds(stall.cpu_time),
        "gc_ms": _milliseconds(stall.gc_time),
        "samples": stall.samples,
        "confidence": None if stall.confidence is None else round(stall.confidence, 3),
        "fingerprint": stall.fingerprint,
        "suppressed": stall.suppressed,
        "pid": stall.pid,
        "thread_name": stall.thread,
        "frames": stack_lines(stall.stack, culprit) or None,
    }


def log_event(level: Severity, event: str, fields: Mapping[str, object]) -> None:
    """Log one event: by the user's structlog, else by their logging, else as a line of JSON on stderr.

    Which one is decided anew for each event, for an application may configure its log after us; nothing is configured
    here. What does not come to OpenTelemetry that way is its Logs signal besides. Fields that are None are left out, and texts are made printable. No field may be called like an attribute of
    `logging.LogRecord`.
    """
    values = {key: _plain(value) for key, value in fields.items()}
    values = {key: value for key, value in values.items() if value is not None}
    logger = logging.getLogger(LOGGER)
    # `dictConfig` and `fileConfig` do this by default to every logger that they do not name. Nobody means ours by it:
    # whoever wants silence sets a level, or the option `log`.
    logger.disabled = False
    emit_unless_logged(level, event, values, _written(level, event, values, logger))


def _written(
    level: Severity, event: str, values: dict[str, object], logger: logging.Logger
) -> object:
    """Write the event; gives the logger that it came to in the end, None for stderr."""
    if _structlog_is_configured():
        innermost = _innermost_logger()
        if _by_structlog(innermost, level, event, values):
            return innermost
    if not logger.hasHandlers():
        _by_stderr(level, event, values)
        return None
    logger.log(_LEVELS[level], event, extra=values)
    return logger


def _structlog_is_configured() -> bool:
    """Whose user has not imported it has not configured it; to import it takes longer than all of this package."""
    structlog = sys.modules.get("structlog")
    return structlog is not None and bool(structlog.is_configured())


def _by_structlog(innermost: Any, level: Severity, event: str, values: dict[str, object]) -> bool:
    """Whether the user's own configuration took the event."""
    outcome = getattr(_bound_logger(innermost, level), level)(event, **values)
    if inspect.iscoroutine(outcome):
        # Their innermost logger is asynchronous: nothing was written yet, and there is no loop here to await it.
        outcome.close()
        return False
    return True


def _bound_logger(innermost: Any, level: Severity) -> Any:
    """The user's bound logger, or the synchronous kind where theirs has coroutines for methods.

    structlog's `AsyncBoundLogger` cannot even be made here, for it asks for the running loop; what it wraps (as its
    `sync_bl`) is what it is replaced by.
    """
    import structlog

    wrapper = structlog.get_config()["wrapper_class"]
    if inspect.iscoroutinefunction(getattr(wrapper, level, None)):
        wrapper = structlog.stdlib.BoundLogger
    return structlog.wrap_logger(innermost, wrapper_class=wrapper).bind()


def _innermost_logger() -> Any:
    import structlog

    factory = structlog.get_config()["logger_factory"]
    try:
        return factory(LOGGER)
    except TypeError:
        # A factory need not take a name: `lambda: logging.getLogger("app")`.
        return factory()


def _by_stderr(level: Severity, event: str, values: dict[str, object]) -> None:
    if sys.stderr is None:  # as under pythonw
        return
    known = resource_attributes(os.environ)
    line = json_line(
        {
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": level,
            "event": event,
            **{key: printable(known[key]) for key in _IDENTITY if key in known},
            **values,
        }
    )
    # In one piece, so that other threads' lines do not come between.
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _plain(value: object) -> object:
    """What every renderer can write: printable text, finite numbers, lists and dicts of them."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {printable(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return printable(str(value))


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def _holder(holder: Holder) -> str:
    thread = f"thread {holder.thread}"
    return f"{holder.culprit} ({thread})" if holder.culprit else thread
