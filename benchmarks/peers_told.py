"""What one watcher told of a stall, whichever it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Line = tuple[str, int]


@dataclass(frozen=True)
class Told:
    """`stack`: file and line, innermost first; `causes`: all causes of loopguard's that its words may stand for."""

    started_at: float
    duration: float
    stack: Sequence[Line] = ()
    trace_id: str | None = None
    causes: Sequence[str] = ()

    def row(self) -> dict[str, Any]:
        return asdict(self)


def own_line(stack: Iterable[Sequence[Any]]) -> Line | None:
    """The innermost line of the corpus itself, which a reader of the stack would go to."""
    return next(
        (
            (f"tests/corpus/{file.rpartition('tests/corpus/')[2]}", int(line))
            for file, line in stack
            if "tests/corpus/" in file
        ),
        None,
    )
