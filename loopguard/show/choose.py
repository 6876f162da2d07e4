"""Which stalls to look at: by time, cause, route and process instance."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase

from loopguard.record import Stall

_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def moment(words: str, now: datetime) -> float:
    """Unix seconds of an ISO 8601 time (in the local zone where it names none), or of `15m`, `2h`, `1d` ago.

    Raises:
        ValueError: it is neither.
    """
    ago = _AGO.fullmatch(words)
    try:
        if ago:
            return (now - timedelta(**{_UNITS[ago[2]]: float(ago[1])})).timestamp()
        return datetime.fromisoformat(words).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            f"{words!r} is neither a time (ISO 8601) nor one ago (15m, 2h, 1d)"
        ) from None


@dataclass(frozen=True, slots=True)
class Choice:
    """What was asked for; nothing asked for is everything.

    `since` and `until` are unix seconds: a stall counts that was going on in between. Routes and instances are patterns
    (`*`).
    """

    since: float | None = None
    until: float | None = None
    causes: Sequence[str] = ()
    routes: Sequence[str] = ()
    instances: Sequence[str] = ()

    def takes(self, stall: Stall) -> bool:
        return (
            (self.since is None or stall.started_at + stall.duration >= self.since)
            and (self.until is None or stall.started_at <= self.until)
            and (not self.causes or stall.cause in self.causes)
            and (
                not self.routes
                or _any_matches(stall.request.route if stall.request else None, self.routes)
            )
            and (not self.instances or _any_matches(stall.process.instance, self.instances))
        )


def _any_matches(name: str | None, patterns: Sequence[str]) -> bool:
    return name is not None and any(fnmatchcase(name, pattern) for pattern in patterns)
