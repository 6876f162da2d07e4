"""Which phase of its lifespan an ASGI application is in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from types import CoroutineType, FrameType
from typing import Any
from weakref import ref as reference

from loopguard.capture.variables import local
from loopguard.record import Phase

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_DEEPEST = 50


class Lifespan:
    """The phase, from the messages of the ASGI lifespan; None before it began and after it has ended.

    `ended` is awaited as the lifespan ends: a server may end its process right after, by a signal that runs no exit
    handlers. Where it cannot be awaited, `ended_at_once` is called. Neither raises.
    """

    def __init__(
        self, ended: Callable[[], Awaitable[None]], ended_at_once: Callable[[], None]
    ) -> None:
        self._ended = ended
        self._ended_at_once = ended_at_once
        self._phase: Phase | None = None
        self._task: asyncio.Task[Any] | None = None
        self._manager: reference[object] | None = None

    @property
    def phase(self) -> Phase | None:
        if self._task is not None:
            return _phase_of(self._task)
        return self._phase

    def join(self, task: asyncio.Task[Any], manager: object) -> None:
        """Follow a lifespan that is running already, by the task that runs it in that context manager.

        Its channels are out of reach by now. But when the task lets go of the manager, which nothing else holds, all of
        the lifespan has run, and the server has not heard of that yet.
        """
        self._task = task

        def freed(_: object) -> None:
            if _current_task() is task:
                self._task, self._phase = None, "shutdown"
                self._ended_at_once()
                self._phase = None

        with suppress(TypeError):  # one of a class that knows no weak references
            self._manager = reference(manager, freed)

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


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        return None


def _phase_of(task: asyncio.Task[Any]) -> Phase | None:
    """The phase, from where Starlette's lifespan coroutine stands in the task that runs it."""
    if task.done():
        return None
    coroutine: object = task.get_coro()
    for _ in range(_DEEPEST):
        if not isinstance(coroutine, CoroutineType):
            return "startup"
        frame, awaited = coroutine.cr_frame, coroutine.cr_await
        if frame is not None and runs_lifespan(frame):
            if local(frame, "started") is not True:
                return "startup"
            waits = isinstance(awaited, CoroutineType) and "receive" in awaited.__name__
            return "serving" if waits else "shutdown"
        coroutine = awaited
    return None


def runs_lifespan(frame: FrameType) -> bool:
    """Whether it is the frame of Starlette's own coroutine that runs an application's lifespan."""
    module = frame.f_globals.get("__name__")
    return frame.f_code.co_name == "lifespan" and module == "starlette.routing"
