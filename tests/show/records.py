"""Files of records to read back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from loopguard.record import Delayed, Stall
from loopguard.tell.jsonl import json_line
from tests.records import PROCESS, SPAN_ID, TRACE_ID, make_stall

STARTED_AT = 1_700_000_000.0


def write(path: Path, stalls: Iterable[Stall | dict[str, Any]]) -> Path:
    """As loopguard writes them."""
    records = (stall if isinstance(stall, dict) else stall.to_dict() for stall in stalls)
    path.write_text("".join(f"{json_line(record)}\n" for record in records))
    return path


def stall(number: int, **changes: Any) -> Stall:
    """The stall of that number, a minute after the one before."""
    return make_stall(**{"id": f"{number:032x}", "started_at": STARTED_AT + 60 * number, **changes})


def delayed(route: str, delay: float, **changes: Any) -> Delayed:
    known = Delayed("GET", route, TRACE_ID, SPAN_ID, delay, exact=True, queued=False, ready=True)
    return replace(known, **changes)


def in_process(instance: str, loop_seconds: float = 3600.0, **changes: Any) -> Any:
    return replace(PROCESS, instance=instance, loop_seconds=loop_seconds, **changes)


def as_read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
