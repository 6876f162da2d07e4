"""Which phase of its lifespan an ASGI application is in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from types import CoroutineType, FrameType
from typing import Any

from loopguard.capture.variables import local
from loopguard.record import Phase

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_DEEPEST = 50


class Lifespan:
    """The phase, from the messages of the ASGI lifespan; None before it began and after it has ended.

    `ended` is awaited as the lifespan ends: a server may end its process right after, by a signal that runs no exit
    handlers. It must not raise.
    """

    def __init__(self, ended: Callable[[], Awaitable[None]]) -> None:
        self._ended = ended
        self._phase: Phase | None = None
        self._task: asyncio.Task[Any] | None = None

    @property
    def phase(self) -> Phase | None:
        if self._task is not None:
            return _phase_of(self._task)
        return self._phase

    def join(self, task: asyncio.Task[Any]) -> None:
        """Follow a lifespan that is running already, by the task that runs it."""
        self._task = task

    def follow(self, receive: Receive, send: Send) -> tuple[Receive, Send]:
        """The same two channels, listened to."""
        self._phase = "startup"

        async def receive_followed() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                self._phase = "shutdown"
            return message

        async def send_followed(message: Message) -> None:
            last = message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed")
            if last:
                await self._ended()
            await send(message)
            if last:
                self._phase = None
            elif message["type"] == "lifespan.startup.complete":
                self._phase = "serving"

        return receive_followed, send_followed


def _phase_of(task: asyncio.Task[Any]) -> Phase | None:
    """The phase, from where Starlette's lifespan coroutine stands in the task that runs it."""
    if task.done():
        return None
    coroutine: object = task.get_coro()
    for _ in range(_DEEPEST):
        if not isinstance(coroutine, CoroutineType):
            return "startup"
        frame, awaited = coroutine.cr_frame, coroutine.cr_await
        if frame is not None and _is_lifespan(frame):
            if local(frame, "started") is not True:
                return "startup"
            waits = isinstance(awaited, CoroutineType) and "receive" in awaited.__name__
            return "serving" if waits else "shutdown"
        coroutine = awaited
    return None


def _is_lifespan(frame: FrameType) -> bool:
    module = frame.f_globals.get("__name__")
    return frame.f_code.co_name == "lifespan" and module == "starlette.routing"
