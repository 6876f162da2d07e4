"""pyinstrument around each request, in the middleware that its documentation gives for FastAPI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext

from fastapi import FastAPI, Request, Response
from pyinstrument import Profiler
from pyinstrument.frame import Frame
from pyinstrument.renderers import ConsoleRenderer
from pyinstrument.session import Session

from benchmarks.peers_told import Told, own_line
from tests.corpus import session


class Peer:
    def __init__(self) -> None:
        self._told: list[session.Row] = []

    def install(self, app: FastAPI) -> None:
        app.middleware("http")(self._profile)

    def on_loop(self) -> AbstractAsyncContextManager[object]:
        return nullcontext()

    def told(self) -> list[session.Row]:
        return self._told

    async def _profile(
        self, request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        with Profiler(interval=0.001, async_mode="enabled") as profiler:
            answer = await call_next(request)
        session_ = profiler.last_session
        assert session_
        if session_.duration >= 0.1:
            text = profiler.output(ConsoleRenderer(show_all=True))
            self._told += [each.row() for each in _told(session_, text)]
        return answer


def _below(frame: Frame | None) -> Iterator[Frame]:
    """The frame, and of those that it called always the one that took the longest."""
    while frame:
        yield frame
        frame = max(frame.children, key=lambda each: each.time, default=None)


def _place(frame: Frame) -> tuple[str, int]:
    return frame.file_path or "", frame.line_no or 0


def _told(session_: Session, text: str) -> Iterator[Told]:
    """Of the app's functions on the longest way the innermost."""
    way = list(_below(session_.root_frame()))
    for frame in [each for each in way if own_line([_place(each)])][-1:]:
        called = any("<built-in>" in (each.file_path or "") for each in way)
        yield Told(
            started_at=session_.start_time,
            duration=frame.time,
            stack=[_place(frame)],
            causes=["blocking_call"] if called else ["cpu"],
            said=text,
        )
