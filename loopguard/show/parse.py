"""From a line of JSON back to the record: what is malformed becomes null, and no text can fool who reads it."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

from loopguard.record import (
    SCHEMA,
    Cause,
    Contributor,
    Delayed,
    Frame,
    Holder,
    Phase,
    Process,
    Request,
    Severity,
    Share,
    Stall,
)
from loopguard.tell.printable import printable

T = TypeVar("T")

LONGEST_TEXT = 500
LONGEST_STACK = 200
LONGEST_LIST = 100
_LAST_MOMENT = 253_402_300_800.0  # the year 10000, which no calendar of Python's knows
_LARGEST_COUNT = 2**53  # the largest whole number that is exact in JavaScript
_LONGEST_SECONDS = 1e9
_HEX = re.compile(r"[0-9a-f]{16}|[0-9a-f]{32}")


class ForeignError(ValueError):
    """It is JSON, but no record of a stall."""


class NewerError(ValueError):
    """It is a record whose schema this version does not know."""


def stall_from(record: object, *, stack: bool = True) -> Stall:
    """The record as it was written, in text that is safe to show and numbers that are safe to reckon with.

    Without `stack`, which is most of the work, that is left empty.

    Raises:
        ForeignError: it has no id, no fingerprint, no start or no duration.
        NewerError: its schema is of a later version.
    """
    if not isinstance(record, Mapping):
        raise ForeignError
    schema = record.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise ForeignError
    if schema > SCHEMA:
        raise NewerError
    get = record.get
    identity, fingerprint = _text(get("id")), _text(get("fingerprint"))
    started_at, duration = _number(get("started_at"), _LAST_MOMENT), _seconds(get("duration"))
    if identity is None or fingerprint is None or started_at is None or duration is None:
        raise ForeignError
    return Stall(
        id=identity,
        started_at=started_at,
        duration=duration,
        duration_error=_seconds(get("duration_error")) or 0.0,
        budget=_seconds(get("budget")) or 0.0,
        severity=_word(get("severity"), get_args(Severity)) or "warning",
        ongoing=get("ongoing") is True,
        phase=_word(get("phase"), get_args(Phase)),
        cause=_word(get("cause"), get_args(Cause)) or "unknown",
        culprit=_frame(get("culprit")),
        call=_text(get("call")),
        waited_on=_text(get("waited_on")),
        holder=_holder(get("holder")),
        stack=_frames(get("stack")) if stack else (),
        samples=_count(get("samples")) or 0,
        confidence=_number(get("confidence"), 1.0),
        phases=_several(get("phases"), _share),
        cpu_time=_seconds(get("cpu_time")),
        gc_time=_seconds(get("gc_time")),
        task=_text(get("task")),
        coroutine=_text(get("coroutine")),
        contributors=_several(get("contributors"), _contributor),
        request=_request(get("request")),
        trace_id=_hex(get("trace_id"), 32),
        span_id=_hex(get("span_id"), 16),
        delayed=_several(get("delayed"), _delayed),
        delayed_requests=_count(get("delayed_requests")),
        delayed_complete=_truth(get("delayed_complete")),
        in_flight=_count(get("in_flight")),
        open_connections=_count(get("open_connections")),
        advice=_text(get("advice")),
        fingerprint=fingerprint,
        suppressed=_count(get("suppressed")) or 0,
        profile=_text(get("profile")),
        pid=_count(get("pid")) or 0,
        thread=_text(get("thread")) or "",
        loop=_text(get("loop")) or "",
        process=_process(get("process")),
    )


def _text(value: object) -> str | None:
    if not isinstance(value, str):
        return None
    if len(value) > LONGEST_TEXT:
        value = value[: LONGEST_TEXT - 1] + "…"
    return printable(value)


def _number(value: object, largest: float) -> float | None:
    """A number from 0 to `largest`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 <= value <= largest and math.isfinite(value) else None


def _seconds(value: object) -> float | None:
    return _number(value, _LONGEST_SECONDS)


def _count(value: object) -> int | None:
    number = _number(value, _LARGEST_COUNT)
    return None if number is None else int(number)


def _truth(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _hex(value: object, length: int) -> str | None:
    """An id; only what is one may become part of an address."""
    known = isinstance(value, str) and len(value) == length and _HEX.fullmatch(value)
    return str(value) if known else None


def _word(value: object, words: tuple[Any, ...]) -> Any:
    return value if isinstance(value, str) and value in words else None


def _several(value: object, parse: Callable[[Mapping[str, Any]], T | None]) -> tuple[T, ...] | None:
    if not isinstance(value, list):
        return None
    parsed = (parse(item) for item in value[:LONGEST_LIST] if isinstance(item, Mapping))
    return tuple(item for item in parsed if item is not None)


def _frames(value: object) -> tuple[Frame, ...]:
    if not isinstance(value, list):
        return ()
    frames = (_frame(item) for item in value[:LONGEST_STACK])
    return tuple(frame for frame in frames if frame is not None)


def _frame(value: object) -> Frame | None:
    if not isinstance(value, Mapping):
        return None
    get = value.get
    file, line, function = get("file"), get("line"), get("function")
    module, code = get("module"), get("code")
    if not isinstance(file, str) or not isinstance(function, str):
        return None
    return _known_frame(
        file,
        line if type(line) is int else None,
        module if isinstance(module, str) else None,
        function,
        code if isinstance(code, str) else None,
        get("library") is True,
    )


# The same frames come again with every record: one object each, made once.
@functools.lru_cache(maxsize=20_000)
def _known_frame(
    file: str, line: int | None, module: str | None, function: str, code: str | None, library: bool
) -> Frame:
    return Frame(
        file=_text(file) or "",
        line=_count(line),
        module=_text(module),
        function=_text(function) or "",
        code=_text(code),
        library=library,
    )


def _holder(value: object) -> Holder | None:
    if not isinstance(value, Mapping):
        return None
    return Holder(
        thread=_text(value.get("thread")) or "",
        native_id=_count(value.get("native_id")),
        culprit=_frame(value.get("culprit")),
        stack=_frames(value.get("stack")),
    )


def _share(value: Mapping[str, Any]) -> Share | None:
    culprit, share = _frame(value.get("culprit")), _number(value.get("share"), 1.0)
    return None if culprit is None or share is None else Share(culprit, share)


def _contributor(value: Mapping[str, Any]) -> Contributor | None:
    name, share = _text(value.get("name")), _number(value.get("share"), 1.0)
    return None if name is None or share is None else Contributor(name, share)


def _request(value: object) -> Request | None:
    if not isinstance(value, Mapping):
        return None
    return Request(
        method=_text(value.get("method")) or "",
        route=_text(value.get("route")),
        trace_id=_hex(value.get("trace_id"), 32),
        span_id=_hex(value.get("span_id"), 16),
        started_at=_number(value.get("started_at"), _LAST_MOMENT) or 0.0,
        background=value.get("background") is True,
    )


def _delayed(value: Mapping[str, Any]) -> Delayed | None:
    delay = _seconds(value.get("delay"))
    if delay is None:
        return None
    return Delayed(
        method=_text(value.get("method")) or "",
        route=_text(value.get("route")),
        trace_id=_hex(value.get("trace_id"), 32),
        span_id=_hex(value.get("span_id"), 16),
        delay=delay,
        exact=value.get("exact") is True,
        queued=value.get("queued") is True,
        ready=_truth(value.get("ready")),
    )


def _process(value: object) -> Process:
    """The process; where the record does not tell of it, one without a name."""
    known: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
    return Process(
        instance=_text(known.get("instance")) or "",
        host=_text(known.get("host")) or "",
        service=_text(known.get("service")),
        version=_text(known.get("version")),
        started_at=_number(known.get("started_at"), _LAST_MOMENT) or 0.0,
        loop_seconds=_seconds(known.get("loop_seconds")) or 0.0,
        requests=_count(known.get("requests")) or 0,
    )
