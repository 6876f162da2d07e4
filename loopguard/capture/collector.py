"""How long the garbage collector has run, on any thread: it stops the loop wherever it runs."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from loopguard.clock import monotonic_ns


class CollectorClock:
    """Sums up the time of collections, by gc.callbacks.

    Written by whichever thread collects, which holds the GIL and is never interrupted by a second collection; read
    by the heartbeat and the watchdog.
    """

    def __init__(self, clock: Callable[[], int] = monotonic_ns) -> None:
        self._clock = clock
        self._done_ns = 0
        self._began_ns = 0

    def start(self) -> None:
        gc.callbacks.append(self._on_collection)

    def stop(self) -> None:
        if self._on_collection in gc.callbacks:
            gc.callbacks.remove(self._on_collection)

    def read(self) -> int:
        """Nanoseconds spent in all collections so far, the running one included."""
        began = self._began_ns
        return self._done_ns + (self._clock() - began if began else 0)

    def _on_collection(self, phase: str, _info: dict[str, Any]) -> None:
        if phase == "start":
            self._began_ns = self._clock()
        elif self._began_ns:
            self._done_ns += self._clock() - self._began_ns
            self._began_ns = 0
