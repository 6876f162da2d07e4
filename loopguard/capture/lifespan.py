"""Which phase of its lifespan an ASGI application is in."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from itertools import pairwise
from types import CoroutineType, FrameType
from typing import Any
from weakref import ref as reference

from loopguard.capture.frames import UNCOLLECTED
from loopguard.capture.variables import local
from loopguard.clock import monotonic_ns
from loopguard.evidence import Held, RawFrame
from loopguard.record import Phase

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Any, Receive, Send], Awaitable[None]]

_DEEPEST = 50
_STEPS: dict[str, Phase] = {"__aenter__": "startup", "__aexit__": "shutdown"}


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
        # When each phase began. Written on the loop's thread; the watchdog takes a copy, in one step.
        self._phases: deque[tuple[int, Phase | None]] = deque(maxlen=16)
        self._task: asyncio.Task[Any] | None = None
        self._manager: reference[object] | None = None

    @property
    def known(self) -> bool:
        """Whether there is, or was, a lifespan at all."""
        return self._task is not None or bool(self._phases)

    def phase_of(self, held: Held) -> Phase | None:
        """The phase while the loop was held, or for most of that time.

        Not the phase now: the step of the lifespan that held the loop goes on to the next phase before anybody looks.
        """
        step, task = _step_in(held), self._task
        if step is not None:
            return step
        if task is not None:
            with UNCOLLECTED:
                return _phase_of(task)
        lasted: Counter[Phase | None] = Counter()
        marks = [(0, None), *self._phases.copy(), (held.end_ns, None)]
        for (began, phase), (ended, _) in pairwise(marks):
            lasted[phase] += max(0, min(ended, held.end_ns) - max(began, held.start_ns))
        return lasted.most_common(1)[0][0]

    def join(self, task: asyncio.Task[Any], manager: object) -> None:
        """Follow a lifespan that is running already, by the task that runs it in that context manager.

        Its channels are out of reach by now. But when the task lets go of the manager, which nothing else holds, all of
        the lifespan has run, and the server has not heard of that yet.
        """
        self._task = task

        def freed(_: object) -> None:
            if _current_task() is task:
                self._phases.append((0, "shutdown"))  # since when, the stack tells where it matters
                self._task = None
                self._ended_at_once()
                self._enter(None)

        with suppress(TypeError):  # one of a class that knows no weak references
            self._manager = reference(manager, freed)

    async def run(self, app: Application, scope: Any, receive: Receive, send: Send) -> None:
        """Run the lifespan of an application, and listen to its two channels."""
        self._enter("startup")
        refused = True

        async def receive_followed() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                self._enter("shutdown")
            return message

        async def send_followed(message: Message) -> None:
            nonlocal refused
            refused = False
            last = message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed")
            if last:
                await self._ended()
            elif message["type"] == "lifespan.startup.complete":
                self._enter("serving")
            await send(message)
            if last:
                self._enter(None)

        try:
            await app(scope, receive_followed, send_followed)
        finally:
            if refused:
                # An application that has no lifespan says so by an error, and serves all the same.
                self._phases.clear()

    def _enter(self, phase: Phase | None) -> None:
        self._phases.append((monotonic_ns(), phase))


def _step_in(held: Held) -> Phase | None:
    """The phase, where it is Starlette's lifespan itself that held the loop: whether it was entered or left."""
    inner: RawFrame | None = None
    for frame in held.looks[-1].stack if held.looks else ():
        if inner is not None and _is_lifespan(frame.code.co_name, frame.module):
            return _STEPS.get(inner.code.co_name)
        inner = frame
    return None


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
    return _is_lifespan(frame.f_code.co_name, frame.f_globals.get("__name__"))


def _is_lifespan(function: str, module: object) -> bool:
    return function == "lifespan" and module == "starlette.routing"
