"""The requests that begin shortly after a stall, and since when their data had waited in the socket."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any
from weakref import ref as reference

from loopguard.capture.sockets import since_last_data_ns
from loopguard.clock import monotonic_ns
from loopguard.evidence import ActiveRequest, Arrival, Scope

_REMEMBERED = 4_000
# For so long after a stall, and after each request that had waited for it, they are asked: on a busy loop one pass
# through those that have begun may take as long before the next can.
PATIENCE_NS = 1_000_000_000
_TICKS_NS = 10_000_000  # the kernel counts in ticks of 4 ms, and tells whole milliseconds
_TRIES = 3
_AT_ONCE_NS = 500_000
# A body up to this length is sent at once: ten segments, before the first is acknowledged (RFC 6928).
_AT_ONCE = 14_000
_BODILESS = ("GET", "HEAD", "OPTIONS", "DELETE")


class Arrivals:
    """Asks each request as it begins when its data came, while asked to.

    `ask` is called on any thread; requests are noted on their loops' threads. Each step is one under the GIL.
    """

    def __init__(self) -> None:
        self._switches: list[Callable[[bool], None]] = []
        self._noted: deque[Arrival] = deque(maxlen=_REMEMBERED)
        self._until_ns = 0
        self._ended_ns = 0
        self._about_until_ns = 0  # while a stall may be about to end

    def enter(self, switch: Callable[[bool], None]) -> None:
        """Have `switch` told whether to note requests."""
        self._switches.append(switch)

    def leave(self, switch: Callable[[bool], None]) -> None:
        if switch in self._switches:
            self._switches.remove(switch)
            switch(False)

    def ask(self, over: bool) -> None:
        """From now on, for a while; `over`: a stall has just ended, else one may be about to."""
        now = monotonic_ns()
        if now > self._last_ns:
            self._noted.clear()
        if over:
            self._ended_ns, self._until_ns, self._about_until_ns = now, now + PATIENCE_NS, 0
        else:
            self._about_until_ns = now + PATIENCE_NS
        for switch in self._switches.copy():
            switch(True)

    def dismiss(self) -> None:
        """What may have been one was none; those that an earlier stall has delayed are asked on."""
        self._about_until_ns = 0
        self.forget()

    @property
    def _last_ns(self) -> int:
        return max(self._until_ns, self._about_until_ns)

    def note(self, scope: Scope, receive: object, coroutine: Coroutine[Any, Any, None]) -> None:
        """A request begins, in the context that it will run in."""
        now = monotonic_ns()
        if now > self._last_ns:
            for switch in self._switches.copy():
                switch(False)
            return
        arrived_ns = _arrived(receive)
        key = reference(coroutine)
        hash(key)  # which cannot be told any more when it is gone
        about = now <= self._about_until_ns
        if arrived_ns is None or (not about and arrived_ns > self._ended_ns + _TICKS_NS):
            # That it began is all that matters of it; and by its key which it is, for it may hold the loop next.
            request = ActiveRequest({}, now, Context(), key)
        else:
            request = ActiveRequest(scope, now, copy_context(), key)
            if not about:
                self._until_ns = now + PATIENCE_NS  # more of them may come
        self._noted.append(Arrival(request, arrived_ns, _whole(scope)))

    def since(self, began_ns: int) -> list[Arrival]:
        """Those that have begun since then, as far as they are remembered."""
        return [each for each in self._noted.copy() if each.request.started_ns >= began_ns]

    def forget(self) -> None:
        """Let go of those noted, where nobody is to be told of them any more."""
        if monotonic_ns() > self._last_ns:
            self._noted.clear()

    @property
    def more_may_come(self) -> bool:
        """Whether requests that had waited may still begin."""
        return monotonic_ns() < self._last_ns


def _arrived(receive: object) -> int | None:
    """When the connection last got data.

    Where the thread was kept from running between the two clocks, the kernel's and ours, it asks again.
    """
    found = []
    for _ in range(_TRIES):
        before = monotonic_ns()
        since_ns = since_last_data_ns(receive)
        if since_ns is None:
            return None
        after = monotonic_ns()
        found.append((after - before, after - since_ns))
        if after - before < _AT_ONCE_NS:
            break
    return min(found)[1]


def _whole(scope: Scope) -> bool:
    """Whether a request's last data are likely its first too."""
    if scope.get("type") == "websocket" or scope.get("method") in _BODILESS:
        return True
    for name, value in scope.get("headers", ()):
        if name == b"content-length":
            return bool(value.isdigit() and int(value) <= _AT_ONCE)
        if name == b"transfer-encoding":
            return False
    return True
