"""Who made up the crowd of callbacks that together held the loop."""

from __future__ import annotations

from collections import defaultdict

from loopguard.evidence import Held, Look
from loopguard.explain.consensus import weigh
from loopguard.record import Contributor

_MOST = 20
_UNNAMED = "asyncio.events"  # Handle._run, below each callback of asyncio's


def contributors_of(held: Held) -> tuple[Contributor, ...]:
    """Names of coroutines and callbacks with their shares of the time, largest first."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for look, weight in weigh(held):
        name = name_of(look)
        if name is not None:
            seconds[name] += weight
    total = sum(seconds.values())
    ranked = sorted(seconds, key=lambda name: -seconds[name])[:_MOST]
    return tuple(Contributor(name, round(seconds[name] / total, 4)) for name in ranked)


def name_of(look: Look) -> str | None:
    """The qualified name of the task's coroutine, or of the callback."""
    if look.coroutine is not None:
        return look.coroutine
    own = [frame for frame in look.stack if frame.module != _UNNAMED]
    return own[-1].code.co_qualname if own else None
