"""Which test was running when? Times in, the test and its phase out."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

When = Literal["setup", "call", "teardown"]

_REMEMBERED = 3_000


@dataclass(frozen=True, slots=True)
class Window:
    """One phase of one test, from `began_ns` until the next begins."""

    began_ns: int
    test: str
    when: When


class Windows:
    """The latest phases of a process's tests, in order of time (nanoseconds of CLOCK_MONOTONIC)."""

    def __init__(self) -> None:
        self._windows: deque[Window] = deque(maxlen=_REMEMBERED)

    def begin(self, began_ns: int, test: str, when: When) -> None:
        self._windows.append(Window(began_ns, test, when))

    def at(self, start_ns: int, error_ns: int, end_ns: int) -> Window | None:
        """The phase in which a stall began; None before all of them.

        Where its start is not known well enough to tell, the one that it took most of.
        """
        found, most, until = None, -1, end_ns
        for window in reversed(self._windows):
            overlap = until - max(window.began_ns, start_ns)
            if window.began_ns <= start_ns + error_ns and overlap > most:
                found, most = window, overlap
            if window.began_ns <= start_ns - error_ns:
                break
            until = min(until, window.began_ns)
        return found
