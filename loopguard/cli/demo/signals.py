"""What Ctrl-C and SIGTERM do to the demo, at any moment of it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

Handler = Callable[[int, FrameType | None], None]


class Stopped(KeyboardInterrupt):
    """A signal asked the demo to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


def leave(number: int, frame: FrameType | None) -> None:
    """End the process at once: while modules are imported, an exception may get lost, and nothing is to be undone."""
    os._exit(128 + number)


def unwind(number: int, frame: FrameType | None) -> None:
    """Raise, but once: a second signal must not break off the clearing up.

    Raises:
        Stopped: always.
    """
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)


@contextlib.contextmanager
def signals(handler: Handler) -> Iterator[None]:
    """Let both signals call `handler`; outside the main thread, where nobody can, leave them as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
