"""What a profiler's table of functions tells of those that held the loop."""

from __future__ import annotations

import io
import pstats
from collections.abc import Iterator
from typing import Any

from benchmarks.peers_told import Told, own_line

Function = tuple[str, int, str]


def told(stats: pstats.Stats) -> list[dict[str, Any]]:
    """Each call of a function of the app's that took 0.1 s in the mean: that is all that the table knows of one."""
    text = io.StringIO()
    stats.stream = text  # type: ignore[attr-defined]  # typeshed leaves it out
    stats.print_stats()
    stats.print_callees()
    return [each.row() for each in _told(vars(stats)["stats"], text.getvalue())]


def _told(table: dict[Function, Any], text: str) -> Iterator[Told]:
    for function, (_, calls, own, taken, _) in table.items():
        place = function[0], function[1]
        if not own_line([place]) or taken / calls < 0.1:
            continue
        called = any(
            callers[function][3] > taken / 2
            for callee, (*_, callers) in table.items()
            if function in callers and not callee[0].endswith(".py")
        )
        causes = ["blocking_call"] if called else ["cpu"] if own > taken / 2 else []
        for _ in range(calls):
            yield Told(None, taken / calls, [place], causes=causes, said=text)
