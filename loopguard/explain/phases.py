"""The lines on which one callback blocked, where there were several."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from itertools import groupby

from loopguard.evidence import Held, RawFrame
from loopguard.explain.consensus import weigh
from loopguard.explain.ownership import Ownership
from loopguard.explain.source import line_of

_LONG = 0.15  # of the stall: a line that was held for less at a stretch is no phase of its own


def phases_of(held: Held, ownership: Ownership) -> list[tuple[RawFrame, float]] | None:
    """The frames of the user's that held for long, each with its share of the time, largest first; None for one.

    Lines that take turns, as those of a loop do, are no phases.
    """
    seen = [
        (ownership.own_frame(look.stack) or look.stack[0], weight)
        for look, weight in weigh(held)
        if look.stack
    ]
    total = sum(weight for _, weight in seen)
    seconds: defaultdict[Hashable, float] = defaultdict(float)
    frames: dict[Hashable, RawFrame] = {}
    long: set[Hashable] = set()
    for key, run in groupby(seen, key=lambda pair: _line(pair[0])):
        stretch = list(run)
        weight = sum(weight for _, weight in stretch)
        seconds[key] += weight
        frames[key] = stretch[0][0]
        if weight >= _LONG * total:
            long.add(key)
    if len(long) < 2:
        return None
    ranked = sorted(long, key=lambda key: -seconds[key])
    return [(frames[key], seconds[key] / total) for key in ranked]


def _line(frame: RawFrame) -> Hashable:
    return frame.code, line_of(frame)
