"""What a dead process was held by: from the bytes that it left to records. Pure: no file, no clock.

The first file has one JSON object a line: `{"black_box": …}` tells of the process, `{"stall": …}` of a stall that lasts
(the latest of one id counts), `{"ended": id}` that it was survived. The second is what the probe wrote, if native code
kept the GIL to the end.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import PurePath
from typing import Any

from loopguard.black_box.rebuild import rebuild
from loopguard.capture.probe import Dump, parse
from loopguard.explain import paths
from loopguard.explain.explainer import fingerprint_of
from loopguard.explain.ownership import Ownership
from loopguard.record import Frame, Process, Stall

FORMAT = 1
UNKNOWN = "unknown"
_MARGIN = 0.015  # seconds beyond the budget for which a thread computes before the probe goes off
_TICK = 0.01  # how well the time of a dump is known
_STANDARD = re.compile(r"/python3\.\d+/")
_OURS = str(PurePath(__file__).parents[1])
# The innermost frames that a loop has below a callback: uvloop has the first alone.
_OF_LOOPS = {
    (("watch", "loops.py"), "run_watched"),
    (("asyncio", "base_events.py"), "run_forever"),
    (("asyncio", "base_events.py"), "_run_once"),
    (("asyncio", "events.py"), "_run"),
}
_MOST = 100  # stalls of one process: it has no more loops than that
_LONGEST_CODE = 200

SourceLine = Callable[[str, int, float], str | None]
"""The text of a line of a file, unless that has changed since a time (unix seconds)."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A loop that was watched: its class and its thread's name."""

    loop: str
    thread: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a process tells of itself, for the case that it can tell no more.

    `budget` is in seconds; `source` whether its source text may be shown.
    """

    black_box: int = FORMAT
    pid: int
    budget: float
    root: str
    source: bool
    in_app: tuple[str, ...]
    loops: tuple[Watched, ...]
    process: Process


@dataclass(frozen=True, slots=True)
class Remains:
    """What one process left: the stalls that it did not survive, and how many lines could not be read."""

    stalls: tuple[Stall, ...] = ()
    broken: int = 0


@dataclass(slots=True)
class _Lines:
    """What stands in the first file."""

    head: Head | None = None
    open: dict[str, Stall] = field(default_factory=dict)
    broken: int = 0


def _no_source(_file: str, _line: int, _until: float) -> None:
    return None


def remains(
    text: bytes, dump: bytes = b"", dumped_ns: int = 0, source: SourceLine = _no_source
) -> Remains:
    """What a process left behind, of the bytes of its two files; `dumped_ns` is when the second was written (unix).

    Never raises: a line that is broken, foreign or half written is counted.
    """
    lines = _Lines()
    for line in text.split(b"\n"):
        if line.strip():
            _take(line, lines)
    stalls = list(lines.open.values())
    dumps = parse(dump.decode("ascii", "replace"), 0)
    if dumps and lines.head is not None:
        head = lines.head
        frames = _frames(dumps[-1], head, source if head.source else _no_source)
        stalls = _with_dump(stalls, tuple(reversed(list(frames))), head, dumped_ns / 1e9)
    return Remains(tuple(map(_fatal, stalls)), lines.broken)


def fatal_record(stall: Stall) -> dict[str, Any]:
    """The record as it stands in the JSONL file."""
    return {**stall.to_dict(), "fatal": True}


def _take(line: bytes, lines: _Lines) -> None:
    try:
        found = json.loads(line)
        if not isinstance(found, Mapping):
            raise ValueError("no object")
        if "black_box" in found:
            lines.head = rebuild(Head, found)
        elif "ended" in found:
            lines.open.pop(str(found["ended"]), None)
        else:
            stall = rebuild(Stall, found.get("stall"))
            if stall.id in lines.open or len(lines.open) < _MOST:
                lines.open[stall.id] = stall
    except (ValueError, OverflowError, RecursionError):  # UnicodeDecodeError is a ValueError
        lines.broken += 1


def _fatal(stall: Stall) -> Stall:
    severity = stall.severity if stall.phase in ("startup", "shutdown") else "error"
    return replace(stall, ongoing=False, severity=severity)


def _with_dump(
    stalls: list[Stall], stack: tuple[Frame, ...], head: Head, dumped_at: float
) -> list[Stall]:
    """The stalls with what the probe saw last: it is the end of the one that stands in the same callback, else of its own.

    A dump is read and wiped with the next look, so one that is still there is later than all that was written.
    """
    for place, stall in enumerate(stalls):
        depth = _begin_of(stall.stack, stack)
        if depth is not None:
            return [
                *stalls[:place],
                _at_its_end(stall, stack[depth:], dumped_at),
                *stalls[place + 1 :],
            ]
    return [*stalls, _dumped(stack[_base_of(stack) :], head, dumped_at)]


def _frames(dump: Dump, head: Head, source: SourceLine) -> Iterator[Frame]:
    """The frames of a dump, innermost first."""
    ownership = Ownership(head.in_app)
    root = PurePath(head.root)
    for seen in dump.frames:
        yield Frame(
            file=paths.shown(seen.file, root),
            line=seen.line,
            module=None,
            function=seen.function,
            code=_short(source(seen.file, seen.line, head.process.started_at)),
            library=_is_library(ownership, seen.file),
        )


def _short(line: str | None) -> str | None:
    return " ".join((line or "").split())[:_LONGEST_CODE] or None


def _is_library(ownership: Ownership, file: str) -> bool:
    """By where the file lies; the process may have run on another Python than the one that reads this."""
    package = _package_of(file)
    standard = not package and _STANDARD.search(file) is not None
    return standard or ownership.is_library(file, package)


def _package_of(file: str) -> str:
    """The top-level package of an installed file, or our own; a dump does not tell modules."""
    if file.startswith(_OURS):
        return "loopguard"
    parts = PurePath(file).parts
    inside = [place for place, part in enumerate(parts) if part.endswith("-packages")]
    return PurePath(parts[inside[-1] + 1]).stem if inside and len(parts) > inside[-1] + 1 else ""


def _base_of(stack: tuple[Frame, ...]) -> int:
    """How many of the outermost frames are the loop's own: what stands above them is the callback."""
    of_loop = [
        place + 1
        for place, frame in enumerate(stack)
        if (PurePath(frame.file).parts[-2:], frame.function.rpartition(".")[2]) in _OF_LOOPS
    ]
    return of_loop[-1] if of_loop and of_loop[-1] < len(stack) else 0


def _begin_of(callback: tuple[Frame, ...], stack: tuple[Frame, ...]) -> int | None:
    """Where in a whole stack, outermost first, the frames of a callback begin; None where it is another's."""
    if not callback:
        return None
    for depth in range(len(stack)):
        if _same(callback[0], stack[depth]):
            pairs = zip(callback, stack[depth:], strict=False)
            common = len(list(takewhile(lambda pair: _same(*pair), pairs)))
            return depth if common >= min(len(callback), len(stack) - depth, 2) else None
    return None


def _same(known: Frame, dumped: Frame) -> bool:
    """Whether both are of one function: a dump may give its bare name only."""
    return known.file == dumped.file and dumped.function in (
        known.function,
        known.function.rpartition(".")[2],
    )


def _at_its_end(stall: Stall, stack: tuple[Frame, ...], dumped_at: float) -> Stall:
    """The stall, and where it stood at last; what is known of the frames that it stood in already stays known."""
    known = stall.stack
    common = len(list(takewhile(lambda pair: _same(*pair), zip(known, stack, strict=False))))
    stack = (
        tuple(
            mine if mine.line == dumped.line else replace(mine, line=dumped.line, code=dumped.code)
            for mine, dumped in zip(known[:common], stack, strict=False)
        )
        + stack[common:]
    )
    culprit = _culprit(stack)
    same = culprit is not None and culprit == stall.culprit
    return replace(
        stall,
        duration=max(stall.duration, dumped_at - stall.started_at),
        cause="gil_hold",
        culprit=culprit,
        call=stall.call if same else None,
        advice=stall.advice if same else None,
        waited_on=None,
        holder=None,
        stack=stack,
        fingerprint=stall.fingerprint if same else fingerprint_of(culprit, None, "gil_hold"),
        confidence=None,
        phases=None,
    )


def _culprit(stack: tuple[Frame, ...]) -> Frame | None:
    own = [frame for frame in stack if not frame.library]
    return own[-1] if own else stack[-1] if stack else None


def _dumped(stack: tuple[Frame, ...], head: Head, dumped_at: float) -> Stall:
    """A stall that nothing but the probe saw: whose request it was, nobody could know."""
    duration = head.budget + _MARGIN
    culprit = _culprit(stack)
    watched = head.loops[0] if len(head.loops) == 1 else Watched(UNKNOWN, UNKNOWN)
    identity = f"{head.process.instance} {head.process.started_at} {dumped_at}"
    return Stall(
        id=hashlib.blake2s(identity.encode(errors="replace"), digest_size=16).hexdigest(),
        started_at=max(0.0, dumped_at - duration),
        duration=duration,
        duration_error=head.budget / 2 + _TICK,
        budget=head.budget,
        severity="error",
        ongoing=True,
        phase=None,
        cause="gil_hold",
        culprit=culprit,
        call=None,
        waited_on=None,
        holder=None,
        stack=stack,
        samples=1,
        confidence=1.0,
        phases=None,
        cpu_time=None,
        gc_time=None,
        task=None,
        coroutine=None,
        contributors=None,
        request=None,
        trace_id=None,
        span_id=None,
        delayed=None,
        delayed_requests=None,
        delayed_complete=None,
        in_flight=None,
        open_connections=None,
        advice=None,
        fingerprint=fingerprint_of(culprit, None, "gil_hold"),
        suppressed=0,
        profile=None,
        pid=head.pid,
        thread=watched.thread,
        loop=watched.loop,
        process=head.process,
    )
