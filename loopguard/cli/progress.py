"""How far the reading has come: on stderr, and only where that is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

_EVERY = 0.2
_CLEAR = "\r\x1b[K"


class Progress:
    """Counts bytes, and says now and then how many of `size` they are."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.size = 0
        self._clock = clock
        self._shown = sys.stderr.isatty()
        self._read = 0
        self._next = clock() + _EVERY
        self._said = False

    def __call__(self, read: int) -> None:
        self._read += read
        if self._shown and self._clock() >= self._next:
            self._next = self._clock() + _EVERY
            self._said = True
            sys.stderr.write(f"{_CLEAR}{self}")
            sys.stderr.flush()

    def __str__(self) -> str:
        megabytes = f"{self._read / 1e6:,.0f} MB read"
        return f"{megabytes}, {min(1.0, self._read / self.size):.0%}" if self.size else megabytes

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._said:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()
