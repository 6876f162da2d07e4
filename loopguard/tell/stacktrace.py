"""A stack as a few lines of text: the user's own frames in full, the rest by number."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from loopguard.record import Frame
from loopguard.tell.printable import printable

MOST_LINES = 40
_OUTERMOST = 10


def stack_lines(stack: Iterable[Frame], culprit: Frame | None) -> list[str]:
    """One line for each frame of the user's own code, and one for each run of library frames.

    Outermost first, at most `MOST_LINES`. The culprit always gets its line, also where it is a library's.
    """

    def is_left_out(frame: Frame) -> bool:
        return frame.library and frame != culprit

    lines: list[str] = []
    for left_out, run in groupby(stack, key=is_left_out):
        frames = [printable(str(frame)) for frame in run]
        lines += [_left_out(len(frames))] if left_out else frames
    return _bounded(lines)


def _left_out(count: int) -> str:
    return f"[{count} library frame{'' if count == 1 else 's'} left out]"


def _bounded(lines: list[str]) -> list[str]:
    """Both ends of what is too long, as after a deep recursion: how it began, and above all where it is."""
    surplus = len(lines) - (MOST_LINES - 1)
    if surplus <= 1:
        return lines
    rest = lines[_OUTERMOST + surplus :]
    return [*lines[:_OUTERMOST], f"[{surplus} lines left out]", *rest]
