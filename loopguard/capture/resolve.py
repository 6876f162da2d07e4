"""From the names in a dump of the probe to code objects and instructions."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from itertools import takewhile
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any, NamedTuple

from loopguard.capture.callee import CALLS
from loopguard.capture.probe import Dump, SeenFrame, shown
from loopguard.evidence import RawFrame

# What may run native code for long beside calls, which are suspected first.
OTHERS = {
    "BINARY_OP", "BINARY_SUBSCR", "BINARY_SLICE", "COMPARE_OP", "CONTAINS_OP", "DELETE_ATTR", "DELETE_FAST",
    "DELETE_GLOBAL", "DELETE_NAME", "DELETE_SUBSCR", "DICT_MERGE", "DICT_UPDATE", "FORMAT_VALUE", "FOR_ITER",
    "IMPORT_NAME", "LIST_EXTEND", "SET_UPDATE", "STORE_SLICE", "STORE_SUBSCR", "UNPACK_SEQUENCE",
}  # fmt: skip


Standing = tuple[FrameType | None, RawFrame]
"""A frame of the thread, if it is at hand, and where it was when the watchdog looked."""


class Resolved(NamedTuple):
    """The frames of a dump, innermost first.

    `standing` is how many of them, counted from the outermost, stood when the watchdog looked; `live` the innermost,
    if it did; `at_look` whether it was at the same expression then.
    """

    stack: tuple[RawFrame, ...]
    standing: int
    live: FrameType | None
    at_look: bool


def resolve(dump: Dump, live: list[Standing]) -> Resolved:
    """Find the code of each frame: among those that stood (`live`, innermost first), else by its name.

    Seen from outside in, a frame still stands as long as all around it do.
    """
    seen = list(reversed(dump.frames))
    pairs = zip(seen, reversed(live), strict=False) if dump.whole else ()
    standing = list(takewhile(lambda pair: _is(pair[0], pair[1][1].code), pairs))
    stack = [_standing(known, raw, known is seen[-1]) for known, (_, raw) in standing]
    stack += [_gone(lost) for lost in seen[len(standing) :]]
    innermost = standing[-1][1] if len(standing) == len(seen) else None
    return Resolved(
        tuple(reversed(stack)),
        len(standing),
        None if innermost is None else innermost[0],
        innermost is not None and stack[-1].lasti == innermost[1].lasti,
    )


def _standing(seen: SeenFrame, raw: RawFrame, innermost: bool) -> RawFrame:
    """Where the frame was when the watchdog looked, if that is what the probe saw; it may have gone on meanwhile.

    To take code apart costs a millisecond, with the GIL: so only where the frame is on another line by now, or is the
    innermost and at an instruction that runs no native code.
    """
    code, lasti, module = raw
    on_line = any(
        start <= lasti < end and line == seen.line for start, end, line in code.co_lines()
    )
    if on_line and (not innermost or dis.opname[code.co_code[lasti]] in CALLS | OTHERS):
        return raw
    return RawFrame(code, instruction_on(code, seen.line), module)


def _gone(seen: SeenFrame) -> RawFrame:
    code, module = _named(seen)
    return RawFrame(code, instruction_on(code, seen.line), module)


def instruction_on(code: CodeType, line: int) -> int:
    """The instruction of that line which most likely was running: its only call, else what spans most of the line."""
    found = [
        item
        for item in dis.get_instructions(code)
        if item.positions is not None and item.positions.lineno == line
    ]
    for names in (CALLS, OTHERS):
        suspects = [item for item in found if item.opname in names]
        if suspects:
            return max(suspects, key=_span).offset
    return found[0].offset if found else 0


def only_call_on(code: CodeType, line: int) -> bool:
    """Whether the line makes one call and no more, so that it is known which one was running."""
    spans = {
        _span(item)
        for item in dis.get_instructions(code)
        if item.positions is not None
        and item.positions.lineno == line
        and item.opname in CALLS | OTHERS
    }
    return len(spans) == 1


def _span(item: dis.Instruction) -> tuple[int, int]:
    at = item.positions
    if at is None or at.end_lineno is None or at.lineno is None:
        return (0, 0)
    return at.end_lineno - at.lineno, (at.end_col_offset or 0) - (at.col_offset or 0)


def _named(seen: SeenFrame) -> tuple[CodeType, str | None]:
    """The code by file, name and line out of the loaded modules; where there is none, a stand-in that has all three."""
    for name, module in list(sys.modules.items()):
        if type(module) is ModuleType and _file_of(module) == seen.file:
            for code in _codes_of(module):
                if _is(seen, code) and any(line == seen.line for _, _, line in code.co_lines()):
                    return code, name
    blank = compile("\n" * (seen.line - 1) + "pass", seen.file, "exec")
    return blank.replace(co_name=seen.function, co_qualname=seen.function), None


def _is(seen: SeenFrame, code: CodeType) -> bool:
    return seen.file == shown(code.co_filename) and seen.function in (
        shown(code.co_name),
        shown(code.co_qualname),
    )


def _file_of(module: ModuleType) -> str | None:
    file = vars(module).get("__file__")
    return shown(file) if type(file) is str else None


def _codes_of(module: ModuleType) -> Iterator[CodeType]:
    """The code of all functions of a module, and what they hold."""
    for value in list(vars(module).values()):
        for function in (value, *_members(value)):
            while type(function) is FunctionType:
                yield from _nested(function.__code__)
                function = function.__dict__.get("__wrapped__")


def _members(value: Any) -> list[Any]:
    return list(type.__getattribute__(value, "__dict__").values()) if type(value) is type else []


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if type(constant) is CodeType:
            yield from _nested(constant)
