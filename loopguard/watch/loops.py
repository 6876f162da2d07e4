"""Which loops run, and when: every way to run one passes through `run_forever`."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from loopguard.capture.frames import UNCOLLECTED, frames_of_others
from loopguard.capture.stacks import depth_of
from loopguard.capture.variables import local

Begin = Callable[[asyncio.AbstractEventLoop], Callable[[], None]]
"""Called on the loop's thread before it runs; what it returns is called when the loop has stopped. Neither raises."""


class LoopHook:
    """Follows each run of each loop in this process, by a wrapper around `run_forever` of the loops' classes.

    `asyncio.run`, `uvloop.run`, `asyncio.Runner` and servers all come by here. A loop that is running already is not
    seen until it runs again.
    """

    def __init__(self, begin: Begin) -> None:
        self._begin: Begin | None = begin
        self._wrapped: list[tuple[type, Any, Any]] = []

    def install(self) -> None:
        for kind in loop_classes():
            inherited = "run_forever" not in vars(kind)
            original = None if inherited else vars(kind)["run_forever"]
            wrapper = self._wrap(kind.run_forever)  # type: ignore[attr-defined]
            kind.run_forever = wrapper  # type: ignore[attr-defined]
            self._wrapped.append((kind, original, wrapper))

    def uninstall(self) -> None:
        """Put everything back. Where somebody else has wrapped our wrapper since, it stays there and does nothing."""
        self._begin = None
        for kind, original, wrapper in self._wrapped:
            if vars(kind).get("run_forever") is not wrapper:
                continue
            if original is None:
                del kind.run_forever  # type: ignore[attr-defined]
            else:
                kind.run_forever = original  # type: ignore[attr-defined]
        self._wrapped.clear()

    def _wrap(self, run_forever: Any) -> Any:
        @functools.wraps(run_forever)
        def run_watched(loop: asyncio.AbstractEventLoop) -> None:
            begin = self._begin
            if begin is None:
                run_forever(loop)
                return
            end = begin(loop)
            try:
                run_forever(loop)
            finally:
                end()

        return run_watched


def foreseen_base(
    loop: asyncio.AbstractEventLoop, frame: FrameType | None = None
) -> tuple[int, CodeType] | None:
    """The depth and the code of the loop's own innermost frame, once it runs: what stands above it is the callback.

    None where no `run_watched` is about to run it, or for a loop of unknown make. The first callback may hold the loop
    before anything of ours runs on it, so this must be known before; whoever relies on it compares, once it runs.
    `frame` is the innermost of the loop's thread, where that is not this one.
    """
    frame = sys._getframe() if frame is None else frame
    while frame is not None and frame.f_code.co_qualname != _RUN_WATCHED:
        frame = frame.f_back
    if frame is None:
        return None
    depth = depth_of(frame) + _hooks_inside(local(frame, "run_forever"))
    if is_uvloop(loop):
        return depth, frame.f_code
    if isinstance(loop, asyncio.BaseEventLoop):
        # run_forever, _run_once, Handle._run
        return depth + 3, asyncio.Handle._run.__code__
    return None


def _hooks_inside(run_forever: Any) -> int:
    """How many wrappers of other guards are inside of one: a test's guard stands around that of its application."""
    count = 0
    while getattr(run_forever, "__code__", None) is not None and (
        run_forever.__code__.co_qualname == _RUN_WATCHED
    ):
        run_forever, count = run_forever.__wrapped__, count + 1
    return count


def running_base(loop: asyncio.AbstractEventLoop) -> tuple[int, CodeType] | None:
    """The same for a loop that runs on this thread, from within a task's step; None where it runs no task's."""
    task = asyncio.current_task(loop)
    entry = getattr(None if task is None else task.get_coro(), "cr_frame", None)
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame is not entry:
        frame = frame.f_back
    if frame is None or frame.f_back is None:
        return None
    return depth_of(frame.f_back), frame.f_back.f_code


def loops_elsewhere() -> list[asyncio.AbstractEventLoop]:
    """The loops that run on other threads now: those of `asyncio.Runner`, and asyncio's own however they are run."""
    found: list[asyncio.AbstractEventLoop] = []
    with UNCOLLECTED:
        for innermost in frames_of_others(threading.get_ident(), None).values():
            frame: FrameType | None = innermost
            while frame is not None:
                loop = _run_by(frame)
                if loop is not None and loop not in found and loop.is_running():
                    found.append(loop)
                frame = frame.f_back
    return found


def _run_by(frame: FrameType) -> asyncio.AbstractEventLoop | None:
    if frame.f_code is asyncio.Runner.run.__code__:
        runner = local(frame, "self")
        loop = getattr(runner, "_loop", None)
    elif frame.f_code.co_qualname == "BaseEventLoop.run_forever":
        loop = local(frame, "self")
    else:
        return None
    return loop if isinstance(loop, asyncio.AbstractEventLoop) else None


_RUN_WATCHED = f"{LoopHook._wrap.__qualname__}.<locals>.run_watched"


def loop_classes() -> list[type]:
    """The classes whose `run_forever` all loops use. uvloop is imported where it is installed: it will be used."""
    classes: list[type] = [asyncio.BaseEventLoop]
    if importlib.util.find_spec("uvloop") is not None:
        try:
            import uvloop
        except ImportError:
            return classes
        classes.append(uvloop.Loop)
    return classes


def is_uvloop(loop: asyncio.AbstractEventLoop) -> bool:
    return type(loop).__module__.partition(".")[0] == "uvloop"
