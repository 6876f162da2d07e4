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
_Key = weakref.ref[Any]


class RequestTable:
    """Requests between their call and the end of their coroutine.

    Written on the loops' threads, read by the watchdog; each operation on the dict is atomic under the GIL.
    """

    def __init__(self) -> None:
        self._live: dict[_Key, tuple[Scope, int, Context]] = {}
        self._forget = self._live.pop
        # The variable holds the key alone: were it the entry, the contexts of requests that begin in each other's
        # context would form a chain that nothing frees.
        self._current: ContextVar[_Key | None] = ContextVar("loopguard_request", default=None)
        self._enter = self._current.set
        self._count = itertools.count(1)
        self.served = 0

    def __len__(self) -> int:
        return len(self._live)

    def follow(self, scope: Scope, coroutine: Coroutine[Any, Any, None]) -> None:
        """Note that `coroutine` serves the request of `scope`, until it is gone. On the hot path of each request."""
        key = weakref.ref(coroutine, self._forget)
        self._live[key] = (scope, monotonic_ns(), copy_context())
        self._enter(key)
        self.served = next(self._count)

    def of(self, context: Context) -> ActiveRequest | None:
        """The request that `context` belongs to, if it is still in flight.

        A context may be older than the request: uvicorn on asyncio starts later requests of a connection in the
        context of a large upload before them (python/cpython#140947).
        """
        key = context.get(self._current)
        entry = None if key is None else self._live.get(key)
        return None if key is None or entry is None else ActiveRequest(*entry, key)
