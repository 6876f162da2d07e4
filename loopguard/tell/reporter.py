"""The one thread that tells: it takes incidents off a bounded queue, has them explained, and feeds the sinks."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextvars import Context
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Protocol

from loopguard.evidence import Incident
from loopguard.exempt import matches, reason_in
from loopguard.record import Severity, Stall
from loopguard.tell.limits import Limits
from loopguard.tell.log import log_event
from loopguard.tell.report import Report, Sink
from loopguard.tell.summary import Summary

GUARD = "event_loop.guard"
SUMMARY = "event_loop.summary"
TROUBLE = "event_loop.guard.trouble"
LONGEST_QUEUE = 1000
REMEMBERED = 256


class Explained(Protocol):
    @property
    def stall(self) -> Stall: ...
    @property
    def context(self) -> Context: ...


@dataclass(frozen=True, slots=True)
class Notice:
    """An event for the log that is no stall."""

    level: Severity
    event: str
    fields: Mapping[str, object]


@dataclass(slots=True)
class Counts:
    """What became of the stalls. `stalls == logged + suppressed + dropped` once the queue is empty."""

    stalls: int = 0
    logged: int = 0
    suppressed: int = 0
    dropped: int = 0
    exempt: int = 0
    not_scheduled: int = 0
    sink_errors: int = 0
    troubles: int = 0
    exempt_by_reason: Counter[str] = field(default_factory=Counter)


class Reporter:
    """Tells of incidents. `put` never blocks; all else happens on the reporter's own thread."""

    def __init__(
        self,
        explain: Callable[[Incident], Explained],
        sinks: list[Sink],
        ignore: tuple[str, ...],
        log: bool,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.counts = Counts()
        self.stalls: deque[Stall] = deque(maxlen=REMEMBERED)
        self._explain = explain
        self._sinks = sinks
        self._ignore = ignore
        self._log = log
        self._clock = clock
        self._limits = Limits()
        self._queue: deque[Incident] = deque()
        self._notices: deque[Notice] = deque(maxlen=100)
        self._said: set[str] = set()
        self._summary = Summary()
        self._changed = threading.Condition()
        self._busy = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="loopguard-reporter", daemon=True)

    def start(self) -> None:
        # An empty context: the thread may not inherit (3.14: thread_inherit_context) that of a request.
        Context().run(self._thread.start)

    def put(self, incident: Incident) -> None:
        """Queue an incident. Where the queue is full the oldest gives way, counted."""
        with self._changed:
            if len(self._queue) >= LONGEST_QUEUE:
                self._queue.popleft()
                self.counts.stalls += 1
                self.counts.dropped += 1
            self._queue.append(incident)
            self._changed.notify_all()

    def say(self, notice: Notice) -> None:
        """Queue an event for the log, if that is on."""
        if self._log:
            with self._changed:
                self._notices.append(notice)
                self._changed.notify_all()

    def trouble(self, error: BaseException) -> None:
        """A failure of our own, on any thread: counted, and each kind of it said once."""
        self.counts.troubles += 1
        kind = f"{type(error).__name__} in {_place(error)}"
        if kind not in self._said and len(self._said) < REMEMBERED:
            self._said.add(kind)
            self.say(Notice("warning", TROUBLE, {"trouble": kind, "error": str(error)[:500]}))

    def flush(self, timeout: float) -> bool:
        """Wait until all that was put is told; False where that took longer than `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not (self._queue or self._notices or self._busy), timeout
            )

    def stop(self, timeout: float) -> None:
        """Tell what is queued, for `timeout` seconds at most, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _run(self) -> None:
        while (next_one := self._next()) is not None:
            if isinstance(next_one, Notice):
                self._note(next_one)
                continue
            try:
                self._tell(next_one)
            except Exception as error:
                self.counts.stalls += 1
                self.counts.dropped += 1
                self.trouble(error)
        summary = self._summary.fields()
        if summary is not None and self._log:
            self._note(Notice("info", SUMMARY, summary))

    def _next(self) -> Incident | Notice | None:
        """What to tell next; None when it is time to end."""
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._queue or self._notices or self._stopping)
            if not self._queue and not self._notices:
                return None
            self._busy = True
            return self._notices.popleft() if self._notices else self._queue.popleft()

    def _note(self, notice: Notice) -> None:
        try:
            log_event(notice.level, notice.event, notice.fields)
        except Exception:  # the log itself fails: there is nobody left to tell
            self.counts.sink_errors += 1

    def _tell(self, incident: Incident) -> None:
        explained = self._explain(incident)
        stall, context = explained.stall, explained.context
        reason = reason_in(context, incident.held.start_ns) or self._ignored(stall)
        if reason is not None:
            self.counts.exempt += 1
            self.counts.exempt_by_reason[reason] += 1
            return
        suppressed = self._limits.admit(stall.fingerprint, self._clock())
        stall = replace(stall, suppressed=suppressed or 0)
        self._count(stall, suppressed is not None)
        self.stalls.append(stall)
        self._summary.add(stall)
        held, offset = incident.held, incident.wall_offset_ns
        report = Report(
            stall=stall,
            context=context,
            started_ns=held.start_ns + offset,
            ended_ns=held.end_ns + offset,
            error_ns=held.error_ns,
            allowed=suppressed is not None,
            thread_id=incident.thread_id,
        )
        for sink in self._sinks:
            try:
                sink(report)
            except BaseException as error:  # a listener may even call sys.exit()
                self.counts.sink_errors += 1
                self.trouble(error)

    def _ignored(self, stall: Stall) -> str | None:
        culprit, request = stall.culprit, stall.request
        names = (
            None if culprit is None else f"{culprit.module}.{culprit.function}",
            None if request is None else request.route,
            stall.phase,
        )
        pattern = matches(self._ignore, names)
        return None if pattern is None else f"ignored by {pattern}"

    def _count(self, stall: Stall, allowed: bool) -> None:
        self.counts.stalls += 1
        self.counts.logged += allowed
        self.counts.suppressed += not allowed
        self.counts.not_scheduled += stall.cause == "not_scheduled"


def _place(error: BaseException) -> str:
    """Where in our code, or below it, an error was raised."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return "?"
    return f"{traceback.tb_frame.f_globals.get('__name__', '?')}:{traceback.tb_lineno}"
