"""How late each heartbeat was, kept until somebody collects: written without a lock, read without missing a stall."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterator

SIZE = 16_384  # beats of one loop: 13 minutes at the default budget, in 128 KB
MOST_OF_ONE = 2_000  # samples that one stall counts as at most

_US = 1_000
_LARGEST = 2**32 - 1


class Ring:
    """The lateness of the last beats of one loop.

    Preallocated: to write allocates, locks and logs nothing. Written on the loop's thread alone, `written` last; read by
    whoever collects, one at a time. Each entry is written in one step, and the GIL is lock enough.
    """

    def __init__(self, size: int = SIZE) -> None:
        self._entries = array("Q", bytes(8 * size))
        self._size = size
        self._written = 0
        self._read = 0

    def write(self, late_ns: int, interval_ns: int) -> None:
        late_us, interval_us = late_ns // _US, interval_ns // _US
        entry = min(late_us, _LARGEST) << 32 | interval_us
        self._entries[self._written % self._size] = entry
        self._written += 1

    def drain(self) -> tuple[list[tuple[int, int]], int]:
        """Lateness and interval in µs of each beat since the last time, and how many were overwritten unread."""
        begin, end = self._read, self._written
        entries = self._entries[:]  # at once; what is overwritten until now is of no use
        # The next may be in its place already, and not counted yet.
        first = max(begin, self._written - self._size + 1)
        self._read = max(end, first)
        kept = [entries[place % self._size] for place in range(first, end)]
        return [(entry >> 32, entry & _LARGEST) for entry in kept], first - begin


class Delays:
    """The rings of all loops. One whose loop has stopped is used again by the next, with what is in it."""

    def __init__(self) -> None:
        self.lost = 0
        self._rings: list[Ring] = []
        self._free: list[Ring] = []
        self._draining = threading.Lock()

    def ring(self) -> Ring:
        """One for a loop that begins to run, on any thread."""
        try:
            return self._free.pop()
        except IndexError:
            ring = Ring()
            self._rings.append(ring)
            return ring

    def give_back(self, ring: Ring) -> None:
        self._free.append(ring)

    def drain(self) -> list[float]:
        """The samples since this was last called, in seconds, free of coordinated omission."""
        with self._draining:
            samples: list[float] = []
            for ring in list(self._rings):
                beats, lost = ring.drain()
                self.lost += lost
                for late_us, interval_us in beats:
                    samples.extend(each / 1e6 for each in corrected(late_us, interval_us))
            return samples


def corrected(late: int, interval: int) -> Iterator[int]:
    """The lateness of a beat, and of those that would have followed it, had it not been late.

    A loop that is held for a second skips the beats that fall into that second: one sample of a second among thousands
    of zeros would say that it was late once in a blue moon. Each beat that was skipped would have been late too, by one
    interval less than the one before. (What HdrHistogram does for an expected interval.)
    """
    yield late
    skipped = late // interval if interval > 0 else 0
    if skipped > MOST_OF_ONE:
        # Evenly spread, so that a night's suspension takes no seconds to count.
        interval, skipped = late // MOST_OF_ONE, MOST_OF_ONE - 1
    for place in range(1, skipped + 1):
        yield late - place * interval
