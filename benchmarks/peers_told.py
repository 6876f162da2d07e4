"""What one watcher told of a stall, whichever it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Line = tuple[str, int]

_OWN = re.compile(r"tests/corpus/.+|benchmarks/peers_app\.py$")


@dataclass(frozen=True)
class Told:
    """`stack`: file and line, innermost first; `causes`: all causes of loopguard's that its words may stand for.

    `started_at` is None of what tells no time, `duration` (seconds) of what tells none; `said` is all of its text.
    """

    started_at: float | None
    duration: float | None
    stack: Sequence[Line] = ()
    trace_id: str | None = None
    causes: Sequence[str] = ()
    said: str = ""

    def row(self) -> dict[str, Any]:
        return asdict(self)


def own_line(stack: Iterable[Sequence[Any]]) -> Line | None:
    """The innermost line of what is watched itself, which a reader of the stack would go to."""
    return next(
        ((found[0], int(line)) for file, line in stack if (found := _OWN.search(file))), None
    )
