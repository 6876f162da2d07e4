"""Attributes of OpenTelemetry spans: printable, and only those that have a value."""

from __future__ import annotations

import math
from collections.abc import Mapping

from loopguard.record import Stall
from loopguard.tell.printable import printable
from loopguard.tell.stacktrace import stack_lines

Attributes = dict[str, str | int | float]


def valued(values: Mapping[str, str | int | float | None]) -> Attributes:
    """Those that have a value: text printable, floats to the microsecond."""
    attributes: Attributes = {}
    for key, value in values.items():
        if isinstance(value, str):
            attributes[key] = printable(value)
        elif isinstance(value, int):
            attributes[key] = value
        elif value is not None and math.isfinite(value):
            attributes[key] = round(value, 6)
    return attributes


def culprit_of(stall: Stall) -> Attributes:
    """Where the line to blame stands; nothing where none is."""
    if stall.culprit is None:
        return {}
    module, function = stall.culprit.module, stall.culprit.function
    return valued(
        {
            "code.function.name": f"{module}.{function}" if module else function,
            "code.file.path": stall.culprit.file,
            "code.line.number": stall.culprit.line,
        }
    )


def stack_of(stall: Stall) -> Attributes:
    lines = stack_lines(stall.stack, stall.culprit)
    # Its lines are printable already; what parts them must stay.
    return {"code.stacktrace": "\n".join(lines)} if lines else {}
