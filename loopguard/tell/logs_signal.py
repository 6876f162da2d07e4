"""The Logs signal of OpenTelemetry, for events that the application's own log does not bring there."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

from opentelemetry import _logs
from opentelemetry._logs import SeverityNumber

from loopguard.record import Severity
from loopguard.tell.identity import own_version

SCOPE = "loopguard"

_SEVERITIES = {
    "info": (SeverityNumber.INFO, "INFO"),
    "warning": (SeverityNumber.WARN, "WARN"),
    "error": (SeverityNumber.ERROR, "ERROR"),
}
# Before 1.38 an SDK took only records of its own kind, of which the API alone knows nothing.
_TAKES_FIELDS = "body" in inspect.signature(_logs.Logger.emit).parameters


def emit_unless_logged(
    level: Severity, event: str, values: Mapping[str, object], logger: object
) -> None:
    """Emit an event that was written by `logger`, unless that has brought it to OpenTelemetry already.

    Where it is of the logging module and its level keeps the event out, nobody wants it. Without a logger provider
    nothing comes of it, nor with an API before 1.38. In the current context: its span is on the record.
    """
    own = getattr(logger, "logger", logger)  # a LoggerAdapter's
    if isinstance(own, logging.Logger) and (
        not own.isEnabledFor(getattr(logging, level.upper())) or _is_exported(own)
    ):
        return
    if _TAKES_FIELDS:
        number, text = _SEVERITIES[level]
        _logs.get_logger(SCOPE, own_version() or "").emit(
            timestamp=time.time_ns(),
            severity_number=number,
            severity_text=text,
            body=event,
            attributes=dict[str, Any](values),
            event_name=event,
        )


def _is_exported(logger: logging.Logger) -> bool:
    """Whether what it logs comes to a handler of OpenTelemetry's: the SDK's, or its successor in contrib."""
    return any(
        kind.__name__ == "LoggingHandler" and kind.__module__.startswith("opentelemetry.")
        for handler in _handlers(logger)
        for kind in type(handler).__mro__
    )


def _handlers(logger: logging.Logger) -> Iterator[Any]:
    """All that hear of what it logs, and those behind them: of a queue's listener, of a buffer."""
    waiting: list[Any] = []
    above: logging.Logger | None = logger
    while above is not None:
        waiting += above.handlers
        above = above.parent if above.propagate else None
    seen: set[int] = set()
    while waiting:
        handler = waiting.pop()
        if id(handler) not in seen:
            seen.add(id(handler))
            yield handler
            listener = getattr(handler, "listener", None)
            waiting += getattr(listener, "handlers", ())
            waiting += [each for each in [getattr(handler, "target", None)] if each is not None]
