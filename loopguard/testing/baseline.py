"""The stalls that an old project has already: a text file that is kept with its sources.

A line each, sorted, with no line numbers and no dates, so that it merges: function, call, longest seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from loopguard.record import Stall
from loopguard.tell.printable import printable
from loopguard.testing.words import to_blame

Standing = Literal["new", "known", "worse"]

_HEADER = "# Stalls known to the tests: function, call, longest seconds. Written by pytest --stall-baseline-update."
_NONE = "-"
_MORE = 2.0  # times its longest: so much may a known stall take


class Known(NamedTuple):
    """What a stall is known by: never its line or cause, which change by themselves."""

    function: str
    call: str


class BaselineError(ValueError):
    """A line that is none of a baseline's."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """The longest seconds of each stall that is known."""

    longest: Mapping[Known, float]

    @classmethod
    def parse(cls, text: str) -> Baseline:
        """Of a line that stands there twice, as after a merge, the longer counts.

        Raises:
            BaselineError: a line cannot be read.
        """
        longest: dict[Known, float] = {}
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            try:
                function, call, shown = line.split()
                seconds = float(shown)
            except ValueError:
                raise BaselineError(
                    f"line {number}: {printable(line[:200])!r} is not: function, call, seconds"
                ) from None
            known = Known(function, call)
            longest[known] = max(seconds, longest.get(known, 0.0))
        return cls(longest)

    def text(self) -> str:
        lines = [
            f"{key.function} {key.call} {self.longest[key]:.3f}" for key in sorted(self.longest)
        ]
        return "\n".join([_HEADER, *lines, ""])

    def standing(self, key: Known, seconds: float) -> Standing:
        """Whether a stall is new, known, or more than twice as long as it was known."""
        longest = self.longest.get(key)
        if longest is None:
            return "new"
        return "known" if seconds <= _MORE * longest else "worse"

    def gone(self, seen: Iterable[Known]) -> list[Known]:
        """What is known and was not seen."""
        return sorted(set(self.longest) - set(seen))

    def updated(self, seen: Iterable[tuple[Known, float]], everything: bool) -> Baseline:
        """With what was seen; without what was not, if `everything` was run.

        The seconds of what is known stay as long as they hold: else each run would change them.
        """
        longest: dict[Known, float] = {}
        for key, seconds in seen:
            longest[key] = max(seconds, longest.get(key, 0.0))
        for key, seconds in self.longest.items():
            if key not in longest:
                if not everything:
                    longest[key] = seconds
            elif longest[key] <= _MORE * seconds:
                longest[key] = seconds
        return Baseline(longest)


def known_by(stall: Stall) -> Known:
    """What to look a stall up by."""
    frame = to_blame(stall)
    if frame is not None:
        function = f"{frame.module}.{frame.function}" if frame.module else frame.function
    else:
        function = stall.contributors[0].name if stall.contributors else stall.cause
    return Known(_word(function), _word(stall.call or _NONE))


def _word(text: str) -> str:
    return "_".join(printable(text).split()) or _NONE
