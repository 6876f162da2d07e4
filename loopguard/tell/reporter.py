"""The one thread that explains what is to be told: it takes incidents off a bounded queue and feeds the sinks."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from loopguard.clock import monotonic, monotonic_ns
from loopguard.evidence import Incident, StoodStill, Suffered
from loopguard.exempt import debugger_in, matches, reason_in
from loopguard.lasting import LastingThread
from loopguard.record import Severity, Stall
from loopguard.tell.limits import Limits
from loopguard.tell.log import log_event, log_stall
from loopguard.tell.outlet import Outlet
from loopguard.tell.pending import MOMENT_NS, MOST, MOST_FOLLOWED, Explained, Pending
from loopguard.tell.report import LateDelays, Report, Subscription
from loopguard.tell.summary import Summary

GUARD = "event_loop.guard"
SUMMARY = "event_loop.summary"
TROUBLE = "event_loop.guard.trouble"
LONGEST_QUEUE = 1000
MOST_BOXED = 16
REMEMBERED = 256
MOST_TOLD = 100  # delayed requests in a record
_LONGEST_REST = 0.05  # seconds


class Sufferers(Protocol):
    """Who had to wait for a stall."""

    def of(self, incident: Incident) -> Suffered | None:
        """Those that are known by now; None where nobody looked."""

    def late(
        self, incident: Incident, since_ns: int, known: Collection[object]
    ) -> tuple[StoodStill, ...]:
        """Those that have begun since then; `known` are those told of already."""


Mark = Callable[[Incident, Explained, Sequence[StoodStill]], None]
"""Notes a stall on the spans of the requests that it delayed, and of its own."""


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
    works on one of its own. `woken` is called on these whenever there is something to do, as soon as they have the GIL.
    """

    def __init__(
        self,
        explain: Callable[[Incident], Explained],
        subscriptions: Sequence[Subscription],
        ignore: tuple[str, ...],
        log: bool,
        clock: Callable[[], float] = monotonic,
        keep: Callable[[Stall], None] | None = None,
        sufferers: Sufferers | None = None,
        mark: Mark | None = None,
        woken: Callable[[], object] = lambda: None,
    ) -> None:
        self.counts = Counts()
        self.stalls: deque[Stall] = deque(maxlen=REMEMBERED)
        self._explain = explain
        self._ignore = ignore
        self._clock = clock
        self._keep = keep
        self._sufferers = sufferers
        self._mark = mark
        self._woken = woken
        self._limits = Limits()
        self._limits_of_ongoing = Limits()
        self._queue: deque[Incident] = deque()
        self._boxed: deque[Incident] = deque(maxlen=MOST_BOXED)  # told when nothing else is
        self._pending: deque[Pending] = deque()
        self._followed: deque[Pending] = deque(maxlen=MOST_FOLLOWED)
        self._in_haste = False
        self._said: set[str] = set()
        self._summary = Summary()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._hurried = threading.Condition(self._lock)
        self._busy = False
        self._uncounted: Incident | None = None
        self._stopping = False
        self._outlets = [
            (each, Outlet(each.name, self.trouble, close=each.close, woken=woken))
            for each in subscriptions
        ]
        self._log = Outlet("log", self.trouble, woken=woken) if log else None
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
        """Queue an incident. Where the queue is full the oldest gives way, counted; what is boxed has one of its own."""
        if incident.boxed:
            with self._lock:
                self._boxed.append(incident)
                self._changed.notify_all()
            return
        with self._lock:
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
        with self._lock:
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
        """Have all told that was put, as far as it is known, and wait for that.

        False where that took longer than `timeout` seconds.
        """
        until = self._clock() + timeout
        with self._lock:
            self._in_haste = True
            self._hurried.notify_all()
            self._changed.notify_all()
            if not self._changed.wait_for(self._rests, timeout):
                return False
        return all(outlet.flush(until - self._clock()) for _, outlet in self._outlets)

    def stop(self, timeout: float) -> None:
        """Tell what is queued, for `timeout` seconds at most, and end the threads."""
        until = self._clock() + timeout
        with self._lock:
            self._stopping = True
            self._hurried.notify_all()
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
        while (act := self._next()) is not None:
            self._woken()
            began = self._clock()
            act()
            del act  # it holds a request's context and scope, and the next may come in a week
            if self._queue:
                self._rest(min(self._clock() - began, _LONGEST_REST))

    def _rest(self, seconds: float) -> None:
        """As long as the last act took, so that a flood takes half of a core at most, and leaves the GIL to the loop."""
        with self._lock:
            self._hurried.wait_for(lambda: self._in_haste or self._stopping, seconds)

    def _struck(self, error: BaseException) -> None:
        incident, self._uncounted = self._uncounted, None
        if incident is not None:
            self._lose(incident)
        self.trouble(error)

    def _next(self) -> Callable[[], None] | None:
        """What to do next; None when it is time to end."""
        with self._lock:
            self._busy = False
            while True:
                act = self._due()
                if act is not None:
                    self._busy = True
                    return act
                self._in_haste = False
                self._changed.notify_all()
                if self._stopping:
                    return None
                self._changed.wait(self._seconds_left())

    def _due(self) -> Callable[[], None] | None:
        """What can be done now: stalls are told of in the order in which they ended."""
        now = monotonic_ns()
        if self._queue:
            self._uncounted = self._queue.popleft()
            return partial(self._hear, self._uncounted)
        hasty = self._in_haste or self._stopping
        first = self._pending[0] if self._pending else None
        if first and (hasty or first.due_ns <= now or len(self._pending) > MOST):
            return partial(self._tell, self._pending.popleft())
        later = self._followed[0] if self._followed else None
        if later and (self._stopping or later.due_ns <= now):
            return partial(self._tell_late, self._followed.popleft())
        if self._boxed and not self._stopping:
            self._uncounted = self._boxed.popleft()
            return partial(self._hear, self._uncounted)
        return None

    def _seconds_left(self) -> float | None:
        firsts = [waiting[0].due_ns for waiting in (self._pending, self._followed) if waiting]
        return max(0.0, (min(firsts) - monotonic_ns()) / 1e9) if firsts else None

    def _rests(self) -> bool:
        return not (self._queue or self._pending or self._busy)

    def _lose(self, incident: Incident) -> None:
        """Count a stall that nobody will hear of. What was to be said of it while it lasted is no stall more."""
        if not incident.ongoing:
            with self._lock:
                self.counts.stalls += 1
                self.counts.dropped += 1
            for subscription, outlet in self._outlets:
                if subscription.unexplained is not None:
                    outlet.put(partial(subscription.unexplained, incident))

    def _hear(self, incident: Incident) -> None:
        """Explain an incident; it is told of at once, unless requests may have come in meanwhile."""
        explained = self._explain(incident)
        stall = explained.stall
        held = incident.held
        reason = (
            reason_in(explained.context, held.start_ns)
            or debugger_in(frame.module for look in held.looks for frame in look.stack)
            or self._ignored(stall)
        )
        if incident.ongoing:
            self._uncounted = None
        if incident.boxed:
            if self._keep is not None and reason is None and stall.cause != "not_scheduled":
                self._keep(stall)
            return
        if stall.ongoing:
            if reason is None and stall.cause != "not_scheduled":
                admitted = self._limits_of_ongoing.admit(stall.fingerprint, self._clock())
                stall, _ = self._with_sufferers(incident, stall)
                self._hand_out(incident, explained, stall, admitted is not None, ())
            return
        if reason is not None:
            self._uncounted = None
            self.counts.exempt += 1
            self.counts.exempt_by_reason[reason] += 1
            return
        pending = Pending(incident, explained, incident.held.end_ns + MOMENT_NS)
        if incident.held.beat.aftermath is None:
            self._tell(pending)
            return
        if self._mark is not None:
            self._note(pending, self._with_sufferers(incident, stall)[1])
        self._uncounted = None
        self._pending.append(pending)

    def _tell(self, pending: Pending) -> None:
        incident, explained = pending.incident, pending.explained
        self._uncounted = incident
        now = monotonic_ns()
        stall, delays = self._with_sufferers(incident, explained.stall)
        suppressed = self._limits.admit(stall.fingerprint, self._clock())
        stall = replace(stall, suppressed=suppressed or 0)
        self._count(stall, suppressed is not None)
        self.stalls.append(stall)
        with self._lock:
            self._summary.add(stall)
        self._hand_out(incident, explained, stall, suppressed is not None, delays)
        self._note(pending, delays)
        if incident.held.beat.aftermath is not None:
            self._followed.append(pending.followed(incident.held.beat.aftermath, now))

    def _tell_late(self, pending: Pending) -> None:
        """Tell of requests that have begun since, and may have waited for long."""
        aftermath = pending.incident.held.beat.aftermath
        if aftermath is None or self._sufferers is None:
            return
        more, now = aftermath.more_may_come, monotonic_ns()
        delays = self._sufferers.late(pending.incident, pending.asked_ns, pending.known)
        if delays:
            late = LateDelays(pending.explained.stall, delays)
            for subscription, outlet in self._outlets:
                if subscription.late is not None:
                    outlet.put(partial(subscription.late, late))
            self._note(pending, delays)
        if more and not self._stopping:
            self._followed.append(pending.followed(aftermath, now))
        else:
            aftermath.let_go()

    def _note(self, pending: Pending, delays: Sequence[StoodStill]) -> None:
        """Remember whom it is known of by now, and mark their spans."""
        new = [each for each in delays if each.coroutine not in pending.known]
        try:
            if self._mark is not None:
                self._mark(pending.incident, pending.explained, new)
        except Exception as error:
            self.trouble(error)
        pending.known.update(each.coroutine for each in new)

    def _with_sufferers(
        self, incident: Incident, stall: Stall
    ) -> tuple[Stall, tuple[StoodStill, ...]]:
        """The record with what is known by now of the requests around it. Without that it is told of all the same."""
        try:
            suffered = None if self._sufferers is None else self._sufferers.of(incident)
        except Exception as error:
            self.trouble(error)
            suffered = None
        if suffered is None:
            return stall, ()
        stall = replace(
            stall, in_flight=suffered.in_flight, open_connections=suffered.open_connections
        )
        if not stall.ongoing:
            stall = replace(
                stall,
                delayed=tuple(each.told for each in suffered.delays[:MOST_TOLD]),
                delayed_requests=len(suffered.delays),
                delayed_complete=suffered.complete,
            )
        return stall, suffered.delays

    def _hand_out(
        self,
        incident: Incident,
        explained: Explained,
        stall: Stall,
        allowed: bool,
        delays: tuple[StoodStill, ...],
    ) -> None:
        report = Report(
            stall=stall,
            context=explained.context,
            started_ns=round(stall.started_at * 1e9),
            ended_ns=round((stall.started_at + stall.duration) * 1e9),
            error_ns=round(stall.duration_error * 1e9),
            allowed=allowed,
            thread_id=incident.thread_id,
            request_context=explained.request_context,
            began_ns=incident.held.start_ns,
            withheld_ns=incident.held.beat.run_delay_ns,
            delays=delays,
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
        with self._lock:
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
