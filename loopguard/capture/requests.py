"""The requests in flight, and which of them a context belongs to."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Coroutine
from contextvars import Context, ContextVar, copy_context
from time import monotonic_ns
from typing import Any

from loopguard.evidence import ActiveRequest

Scope = dict[str, Any]
_Entry = tuple[Scope, int, Context, "weakref.ref[Any]"]


class RequestTable:
    """Requests between their call and the end of their coroutine.

    Written on the loops' threads, read by the watchdog; each operation on the dict is atomic under the GIL.
    """

    def __init__(self) -> None:
        self._live: dict[weakref.ref[Any], _Entry] = {}
        self._current: ContextVar[_Entry | None] = ContextVar("loopguard_request", default=None)
        self._count = itertools.count()
        self.served = 0

    def __len__(self) -> int:
        return len(self._live)

    def follow(self, scope: Scope, coroutine: Coroutine[Any, Any, None]) -> None:
        """Note that `coroutine` serves the request of `scope`, until it is gone. On the hot path of each request."""
        reference = weakref.ref(coroutine, self._live.pop)
        self._live[reference] = entry = (scope, monotonic_ns(), copy_context(), reference)
        self._current.set(entry)
        self.served = next(self._count) + 1

    def of(self, context: Context) -> ActiveRequest | None:
        """The request that `context` belongs to, if it is still in flight.

        A context may be older than the request: uvicorn on asyncio starts later requests of a connection in the
        context of a large upload before them (python/cpython#140947).
        """
        entry = context.get(self._current)
        if entry is None or self._live.get(entry[3]) is not entry:
            return None
        return ActiveRequest(*entry)
