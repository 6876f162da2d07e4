"""The source of the very expression that a frame was running."""

from __future__ import annotations

import dis
import itertools
import linecache
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

from loopguard.evidence import RawFrame

LONGEST = 200


def line_of(frame: RawFrame) -> int | None:
    """The line that the frame was on; that of the function where its code has no line there."""
    line = _positions(frame)[0]
    return frame.code.co_firstlineno if line is None else line


def expression_of(frame: RawFrame, fresh_until: float) -> str | None:
    """The expression, on one line, at most LONGEST characters; the whole line where there are no columns.

    None where the source is not to be had, or is no longer that of the running code: a file changed after
    `fresh_until` (unix seconds) counts only if it still compiles to the same code.
    """
    line, end_line, column, end_column = _positions(frame)
    lines = _lines(frame)
    if (
        line is None
        or not 0 < line <= len(lines)
        or not _is_source_of(frame.code, lines, fresh_until)
    ):
        return None
    if column is None or end_column is None or end_line is None or end_line > len(lines):
        return _short(lines[line - 1])
    part = [text.encode() for text in lines[line - 1 : end_line]]
    part[-1] = part[-1][:end_column]
    part[0] = part[0][column:]
    return _short(b" ".join(piece.strip() for piece in part).decode(errors="replace"))


def _lines(frame: RawFrame) -> list[str]:
    """The file's lines; where there is no such file, as in a zipped package, those that its module's loader has."""
    names = vars(sys.modules.get(frame.module or "", object))
    own = names.get("__file__") == frame.code.co_filename
    return linecache.getlines(frame.code.co_filename, dict(names) if own else None)


def _short(text: str) -> str | None:
    text = " ".join(text.split())
    return (text if len(text) <= LONGEST else text[: LONGEST - 1] + "…") or None


def _positions(frame: RawFrame) -> tuple[int | None, int | None, int | None, int | None]:
    """Line, end line, column and end column (bytes of UTF-8) of the running instruction (PEP 657)."""
    index = max(frame.lasti, 0) // 2
    if dis.opname[frame.code.co_code[2 * index]] == "BEFORE_WITH":
        # On CPython 3.11 it bears the position of the whole statement; the one before it that of the manager.
        index -= 1
    return next(itertools.islice(frame.code.co_positions(), index, None), (None, None, None, None))


def _is_source_of(code: CodeType, lines: list[str], fresh_until: float) -> bool:
    try:
        if Path(code.co_filename).stat().st_mtime <= fresh_until:
            return True
    except (OSError, ValueError):
        return True  # no file: the text came with the code, from a loader
    try:
        module = compile("".join(lines), code.co_filename, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return any(
        found.co_qualname == code.co_qualname
        and found.co_code == code.co_code
        and list(found.co_positions()) == list(code.co_positions())
        for found in _all_code(module)
    )


def _all_code(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _all_code(constant)
