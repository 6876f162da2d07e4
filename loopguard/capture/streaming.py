"""Which requests are open connections: WebSockets, and responses that have streamed for long."""

from __future__ import annotations

from types import CoroutineType

from loopguard.capture.frames import UNCOLLECTED
from loopguard.capture.sockets import server_side_of
from loopguard.capture.variables import UNKNOWN, local
from loopguard.evidence import Scope

_LONG_NS = 60_000_000_000
_DEEPEST = 100
_STREAMS = frozenset({"starlette.responses", "sse_starlette.sse"})


def is_open_connection(scope: Scope, lasted_ns: int, coroutine: object) -> bool:
    """Whether a request is a WebSocket, or a response that has streamed for over a minute.

    When a response began nobody noted: it is one that is being sent, to a request of over a minute ago.
    """
    if scope.get("type") == "websocket":
        return True
    if lasted_ns <= _LONG_NS:
        return False
    with UNCOLLECTED:
        return _responds(coroutine)


def _responds(coroutine: object) -> bool:
    """Whether its response has begun: by the server's own account, where that is found, or by what it awaits."""
    for _ in range(_DEEPEST):
        if not isinstance(coroutine, CoroutineType):
            return False
        frame = coroutine.cr_frame
        if frame is not None:
            if frame.f_globals.get("__name__") in _STREAMS:
                return True
            receive = local(frame, "receive")
            server_side = None if receive is UNKNOWN else server_side_of(receive)
            begun = getattr(server_side, "response_started", None)  # as uvicorn has it
            if isinstance(begun, bool):
                return begun
        coroutine = coroutine.cr_await
    return False
