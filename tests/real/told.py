"""A record of loopguard's, side by side with the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.real.marks import Mark, normal
from tests.real.server import Row, read_rows, wait_until

RECORD_SECONDS = 3.0  # the contract says 0.2; a busy machine may take longer
CLOCK = 0.001  # for reading the clock itself
LATE_BEAT = 0.02  # the beat that ends a stall comes after the rest of its callback
PRECISION = 0.005


def belongs(record: Row, truth: Row) -> bool:
    """Whether the record is of that line: a loop does one thing at a time."""
    middle = (truth["entered"] + truth["left"]) / 2
    return bool(record["started_at"] < middle < record["started_at"] + record["duration"])


def find_record(jsonl: Path, truth: Row) -> Row | None:
    """Wait for the record of what the truth tells of; None if none comes."""

    def found() -> list[Row]:
        rows = read_rows(jsonl)
        told_of = [row for row in rows if belongs(row, truth) and not row["ongoing"]]
        return [row for row in told_of if row["cause"] != "not_scheduled"]

    wait_until(lambda: bool(found()), RECORD_SECONDS)
    return next(iter(found()), None)


def server_span(spans: Path, trace_id: str) -> str | None:
    """The span of the request itself: of a mounted app's two, the outer, which ends first here.

    (Both are children of the caller's span, so that nothing else tells them apart.) None where
    nothing traces.
    """
    own = (r for r in read_rows(spans) if r["trace_id"] == trace_id and r["kind"] == "SERVER")
    return next((row["span_id"] for row in own), None)


def expected(mark: Mark) -> Row:
    """What is to be told of a stall on that mark, whoever asked for it."""
    return {
        "file": mark.file,
        "line": mark.line,
        "function": mark.function,
        "module": mark.module,
        "library": False,
        "code": mark.code[0] if mark.code else mark.loop,
        "call": mark.calls[0] if mark.calls else None,
        "cause": mark.cause,
        "ongoing": False,
        "budget": 0.1,
    }


def told(record: Row | None, mark: Mark) -> Row:
    """What a record tells, with the freedom that the mark leaves taken out."""
    if record is None:
        return {}
    culprit = record["culprit"] or {}
    request = record["request"] or {}
    line, code, call = culprit.get("line"), culprit.get("code"), record["call"]
    if line is not None and mark.line <= line <= mark.last_line:
        line = mark.line
    return {
        "file": culprit.get("file"),
        "line": line,
        "function": culprit.get("function"),
        "module": culprit.get("module"),
        "library": culprit.get("library"),
        "code": _code(code, mark),
        "call": mark.calls[0] if call in mark.calls else call,
        "cause": record["cause"],
        "ongoing": record["ongoing"],
        "budget": record["budget"],
        "route": request.get("route"),
        "method": request.get("method"),
        "background": request.get("background"),
        "request.trace_id": request.get("trace_id"),
        "request.span_id": request.get("span_id"),
        "trace_id": record["trace_id"],
        "span_id": record["span_id"],
        "phase": record["phase"],
        "pid": record["pid"],
        "uvloop": "uvloop" in record["loop"],
    }


def _code(code: Any, mark: Mark) -> Any:
    if not isinstance(code, str):
        return code
    if mark.loop is not None:
        return mark.loop if " ".join(code.split()) in mark.loop else code
    return mark.code[0] if normal(code) in mark.code else code


def check_times(record: Row, truth: Row, sent: float) -> None:
    """The start is where the record says, give or take its own error; so is the end.

    `sent` is when the client sent the request: no callback of it can have begun before.
    """
    error = record["duration_error"]
    assert 0 <= error < PRECISION, f"does not know its start to better than {error:.4f} s"
    earliest = truth["entered"] if truth["resumed"] else sent
    before = earliest - record["started_at"]
    after = record["started_at"] - truth["entered"]
    assert before <= error + CLOCK, f"starts {before:.4f} s before its callback; error {error:.4f}"
    assert after <= error + CLOCK, f"starts {after:.4f} s after the line; error {error:.4f}"
    late = record["started_at"] + record["duration"] - truth["left"]
    assert -CLOCK <= late <= LATE_BEAT, f"ends {late:.4f} s after the line"
