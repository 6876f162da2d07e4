"""What the demo shows: the log as it comes, then a table of what was found and where its traces are."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

import structlog
from rich.console import Console
from rich.text import Text
from structlog.typing import EventDict, WrappedLogger

from loopguard.record import Stall
from loopguard.tell.printable import printable

# What the log has for machines and for those who must dig; the records have it all.
_LEFT_OUT = {
    *(
        "stall_id",
        "fingerprint",
        "frames",
        "samples",
        "confidence",
        "span_id",
        "budget_ms",
        "gc_ms",
    ),
    *("pid", "thread_name", "task", "coroutine", "phase"),
}

_INDENT = " " * 16


def show_log(stream: TextIO | None = None) -> None:
    """Configure structlog as an application would for a terminal; loopguard uses what it finds."""
    stream = stream or sys.stderr
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper("%H:%M:%S", utc=False),
            _shorten,
            structlog.dev.ConsoleRenderer(
                colors=screen(stream).color_system is not None, sort_keys=False
            ),
        ],
        logger_factory=structlog.PrintLoggerFactory(stream),
    )


def _shorten(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {key: value for key, value in event.items() if key not in _LEFT_OUT}


def screen(stream: TextIO | None = None) -> Console:
    """Where the demo prints: colours as the terminal, NO_COLOR and FORCE_COLOR have it, and lines never cut."""
    return Console(
        file=stream or sys.stdout,
        # Under NO_COLOR rich would still print bold.
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
    )


@dataclass(frozen=True, slots=True)
class Finding:
    """All stalls of one fingerprint; `worst` is the longest of them."""

    worst: Stall
    count: int


def findings(stalls: Iterable[Stall]) -> list[Finding]:
    """Group by fingerprint, the longest first."""
    groups: dict[str, list[Stall]] = {}
    for stall in stalls:
        groups.setdefault(stall.fingerprint, []).append(stall)
    found = [
        Finding(max(group, key=lambda stall: stall.duration), len(group))
        for group in groups.values()
    ]
    return sorted(found, key=lambda finding: -finding.worst.duration)


def show_findings(console: Console, stalls: Sequence[Stall]) -> None:
    """Print the table. File and line stand on a line of their own, whole, however narrow the terminal."""
    blamed = [stall for stall in stalls if stall.cause != "not_scheduled"]
    if not blamed:
        console.print("\nNothing held the event loop for longer than its budget.")
    else:
        console.print(Text("\nlongest  count  cause          route", style="bold"))
    for finding in findings(blamed):
        console.print(_row(finding))
    if len(blamed) < len(stalls):
        console.print(
            f"\nThe system did not run the process in time, {len(stalls) - len(blamed)} × (no code is to blame)."
        )


def _row(finding: Finding) -> Text:
    stall = finding.worst
    row = Text(f"{_milliseconds(stall)}{finding.count:7}  {stall.cause:13}  ")
    row.append(_route(stall), style="cyan")
    if stall.culprit:
        where = f"{stall.culprit.file}:{stall.culprit.line}"
        row.append(f"\n{_INDENT}").append(printable(where), style="bold red")
        row.append(f" in {printable(stall.culprit.function)}")
    else:
        row.append(f"\n{_INDENT}which line it was could not be seen")
    if stall.call:
        row.append(f"\n{_INDENT}calls {printable(stall.call)}")
    return row


def _route(stall: Stall) -> str:
    if stall.request is None:
        return "-"
    return printable(f"{stall.request.method} {stall.request.route or '-'}")


def show_traces(console: Console, stalls: Iterable[Stall], template: str) -> None:
    """Print where the trace of each stall is to be seen."""
    console.print(Text("\ntraces", style="bold"))
    for stall in stalls:
        if stall.trace_id:
            console.print(f"{_milliseconds(stall)}  {stall.cause}  {_route(stall)}")
            console.print(f"         {template.replace('{trace_id}', stall.trace_id)}")


def _milliseconds(stall: Stall) -> str:
    return f"{stall.duration * 1000:4.0f} ms"
