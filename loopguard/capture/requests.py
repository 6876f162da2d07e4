"""The requests in flight, and which of them a context belongs to."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from time import monotonic_ns
from types import CoroutineType
from typing import Any
from weakref import ref as reference

from loopguard.capture.arrivals import Arrivals
from loopguard.evidence import BACKGROUND, ActiveRequest, Scope

_DEEPEST = 100
Key = reference[Any]
Entry = tuple[Scope, int, Context]


class RequestTable:
    """Requests between their call and the end of their coroutine.

    Written on the loops' threads, read by the watchdog; each operation on the dict is atomic under the GIL.
    `arrivals` are those that begin shortly after a stall; `followed`: there is an application whose requests they are.
    """

    def __init__(self) -> None:
        self._live: dict[Key, Entry] = {}
        # The variable holds the key alone: were it the entry, the contexts of requests that begin in each other's
        # context would form a chain that nothing frees.
        self._current: ContextVar[Key | None] = ContextVar("loopguard_request", default=None)
        self._count = itertools.count()
        self.arrivals = Arrivals()
        self.followed = False

    def __len__(self) -> int:
        return len(self._live)

    @property
    def served(self) -> int:
        """How many requests have begun until now."""
        return int(repr(self._count).removeprefix("count(").removesuffix(")"))

    def follower(
        self, now: Callable[[], int] = monotonic_ns
    ) -> Callable[[Scope, Coroutine[Any, Any, None]], None]:
        """What notes that a coroutine serves the request of a scope, until it is gone.

        On the hot path of each request: a closure, since a method looks everything up anew.
        """
        self.followed = True
        live, forget, enter, count = self._live, self._live.pop, self._current.set, self._count

        def follow(scope: Scope, coroutine: Coroutine[Any, Any, None]) -> None:
            key = reference(coroutine, forget)
            live[key] = (scope, now(), copy_context())
            enter(key)
            next(count)

        return follow

    def keys(self) -> list[Key]:
        """The requests in flight, by their coroutines' references: some 4 ns each, so that the loop hardly waits for it."""
        return list(self._live)

    def entry(self, key: Key) -> Entry | None:
        """What is noted of the request of that coroutine, if it is still in flight."""
        return self._live.get(key)

    def key_in(self, context: Context) -> Key | None:
        """The coroutine's reference of the request that `context` belongs to, in flight or not."""
        return context.get(self._current)

    def of(self, context: Context) -> ActiveRequest | None:
        """The request that `context` belongs to, if it is still in flight.

        A context may be older than the request: uvicorn on asyncio starts later requests of a connection in the
        context of a large upload before them (python/cpython#140947).
        """
        key = context.get(self._current)
        entry = None if key is None else self._live.get(key)
        if key is None or entry is None:
            return None
        return ActiveRequest(*entry, key, background=_awaits_background(key()))


def _awaits_background(coroutine: object) -> bool:
    """Whether a request that waits does so for a background task: what runs then, runs for that."""
    for _ in range(_DEEPEST):
        if not isinstance(coroutine, CoroutineType):
            return False
        frame = coroutine.cr_frame
        if frame is not None and frame.f_globals.get("__name__") in BACKGROUND:
            return True
        coroutine = coroutine.cr_await
    return False
