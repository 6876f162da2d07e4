"""A formatter that shows all that a log record was given, as people write one."""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar

TENANT: ContextVar[str] = ContextVar("tenant", default="nobody")

_OF_EVERY_RECORD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class ExtraFormatter(logging.Formatter):
    """Shows a record with what was given as `extra`, and the tenant that is bound, as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        extra = {key: value for key, value in vars(record).items() if key not in _OF_EVERY_RECORD}
        shown = {"event": record.getMessage(), "level": record.levelname.lower()}
        return json.dumps({"tenant": TENANT.get(), "logger": record.name, **extra, **shown})
