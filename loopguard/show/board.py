"""What is to be seen now: the stalls that last, the latest, and what held the loops most since the watch began."""

from __future__ import annotations

from collections.abc import Iterable

from loopguard.record import Stall
from loopguard.show.read import Whole
from loopguard.show.summary import MOST_KEPT, Summary

# Early records come at each doubling: where none has come for this many times as long, and this many seconds more,
# nobody will tell of the end.
_DOUBLING = 2.0
_GRACE = 5.0
_LATEST = 200


class Board:
    """Takes records as they come. An early one stands until the next, or the final one, of its stall.

    `changes` counts what was taken; `since(n)` gives the stalls that came after the change n, each once.
    """

    def __init__(self) -> None:
        self.summary = Summary(keep=0)
        self.changes = 0
        self._ongoing: dict[str, Stall] = {}
        self._stalls: dict[str, tuple[int, Stall]] = {}

    def add(self, stalls: Iterable[Stall]) -> None:
        for stall in stalls:
            known = self._stalls.pop(stall.id, None)
            if known is not None and not known[1].ongoing:
                self._stalls[stall.id] = known  # its end was told already
                continue
            self.changes += 1
            self._stalls[stall.id] = self.changes, stall
            if len(self._stalls) > MOST_KEPT:
                del self._stalls[next(iter(self._stalls))]
            self._keep_up(stall)

    def _keep_up(self, stall: Stall) -> None:
        if stall.ongoing:
            self._ongoing[stall.id] = stall
            return
        self._ongoing.pop(stall.id, None)
        self.summary.add(Whole(stall))

    def ongoing(self, now: float) -> list[Stall]:
        """Those that hold a loop at this moment (unix seconds), as far as anybody knows."""
        return [each for each in self._ongoing.values() if _still_told_of(each, now)]

    @property
    def latest(self) -> list[Stall]:
        """Final records, the latest first."""
        finals = [stall for _, stall in self._stalls.values() if not stall.ongoing]
        return finals[: -_LATEST - 1 : -1]

    def since(self, change: int) -> list[Stall]:
        return [stall for number, stall in self._stalls.values() if number > change]


def _still_told_of(stall: Stall, now: float) -> bool:
    return now - stall.started_at < _DOUBLING * stall.duration + _GRACE
