"""What was seen in all: said at shutdown."""

from __future__ import annotations

from loopguard.record import Stall

WORST = 5
_REMEMBERED = 1000


class Summary:
    """Adds up stalls by culprit. Bounded: culprits beyond the first thousand count in the totals only."""

    def __init__(self) -> None:
        self._forget()

    def add(self, stall: Stall) -> None:
        """Count a stall. What the system did not run blocked nobody by code, and counts as a stall only."""
        self._stalls += 1
        if stall.cause == "not_scheduled":
            return
        self._seconds += stall.duration
        culprit = str(stall.culprit or "unknown")
        if culprit in self._by_culprit or len(self._by_culprit) < _REMEMBERED:
            seconds, count = self._by_culprit.get(culprit, (0.0, 0))
            self._by_culprit[culprit] = seconds + stall.duration, count + 1

    def take(self) -> dict[str, object] | None:
        """Keys for the log: stalls, seconds blocked, the culprits that blocked longest; None if nothing was seen.

        It begins anew then, so that what is said twice counts once.
        """
        if not self._stalls:
            return None
        fields = self._fields()
        self._forget()
        return fields

    def _forget(self) -> None:
        self._stalls = 0
        self._seconds = 0.0
        self._by_culprit: dict[str, tuple[float, int]] = {}

    def _fields(self) -> dict[str, object]:
        worst = sorted(self._by_culprit.items(), key=lambda item: item[1], reverse=True)[:WORST]
        return {
            "stalls": self._stalls,
            "blocked_s": round(self._seconds, 3),
            "worst": [
                f"{culprit}: {seconds:.3f} s in {count}" for culprit, (seconds, count) in worst
            ],
        }
