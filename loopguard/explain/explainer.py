"""From an incident to its record."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass

from loopguard.config import Config
from loopguard.evidence import PROFILED, Held, Incident, OtherThread, RawFrame, Wait
from loopguard.explain import paths, scheduling
from loopguard.explain.advice import advise
from loopguard.explain.call import call_on_line
from loopguard.explain.cause import cause_of, cpu_seconds, gc_seconds, in_the_way, waited_in
from loopguard.explain.consensus import agree
from loopguard.explain.correlation import Route, active_span, context_of, request_of
from loopguard.explain.crowd import contributors_of
from loopguard.explain.ownership import Ownership
from loopguard.explain.phases import phases_of
from loopguard.explain.source import expression_of, line_of
from loopguard.record import Cause, Frame, Holder, Phase, Process, Severity, Share, Stall

DEEPEST = 120
_BLAME_NOBODY = ("not_scheduled", "gil_wait", "congestion")


@dataclass(frozen=True, slots=True)
class Explained:
    """A record, and the copied contexts of the code that it blames and of that code's request as it began."""

    stall: Stall
    context: Context
    request_context: Context | None = None


def _no_rest() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Explainer:
    """Explains incidents of one process.

    `process` describes it as of now; `fresh_until` is the time (unix seconds) after which a changed source file may
    no longer be that of the running code. `rest` is called now and then: it takes some milliseconds to explain.
    """

    config: Callable[[], Config]
    ownership: Callable[[], Ownership]
    route: Route
    process: Callable[[], Process]
    fresh_until: float
    rest: Callable[[], None] = _no_rest

    def explain(self, incident: Incident) -> Explained:
        held, budget_ns, config = incident.held, incident.budget_ns, self.config()
        switch_ns = int(sys.getswitchinterval() * 1e9)
        cause = "congestion" if held.together else cause_of(held, budget_ns, switch_ns)
        why_not_run = None
        if cause == "not_scheduled":
            held = scheduling.dated(held, budget_ns, switch_ns)
            why_not_run = scheduling.advice_of(held, incident.throttled, switch_ns)
        self.rest()
        verdict = agree(held, self.ownership())
        self.rest()
        look = None if verdict is None or held.together else verdict.look  # a crowd is nobody's
        blamed = None if cause in _BLAME_NOBODY else verdict
        culprit = None if blamed is None else self._frame(blamed.look.stack[blamed.place])
        call = None if blamed is None else call_on_line(blamed.on_line)
        contributors = contributors_of(held) if cause == "congestion" else None
        duration = (held.end_ns - held.start_ns) / 1e9
        context = Context() if look is None else context_of(look, incident.wall_offset_ns)
        trace_id, span_id = active_span(context)
        stall = Stall(
            id=incident.id,
            started_at=(held.start_ns + incident.wall_offset_ns) / 1e9,
            duration=duration,
            duration_error=held.error_ns / 1e9,
            budget=budget_ns / 1e9,
            severity=severity_of(cause, duration, config.severe_from, incident.phase),
            ongoing=incident.ongoing,
            phase=incident.phase,
            cause=cause,
            culprit=culprit,
            call=call,
            waited_on=self._waited_on(cause, waited_in(held)),
            holder=self._holder(in_the_way(held, cause)),
            stack=()
            if verdict is None or cause == "not_scheduled"
            else self._stack(verdict.look.stack),
            samples=len(held.looks),
            confidence=None if blamed is None else round(blamed.confidence, 4),
            phases=None if blamed is None else self._phases(held),
            cpu_time=cpu_seconds(held),
            gc_time=gc_seconds(held),
            task=None if look is None else look.task,
            coroutine=None if look is None else look.coroutine,
            contributors=contributors,
            request=None if look is None else request_of(look, self.route, incident.wall_offset_ns),
            trace_id=trace_id,
            span_id=span_id,
            delayed=None,
            delayed_requests=None,
            delayed_complete=None,
            in_flight=incident.in_flight,
            open_connections=None,
            advice=why_not_run or advise(cause, call, blamed),
            fingerprint=fingerprint_of(
                culprit, call, contributors[0].name if contributors else cause
            ),
            suppressed=0,
            profile=context.get(PROFILED),
            pid=os.getpid(),
            thread=incident.thread,
            loop=incident.loop,
            process=self.process(),
        )
        request = None if look is None else look.request
        return Explained(stall, context, None if request is None else request.context)

    def _phases(self, held: Held) -> tuple[Share, ...] | None:
        self.rest()
        phases = phases_of(held, self.ownership())
        self.rest()
        if phases is None:
            return None
        return tuple(Share(self._frame(frame), round(share, 4)) for frame, share in phases)

    def _holder(self, thread: OtherThread | None) -> Holder | None:
        if thread is None or thread.ended:
            return None
        culprit = self.ownership().own_frame(thread.stack)
        return Holder(
            thread=thread.name,
            native_id=thread.native_id,
            culprit=None if culprit is None else self._frame(culprit),
            stack=self._stack(thread.stack),
        )

    def _stack(self, stack: tuple[RawFrame, ...]) -> tuple[Frame, ...]:
        """Outermost first; of a very deep stack the innermost frames."""
        return tuple(self._frame(frame) for frame in reversed(stack[:DEEPEST]))

    def _frame(self, frame: RawFrame) -> Frame:
        self.rest()
        source = expression_of(frame, self.fresh_until) if self.config().source else None
        return Frame(
            file=paths.shown(frame.code.co_filename, self.config().root),
            line=line_of(frame),
            module=frame.module,
            function=frame.code.co_qualname,
            code=source,
            library=self.ownership().library(frame),
        )

    def _waited_on(self, cause: Cause, wait: Wait | None) -> str | None:
        if wait is None or cause not in ("blocking_call", "lock"):
            return None
        if wait.call == "futex" and cause != "lock":
            return None  # for the GIL, which it had let go when it was seen
        kind, slash, path = wait.on.partition("/")
        on = kind + paths.guarded(slash + path, self.config().root) if slash else kind
        return f"{wait.call} {on}".rstrip()


def severity_of(cause: Cause, duration: float, severe_from: float, phase: Phase | None) -> Severity:
    """How bad it is: never an error while the application starts or ends, and `not_scheduled` is nobody's fault."""
    if cause == "not_scheduled":
        return "info"
    if duration >= severe_from and phase not in ("startup", "shutdown"):
        return "error"
    return "warning"


def fingerprint_of(culprit: Frame | None, call: str | None, else_by: str) -> str:
    """The same for stalls of the same culprit and call; without a culprit, of the same cause or first contributor."""
    parts = (else_by,) if culprit is None else (culprit.module or "", culprit.function, call or "")
    return hashlib.blake2s("\0".join(parts).encode(errors="replace"), digest_size=8).hexdigest()
