"""One look at a loop's thread: what it runs, for whom, and what it waits in."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from types import CodeType, CoroutineType, FrameType
from typing import Any

from loopguard.capture import iteration, probed, stacks, system_calls
from loopguard.capture.callee import callee_in_c, callee_of
from loopguard.capture.clocks import thread_cpu_ns
from loopguard.capture.collector import CollectorClock
from loopguard.capture.contexts import ContextReader
from loopguard.capture.frames import UNCOLLECTED, frames_of_others, frames_of_threads
from loopguard.capture.others import KEPT_WAITING_NS, OtherThreads
from loopguard.capture.owners import owner_of
from loopguard.capture.probe import Dump
from loopguard.capture.resolve import Standing
from loopguard.clock import monotonic_ns
from loopguard.evidence import ActiveRequest, Iteration, Look, RawFrame, Through, Wait

_HEARTBEAT = "loopguard.watch.heartbeat"
# CPython 3.11 collects amid an allocation, in whatever native code that is; later ones wait for the next bytecode.
_COLLECTS_AMIDST = sys.version_info < (3, 12)
_ON_COLLECTION = CollectorClock._on_collection.__code__


@dataclass(frozen=True, slots=True)
class Subject:
    """A loop while it runs, as its own thread described it; `thread_state` is where CPython keeps that thread's state.

    The `base_depth` outermost frames of the thread, the innermost of which runs `base_code`, are
    the loop's own: what stands above them is the callback.
    """

    loop: asyncio.AbstractEventLoop
    thread_id: int
    native_id: int
    thread_name: str
    context_address: int | None
    base_depth: int
    base_code: CodeType | None
    thread_state: int | None = None


@dataclass(frozen=True, slots=True)
class Observer:
    """Takes looks, with the kinds of evidence that are to be had here. `own` tells the user's frames from others."""

    contexts: ContextReader
    request_of: Callable[[Context], ActiveRequest | None]
    cpu_clock: bool
    system_calls: bool
    others: OtherThreads
    own: Callable[[RawFrame], bool]

    def look(
        self,
        subject: Subject,
        asked_ns: int,
        read_iteration: iteration.Reader | None,
        dumps: Callable[[], list[Dump]] = list,
    ) -> list[Look]:
        """Look at the subject's thread. To be the first thing that its caller does with the GIL.

        What the probe saw of it comes first, as `dumps` tells.

        Nothing before the wait may let the GIL go: a callback that waits for it would run on,
        and the line that it was on would be lost. What is gone soonest comes first: the callee
        may take so long to find, the first time, that the interpreter hands the GIL over.
        """
        with UNCOLLECTED:
            return self._look(subject, asked_ns, read_iteration, dumps)

    def _look(
        self,
        subject: Subject,
        asked_ns: int,
        read_iteration: iteration.Reader | None,
        dumps: Callable[[], list[Dump]],
    ) -> list[Look]:
        at_ns = monotonic_ns()
        frames = frames_of_others(subject.thread_id, subject.thread_state)
        frame = frames.get(subject.thread_id)
        collecting = frame is not None and frame.f_code is _ON_COLLECTION
        if frame is not None and collecting:
            frame = frame.f_back  # ours: the collector ran in what this one called
        task = asyncio.current_task(subject.loop)
        live = self.contexts.running(subject.context_address, task)
        context = None if live is None else live.copy()
        request = None if context is None else self.request_of(context)
        everything, run_once = stacks.walk(frame, iteration.RUN_ONCE)
        stack = _callback(everything, subject)
        late_ns = at_ns - asked_ns
        standing: list[Standing] = []
        if late_ns > KEPT_WAITING_NS:
            standing = list(zip(stacks.frames_of(frame), everything, strict=False))
        other = self.others.in_the_way(frames, subject.thread_id, late_ns)
        if not stack or frame is None:
            idle = Look(
                asked_ns=asked_ns,
                at_ns=at_ns,
                key=None,
                stack=(),
                other=other,
                stopped=self._stopped(subject),
            )
            return probed.before(idle, dumps(), subject.base_depth, [])
        began = None if read_iteration is None else read_iteration(run_once)
        cpu_ns = thread_cpu_ns(subject.native_id) if self.cpu_clock else None
        callee = callee_of(frame, stack[0].lasti)
        owner = owner_of(frame, stack[0].lasti, callee, frames)
        wait = self._wait(subject, frame, stack[0].lasti)
        through = self._through(frame, stack)
        name, coroutine = _describe(task)
        look = Look(
            asked_ns=asked_ns,
            at_ns=at_ns,
            key=_key(began, id(task), id(live), stack),
            stack=stacks.bounded(stack),
            callee=callee,
            through=through,
            context=context,
            task=name,
            coroutine=coroutine,
            request=request,
            serves=request is not None and _serves(request, stack),
            iteration=began,
            cpu_ns=cpu_ns,
            wait=wait,
            let_in=collecting and _COLLECTS_AMIDST and callee is not None,
            stopped=self._stopped(subject),
            other=other,
            owner=owner,
        )
        return probed.before(look, dumps(), subject.base_depth, standing)

    def too_late(self, subject: Subject, asked_ns: int, over_ns: int) -> Look:
        """What is left to see where all was over, at `over_ns`, before there was time to look."""
        late_ns = over_ns - asked_ns
        with UNCOLLECTED:
            frames = frames_of_others(subject.thread_id, subject.thread_state)
            other = self.others.in_the_way(frames, subject.thread_id, late_ns)
        return Look(asked_ns=asked_ns, at_ns=over_ns, key=None, stack=(), other=other)

    def _through(self, innermost: FrameType, stack: list[RawFrame]) -> Through | None:
        """Last, for it may take long, and only the callee in C is at stake."""
        place = next((i for i, frame in enumerate(stack[: stacks.INNERMOST]) if self.own(frame)), 0)
        frame = stacks.frame_at(innermost, place)
        if place == 0 or frame is None or frame.f_code is not stack[place].code:
            return None
        callee = callee_in_c(frame, stack[place].lasti, stack[place - 1].code.co_name)
        stands = frame.f_lasti == stack[place].lasti
        return Through(place, callee) if callee is not None and stands else None

    def _stopped(self, subject: Subject) -> bool:
        return self.system_calls and system_calls.stopped(subject.native_id)

    def _wait(self, subject: Subject, frame: FrameType, lasti: int) -> Wait | None:
        """What the thread waits in. To ask lets the GIL go: it counts if the thread did not go on meanwhile."""
        wait = system_calls.waiting_in(subject.native_id) if self.system_calls else None
        now = frames_of_threads(subject.thread_id, subject.thread_state).get(subject.thread_id)
        return wait if now is frame and frame.f_lasti == lasti else None


def _callback(stack: list[RawFrame], subject: Subject) -> list[RawFrame]:
    """The frames of the running callback; none where the loop is busy with itself, or waits."""
    depth = subject.base_depth
    if depth and (len(stack) < depth or stack[-depth].code is not subject.base_code):
        return []
    callback = stack[: len(stack) - depth]
    # Our own heartbeat: what held the loop is over.
    return [] if callback and callback[-1].module == _HEARTBEAT else callback


def _key(began: Iteration | None, task: int, context: int, stack: list[RawFrame]) -> object:
    """What tells this callback from others: its place in the loop, else whom it runs for."""
    if began is not None and began.index is not None:
        return began.started_ns, began.index
    return task, context, stack[-1].code


def _serves(request: ActiveRequest, stack: list[RawFrame]) -> bool:
    code = getattr(request.coroutine(), "cr_code", None)
    return code is not None and any(frame.code is code for frame in stack)


def _describe(task: asyncio.Task[Any] | None) -> tuple[str | None, str | None]:
    if not isinstance(task, asyncio.Task):
        return None, None
    coroutine = task.get_coro()
    name = coroutine.__qualname__ if isinstance(coroutine, CoroutineType) else None
    return task.get_name(), name
