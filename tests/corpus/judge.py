"""What was told of a case, field by field beside its label."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.corpus.cases import CASES, MARKS
from tests.corpus.label import Case
from tests.corpus.session import ROUTE
from tests.real.marks import Mark, normal
from tests.real.told import CLOCK

Row = dict[str, Any]

_BEAT = 0.05
_LATE_BEAT = 0.03  # the beat that ends a stall comes after the rest of its callback
_OF_THE_MACHINE = {"records", "other records", "start", "end"}
_NOBODYS = ("gil_wait", "congestion", "not_scheduled")


@dataclass(frozen=True)
class Miss:
    """A field of which something else was told than its label says."""

    field: str
    expected: object
    told: object
    by: float | None = None  # seconds, of a time

    def __str__(self) -> str:
        return f"{self.field}: expected {self.expected!r}, told {self.told!r}"


def cause_of(name: str) -> str:
    return "innocent" if CASES[name].innocent else MARKS[name].cause


def judge(row: Row) -> list[Miss]:
    """All that is wrong; nothing where the case was told wholly right."""
    case = CASES[row["case"]]
    wanted = None if case.innocent else MARKS[case.name]
    # That the machine itself did not run the process for a while is true, and nobody's fault.
    records = [
        record
        for record in row["records"]
        if record["cause"] != "not_scheduled" or (wanted and wanted.cause == "not_scheduled")
    ]
    of_it = [record for record in records if wanted and overlap(record, row)]
    others = [_short(record) for record in records if record not in of_it]
    misses = [Miss("other records", [], others)] if others else []
    if wanted is None:
        return misses
    if len(of_it) != 1:
        return [*misses, Miss("records", 1, [_short(record) for record in of_it])]
    return [*misses, *_differences(of_it[0], case, wanted, row)]


def excuse(row: Row, misses: Sequence[Miss]) -> str | None:
    """That the machine itself, by the system's own account, took the CPU for long enough to be the reason.

    That is a beat, or for a time that is wrong as long as that; else None. It can be the reason for another cause, for a
    record too many or too few, and for a time: never for a line, a call, a wait or a request that is wrong by itself.
    """
    fields = {miss.field for miss in misses}
    if "cause" not in fields and not fields <= _OF_THE_MACHINE:
        return None
    withheld = row["withheld"]
    needed = max((_BEAT if miss.by is None else min(miss.by, _BEAT) for miss in misses), default=1)
    return f"the machine gave no CPU for {withheld:.4f} s" if withheld >= needed else None


def overlap(record: Row, row: Row) -> bool:
    """Whether it is of that time: a loop does one thing at a time."""
    begin = max(record["started_at"], row["entered"])
    end = min(record["started_at"] + record["duration"], row["left"])
    return bool(end - begin > 0.5 * min(record["duration"], row["left"] - row["entered"]))


def _short(record: Row) -> tuple[object, ...]:
    culprit = record["culprit"] or {}
    where = culprit.get("function"), culprit.get("line")
    return record["cause"], round(record["duration"], 3), *where, record["call"]


def _differences(record: Row, case: Case, mark: Mark, row: Row) -> list[Miss]:
    expected = {"cause": mark.cause, "waited_on": case.waited_on, **_place(case, mark)}
    told = {name: record[name] for name in ("cause", "waited_on")} | _told(record, case, mark)
    if case.waited_on and re.fullmatch(case.waited_on, record["waited_on"] or ""):
        told["waited_on"] = case.waited_on
    misses = [Miss(n, wanted, told[n]) for n, wanted in expected.items() if told[n] != wanted]
    return [
        *misses,
        *_wrong_names(record, mark),
        *_wrong_request(record, case, row),
        *_times(record, row, mark),
    ]


def blames_nobody(case: Case, mark: Mark) -> bool:
    """Where the loop's own code is not to blame: by the cause, or because another thread collected."""
    return mark.cause in _NOBODYS or case.name.endswith("_elsewhere")


def _place(case: Case, mark: Mark) -> Row:
    """The line to blame, and the thread that was in the way, with the line it was on."""
    at = (mark.file, mark.line, mark.function)
    holder = None
    if case.holder is not None:
        thread, function = case.holder
        holder = (thread, function, mark.line if mark.cause == "gil_wait" else None)
    return {"culprit": None if blames_nobody(case, mark) else at, "holder": holder}


def _told(record: Row, case: Case, mark: Mark) -> Row:
    culprit, holder = record["culprit"], record["holder"]
    at = None
    if culprit is not None:
        line = culprit["line"]
        line = mark.line if mark.line <= line <= mark.last_line else line
        at = (culprit["file"], line, culprit["function"])
    if holder is not None:
        blamed = holder["culprit"] or {}
        line = blamed.get("line") if mark.cause == "gil_wait" else None
        holder = (holder["thread"], blamed.get("function"), line)
    return {"culprit": at, "holder": holder}


def _wrong_names(record: Row, mark: Mark) -> list[Miss]:
    """The call, the running expression, and, of a crowd, who made up most of it."""
    calls = tuple(None if call == "-" else call for call in mark.calls) or (None,)
    misses = []
    if record["culprit"] is None:
        calls = (None,)
    elif mark.code and normal(record["culprit"]["code"] or "") not in mark.code:
        misses.append(Miss("code", mark.code, record["culprit"]["code"]))
    if record["call"] not in calls:
        misses.append(Miss("call", calls, record["call"]))
    if mark.cause == "congestion":
        first = (record["contributors"] or [{"name": None}])[0]["name"]
        if first != mark.function:
            misses.append(Miss("first contributor", mark.function, first))
    return misses


def _wrong_request(record: Row, case: Case, row: Row) -> list[Miss]:
    """Of whom nobody is to blame, no request is either."""
    if not case.served or record["culprit"] is None:
        return []
    request = record["request"] or {}
    expected = (ROUTE, "GET", row["trace_id"])
    told = tuple(request.get(name) for name in ("route", "method", "trace_id"))
    return [] if told == expected else [Miss("request", expected, told)]


def _times(record: Row, row: Row, mark: Mark) -> list[Miss]:
    """The start is where the record says, give or take its own error; so is the end."""
    error = record["duration_error"] + CLOCK
    off = record["started_at"] - row["entered"]
    late = record["started_at"] + record["duration"] - row["left"]
    misses = []
    if abs(off) > error:
        by = abs(off) - error
        misses.append(Miss("start", f"within {error:.4f} s", f"{off:+.4f} s", by))
    if not -error <= late <= _LATE_BEAT + error:
        by = max(-late, late - _LATE_BEAT) - error
        misses.append(Miss("end", f"within {_LATE_BEAT} s", f"{late:+.4f} s", by))
    return misses
