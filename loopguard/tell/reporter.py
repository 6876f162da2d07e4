"""The one thread that explains what is to be told: it takes incidents off a bounded queue and feeds the sinks."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from loopguard.clock import monotonic
from loopguard.evidence import Incident
from loopguard.exempt import matches, reason_in
from loopguard.lasting import LastingThread
from loopguard.record import Severity, Stall
from loopguard.tell.limits import Limits
from loopguard.tell.log import log_event, log_stall
from loopguard.tell.outlet import Outlet
from loopguard.tell.report import Report, Subscription
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
    @property
    def request_context(self) -> Context | None: ...


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
    troubles: int = 0
    exempt_by_reason: Counter[str] = field(default_factory=Counter)


class Reporter:
    """Tells of incidents. `put` never blocks; incidents are explained on the reporter's own thread, and each sink
    works on one of its own."""

    def __init__(
        self,
        explain: Callable[[Incident], Explained],
        subscriptions: Sequence[Subscription],
        ignore: tuple[str, ...],
        log: bool,
        clock: Callable[[], float] = monotonic,
        keep: Callable[[Stall], None] | None = None,
    ) -> None:
        self.counts = Counts()
        self.stalls: deque[Stall] = deque(maxlen=REMEMBERED)
        self._explain = explain
        self._ignore = ignore
        self._clock = clock
        self._keep = keep
        self._limits = Limits()
        self._limits_of_ongoing = Limits()
        self._queue: deque[Incident] = deque()
        self._said: set[str] = set()
        self._summary = Summary()
        self._changed = threading.Condition()
        self._busy = False
        self._uncounted: Incident | None = None
        self._stopping = False
        self._outlets = [
            (each, Outlet(each.name, self.trouble, close=each.close)) for each in subscriptions
        ]
        self._log = Outlet("log", self.trouble) if log else None
        if self._log is not None:
            everything = Subscription("log", log_stall, ongoing=True, fatal=True)
            self._outlets.append((everything, self._log))
        self._thread = LastingThread("reporter", self._run, self._struck)

    @property
    def sink_errors(self) -> int:
        """How many records a sink lost, summed over the sinks."""
        return sum(outlet.lost for _, outlet in self._outlets)

    def start(self) -> None:
        for _, outlet in self._outlets:
            outlet.start()
        self._thread.start()

    def put(self, incident: Incident) -> None:
        """Queue an incident. Where the queue is full the oldest gives way, counted."""
        with self._changed:
            if len(self._queue) >= LONGEST_QUEUE:
                self._lose(self._queue.popleft())
            self._queue.append(incident)
            self._changed.notify_all()

    def say(self, notice: Notice) -> None:
        """Have an event logged, if the log is on."""
        if self._log is not None:
            self._log.put(lambda: log_event(notice.level, notice.event, notice.fields))

    def tell_fatal(self, stall: Stall) -> bool:
        """Tell of a stall that an earlier process did not survive; False where nobody listens.

        It is none of this process's, and counts nowhere.
        """
        report = Report(
            stall=stall,
            context=Context(),
            started_ns=round(stall.started_at * 1e9),
            ended_ns=round((stall.started_at + stall.duration) * 1e9),
            error_ns=round(stall.duration_error * 1e9),
            allowed=True,
            fatal=True,
        )
        listening = [(each, outlet) for each, outlet in self._outlets if each.fatal]
        for subscription, outlet in listening:
            outlet.put(partial(subscription.sink, report))
        return bool(listening)

    def sum_up(self) -> None:
        """Log what was seen since this was called last, if anything was."""
        with self._changed:
            summary = self._summary.take()
        if summary is not None:
            self.say(Notice("info", SUMMARY, summary))

    def trouble(self, error: BaseException, struck: str | None = None) -> None:
        """A failure of our own, on any thread: counted, and each kind of it said once.

        Kinds are told apart by where they were raised; but a thread of ours that was `struck` may be so anywhere.
        """
        self.counts.troubles += 1
        kind = f"{type(error).__name__} in {_place(error)}"
        # One that was never raised comes from no place: its words tell it from others.
        mark = kind if error.__traceback__ is not None else str(error)
        if struck is not None:
            mark = f"{type(error).__name__} in thread {struck}"
        if mark not in self._said and len(self._said) < REMEMBERED:
            self._said.add(mark)
            self.say(Notice("warning", TROUBLE, {"trouble": kind, "error": str(error)[:500]}))

    def flush(self, timeout: float) -> bool:
        """Wait until all that was put is told; False where that took longer than `timeout` seconds."""
        until = self._clock() + timeout
        with self._changed:
            if not self._changed.wait_for(lambda: not (self._queue or self._busy), timeout):
                return False
        return all(outlet.flush(until - self._clock()) for _, outlet in self._outlets)

    def stop(self, timeout: float) -> None:
        """Tell what is queued, for `timeout` seconds at most, and end the threads."""
        until = self._clock() + timeout
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.end(timeout)
        self.sum_up()
        for _, outlet in self._outlets:
            outlet.finish()
        for _, outlet in self._outlets:
            outlet.join(until - self._clock())

    def hold(self, timeout: float) -> list[Outlet]:
        """Let no sink begin anything more; those that rest by now, or within `timeout` seconds. To be released."""
        until = self._clock() + timeout
        return [outlet for _, outlet in self._outlets if outlet.hold(until - self._clock())]

    def abandon(self) -> None:
        """In a forked child: take no lock, for nobody is there to give it back."""
        for _, outlet in self._outlets:
            outlet.abandon()

    def _run(self) -> None:
        while (incident := self._next()) is not None:
            self._tell(incident)
            del incident  # it holds a request's context and scope, and the next may come in a week

    def _struck(self, error: BaseException) -> None:
        incident, self._uncounted = self._uncounted, None
        if incident is not None:
            self._lose(incident)
        self.trouble(error)

    def _next(self) -> Incident | None:
        """What to tell next; None when it is time to end."""
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._queue or self._stopping)
            if not self._queue:
                return None
            self._busy = True
            self._uncounted = self._queue.popleft()
            return self._uncounted

    def _lose(self, incident: Incident) -> None:
        """Count a stall that nobody will hear of. What was to be said of it while it lasted is no stall more."""
        if not incident.ongoing:
            with self._changed:
                self.counts.stalls += 1
                self.counts.dropped += 1
            for subscription, outlet in self._outlets:
                if subscription.unexplained is not None:
                    outlet.put(partial(subscription.unexplained, incident))

    def _tell(self, incident: Incident) -> None:
        explained = self._explain(incident)
        stall = explained.stall
        reason = reason_in(explained.context, incident.held.start_ns) or self._ignored(stall)
        if incident.boxed:
            if self._keep is not None and reason is None and stall.cause != "not_scheduled":
                self._keep(stall)
            return
        if stall.ongoing:
            if reason is None and stall.cause != "not_scheduled":
                admitted = self._limits_of_ongoing.admit(stall.fingerprint, self._clock())
                self._hand_out(incident, explained, stall, admitted is not None)
            return
        if reason is not None:
            self._uncounted = None
            self.counts.exempt += 1
            self.counts.exempt_by_reason[reason] += 1
            return
        suppressed = self._limits.admit(stall.fingerprint, self._clock())
        stall = replace(stall, suppressed=suppressed or 0)
        self._count(stall, suppressed is not None)
        self.stalls.append(stall)
        with self._changed:
            self._summary.add(stall)
        self._hand_out(incident, explained, stall, suppressed is not None)

    def _hand_out(
        self, incident: Incident, explained: Explained, stall: Stall, allowed: bool
    ) -> None:
        held, offset = incident.held, incident.wall_offset_ns
        report = Report(
            stall=stall,
            context=explained.context,
            started_ns=held.start_ns + offset,
            ended_ns=held.end_ns + offset,
            error_ns=held.error_ns,
            allowed=allowed,
            thread_id=incident.thread_id,
            request_context=explained.request_context,
            began_ns=held.start_ns,
            withheld_ns=held.beat.run_delay_ns,
        )
        for subscription, outlet in self._outlets:
            if subscription.wants(stall):
                outlet.put(partial(subscription.sink, report))

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
        with self._changed:
            self._uncounted = None
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
