"""How many records of one kind may go into the log: what is more is counted, not written."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Kind:
    """What is remembered of one fingerprint."""

    admitted: deque[float] = field(default_factory=deque)
    suppressed: int = 0


class Limits:
    """At most `each` records of one fingerprint, and `in_all` of all together, in any `window` seconds.

    Pure: `now` comes from the caller, in seconds of a clock that never goes back. The `remembered` fingerprints
    that were seen last are kept; one that was forgotten begins anew, and the limit for all still holds for it.
    """

    def __init__(
        self, each: int = 10, in_all: int = 100, window: float = 60.0, remembered: int = 500
    ) -> None:
        self._each = each
        self._in_all = in_all
        self._window = window
        self._remembered = remembered
        self._kinds: OrderedDict[str, _Kind] = OrderedDict()
        self._admitted: deque[float] = deque()

    def admit(self, fingerprint: str, now: float) -> int | None:
        """None where the record must stay out; else how many like it stayed out since the last that was let in."""
        kind = self._kind(fingerprint)
        for admitted in (kind.admitted, self._admitted):
            self._forget_old(admitted, now)
        if len(kind.admitted) >= self._each or len(self._admitted) >= self._in_all:
            kind.suppressed += 1
            return None
        kind.admitted.append(now)
        self._admitted.append(now)
        suppressed, kind.suppressed = kind.suppressed, 0
        return suppressed

    def _kind(self, fingerprint: str) -> _Kind:
        kind = self._kinds.setdefault(fingerprint, _Kind())
        self._kinds.move_to_end(fingerprint)
        if len(self._kinds) > self._remembered:
            self._kinds.popitem(last=False)
        return kind

    def _forget_old(self, admitted: deque[float], now: float) -> None:
        while admitted and now - admitted[0] >= self._window:
            admitted.popleft()
