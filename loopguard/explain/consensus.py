"""What the looks agree on: the culprit, and the look that shows it best."""

from __future__ import annotations

import dis
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

from loopguard.evidence import Held, Look, RawFrame
from loopguard.explain.ownership import Ownership
from loopguard.explain.source import line_of

_Key = TypeVar("_Key", bound=Hashable)


class Verdict(NamedTuple):
    """`look.stack[place]` is the frame to blame; `confidence` the share of the time that its function was seen for.

    `on_line` are all looks that saw it on that line: each with the index of the frame there, and its seconds.
    """

    look: Look
    place: int
    confidence: float
    on_line: tuple[tuple[Look, int, float], ...]


def agree(held: Held, ownership: Ownership) -> Verdict | None:
    """The innermost function of the user's own that was there for most of the time, on its most frequent line.

    Where no look saw one, the innermost that is no plumbing; else the innermost. None without any look.
    """
    weighed = [(look, weight) for look, weight in weigh(held) if look.stack]
    rules: tuple[Callable[[RawFrame], bool], ...] = (
        lambda frame: not ownership.library(frame),
        lambda frame: not ownership.plumbing(frame),
        lambda _frame: True,
    )
    for rule in rules:
        verdict = _blame(weighed, rule)
        if verdict is not None:
            return verdict
    return None


def weigh(held: Held) -> list[tuple[Look, float]]:
    """Each look with the seconds that it stands for: from half-way to the one before to half-way to the next.

    What the probe saw lasted until the next: a native call kept the GIL, or the watchdog would have been served.
    """
    if not held.looks:
        return []
    borders = [
        held.start_ns,
        *(b.at_ns if a.probed else (a.at_ns + b.at_ns) // 2 for a, b in pairwise(held.looks)),
        held.end_ns,
    ]
    return [
        (look, max(after - before, 1) / 1e9)
        for look, before, after in zip(held.looks, borders[:-1], borders[1:], strict=True)
    ]


def _blame(
    weighed: Sequence[tuple[Look, float]], rule: Callable[[RawFrame], bool]
) -> Verdict | None:
    total = sum(weight for _, weight in weighed)
    seconds: defaultdict[Hashable, float] = defaultdict(float)
    depth: dict[Hashable, int] = {}
    for look, weight in weighed:
        for code, index in _functions(look, rule).items():
            seconds[code] += weight
            depth[code] = max(depth.get(code, 0), len(look.stack) - index)
    if not seconds:
        return None
    agreed = [code for code in seconds if seconds[code] > total / 2] or [_most(seconds)]
    culprit = max(agreed, key=lambda code: depth[code])
    votes = [
        (look, index, weight)
        for look, weight in weighed
        for code, index in _functions(look, rule).items()
        if code == culprit
    ]
    votes = on_line = _majority(votes, lambda look, index: line_of(look.stack[index]))
    votes = _majority(votes, lambda look, _: tuple(frame.code for frame in look.stack))
    votes = _majority(votes, lambda look, index: look.stack[index].lasti)
    look, index, _ = votes[len(votes) // 2]
    return Verdict(look, index, min(1.0, seconds[culprit] / total), tuple(on_line))


_Vote = tuple[Look, int, float]


def _majority(votes: list[_Vote], key: Callable[[Look, int], Hashable]) -> list[_Vote]:
    """Those votes that agree in `key` with most of the time."""
    seconds: defaultdict[Hashable, float] = defaultdict(float)
    for look, index, weight in votes:
        seconds[key(look, index)] += weight
    winner = _most(seconds)
    return [vote for vote in votes if key(vote[0], vote[1]) == winner]


def _most(seconds: dict[_Key, float]) -> _Key:
    return max(seconds, key=lambda key: seconds[key])


def _functions(look: Look, rule: Callable[[RawFrame], bool]) -> dict[Hashable, int]:
    """The functions on the stack that the rule allows, each with the index of its innermost frame."""
    found: dict[Hashable, int] = {}
    for index, frame in enumerate(look.stack):
        if index == 0 and _just_called(frame) and any(map(rule, look.stack[1:2])):
            continue
        if frame.code not in found and rule(frame):
            found[frame.code] = index
    return found


def _just_called(frame: RawFrame) -> bool:
    """Whether it has not done anything yet: calls are where the GIL is handed over, and looks are taken.

    Of many calls to a function that is quick, all looks would show its head.
    """
    code = frame.code.co_code
    at = max(frame.lasti, 0)
    return dis.opname[code[at]] == "RESUME" and code[at + 1] == 0
