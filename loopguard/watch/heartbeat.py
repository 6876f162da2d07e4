"""The heartbeat: a callback on the loop that re-arms the alarm, so that it goes off only where the loop is late."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, replace
from types import CodeType
from typing import NamedTuple

from loopguard.capture.aftermath import RequestsAround
from loopguard.capture.clocks import RunDelay, own_cpu_ns, thread_cpu_ns, voluntary_switches
from loopguard.capture.contexts import thread_state
from loopguard.capture.frames import UNCOLLECTED, frames_of_others
from loopguard.capture.looks import Subject
from loopguard.capture.others import OtherThreads
from loopguard.capture.probe import Probe, ProbeTimer
from loopguard.capture.stacks import depth_of
from loopguard.clock import monotonic_ns
from loopguard.evidence import LateBeat
from loopguard.watch.delays import Delays, Ring
from loopguard.watch.load import Spent
from loopguard.watch.loops import foreseen_base, running_base
from loopguard.watch.timer import Alarm

# To read the run delay takes 11 µs. Of beats that come in time every 16th does it: between them little can be withheld.
_EVERY = 16
# Seconds that a loop's clock may differ from ours.
_ANOTHER_CLOCK = 1.0


class Pace(NamedTuple):
    """How closely to watch, in nanoseconds.

    The interval between beats, how late one may be unasked, and how long its thread may compute before the probe goes
    off: long after the watchdog would have been served, had it got the GIL.
    """

    interval_ns: int
    slack_ns: int
    probe_ns: int

    @classmethod
    def of(cls, budget_ns: int) -> Pace:
        """Half a budget, so that a callback of a budget and a beat always meets a beat that is overdue."""
        margin_ns = max(15_000_000, int(3e9 * sys.getswitchinterval()))
        return cls(budget_ns // 2, max(budget_ns // 20, 1_000_000), budget_ns + margin_ns)


@dataclass(slots=True)
class Watching:
    """What all heartbeats share; `pace` is replaced when the budget changes, and read at each beat.

    Failures of ours go to `trouble`, and to `struck` those that break off the watchdog.
    `probe` is None where there is none. How late each beat was goes to `delays`. `aftermath` begins to look whom a loop delays that has not beaten since a given
    time; None where there are no requests to be delayed.
    """

    pace: Pace
    context_address: Callable[[], int | None]
    collector_ns: Callable[[], int]
    trouble: Callable[[BaseException], None]
    struck: Callable[[BaseException], None]
    probe: Probe | None
    others: OtherThreads
    note_threadpool: Callable[[int], None]
    delays: Delays
    aftermath: Callable[[asyncio.AbstractEventLoop, int], RequestsAround | None]


class Earlier(NamedTuple):
    """A run that has gone on for a while: whose it is, what was noted as it began, and the tools for its thread.

    Times in nanoseconds, as in `Heartbeat`.
    """

    subject: Subject
    began_ns: int
    cpu_ns: int
    gc_ns: int
    delay_ns: int | None
    probe: ProbeTimer | None
    run_delay: RunDelay


class Heartbeat:
    """Beats on one loop, from one start of it to its stop. All methods are called on that loop's thread.

    It may be made by the watchdog, for a run that has lasted: an `earlier` one.

    `subject`, `stopped`, `last_ns` and `due_ns` are written there and read by the watchdog; `late` is filled there and emptied
    by the watchdog, `aftermath` the other way round. Each is replaced in one step, so the GIL is lock enough.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        alarm: Alarm,
        shared: Watching,
        earlier: Earlier | None = None,
    ) -> None:
        self.loop = loop
        self.alarm = alarm
        self.subject: Subject | None = None
        self.late: deque[LateBeat] = deque(maxlen=64)
        self.last_ns = 0
        self.due_ns = 0
        self.watched_ns = 0
        self.aftermath: RequestsAround | None = None
        self.stopped = False
        self._shared = shared
        self._ring: Ring | None = shared.delays.ring()
        self._cpu_ns = 0
        self._gc_ns = 0
        self._switches: int | None = None  # not known of a run that was taken up, until it beats
        self._beats = 0
        self._nudged_ns = 0
        self._delay_ns: int | None = None
        self._noted: tuple[int, int] | None = None
        # An empty context of our own: the user's contextvars are not ours to keep alive.
        self._context = Context()
        self._begun = False
        if earlier is not None:
            self._go_on(earlier)
            return
        self.thread_id, self._native_id = threading.get_ident(), threading.get_native_id()
        self.began = Spent(monotonic_ns(), own_cpu_ns() or 0)
        self.probe = self._new_probe(self._native_id)
        self._run_delay = RunDelay(self._native_id)
        self._handle: asyncio.Handle = loop.call_soon(self._first, context=self._context)
        # Only then are we told of its stop.
        self.told_of_stop = not loop.is_running()
        base = foreseen_base(loop) if self.told_of_stop else running_base(loop)
        if base is not None:
            # The first callback, or what is left of the one that runs now, is one of the user's and may hold the loop.
            self.subject = self._describe(*base)
            self._note(monotonic_ns())
            self.alarm.arm(self.due_ns + self._shared.pace.slack_ns)

    def _go_on(self, earlier: Earlier) -> None:
        """Take up a run as if it had been watched since it began. On the watchdog, with the GIL all the while."""
        self.subject = earlier.subject
        self.thread_id, self._native_id = earlier.subject.thread_id, earlier.subject.native_id
        self.began = Spent(earlier.began_ns, earlier.cpu_ns)
        self.last_ns = earlier.began_ns
        self.due_ns = earlier.began_ns + self._shared.pace.interval_ns
        self._cpu_ns, self._gc_ns = earlier.cpu_ns, earlier.gc_ns
        self._delay_ns = earlier.delay_ns
        self.probe, self._run_delay = earlier.probe, earlier.run_delay
        self.told_of_stop = True
        self._handle = asyncio.Handle(self._first, (), self.loop, self._context)

    def join(self) -> None:
        """Begin to beat on a run that was taken up. On the watchdog, and after its first look: this lets the GIL go."""
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._first, context=self._context)

    def stop(self) -> None:
        """The loop stops to run, or is watched no longer. Leaves nothing on it."""
        self.stopped = True
        self._handle.cancel()
        if self.subject is not None:
            now = monotonic_ns()
            if now - self.due_ns >= self._shared.pace.slack_ns:
                self._count(now)
                self.late.append(self._late(now))
            self.watched_ns += now - self.last_ns
        self._give_back_ring()
        self._run_delay.close()
        self.give_up_probe()
        self.alarm.arm(1)

    def leave(self) -> None:
        """The loop has stopped some time ago. On any thread, for nothing of it runs."""
        self.stopped = True
        self._handle.cancel()
        self._give_back_ring()
        self._run_delay.close()
        self.give_up_probe()

    def _give_back_ring(self) -> None:
        """Once: the next loop may have it by now."""
        ring, self._ring = self._ring, None
        if ring is not None:
            self._shared.delays.give_back(ring)

    def _new_probe(self, native_id: int) -> ProbeTimer | None:
        try:
            return None if self._shared.probe is None else self._shared.probe.timer(native_id)
        except OSError as error:  # no more timers are granted
            self._shared.trouble(error)
            return None

    def give_up_probe(self) -> None:
        """On any thread."""
        if self.probe is not None:
            self.probe.delete()

    def abandon(self) -> None:
        """In a forked child: the loop is the parent's, and its timer is not to be touched."""
        self.stopped = True
        self._run_delay.close()

    @property
    def on_this_thread(self) -> bool:
        return self.subject is not None and self.subject.thread_id == threading.get_ident()

    @property
    def is_overdue(self) -> bool:
        """Whether the loop runs and has not beaten in time. To be asked on another thread."""
        late_ns = monotonic_ns() - self.due_ns
        watched = self.subject is not None and not self.stopped and self.loop.is_running()
        return watched and late_ns >= self._shared.pace.slack_ns

    def nudge(self) -> None:
        """Have it beat as soon as the loop is free, if the loop's own clock stands still: then no timer of it goes off.

        On the watchdog, where a beat is overdue. That is so in tests which freeze time.
        """
        loop = self.loop
        if self._nudged_ns == self.last_ns or not isinstance(loop, asyncio.BaseEventLoop):
            return
        if abs(loop.time() - monotonic_ns() / 1e9) > _ANOTHER_CLOCK:
            self._nudged_ns = self.last_ns
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self.renew, context=self._context)

    def renew(self) -> None:
        """Beat now, and from now on at the new pace: the next beat was planned at the old one."""
        if self.stopped or self.subject is None:
            return
        if self._begun:
            self._handle.cancel()
            self._beat()
        elif self.is_overdue:
            # The callback that began before the first beat still runs: it has held the loop until now.
            now = monotonic_ns()
            self._count(now)
            self.late.append(self._late(now))
            self._note(now)
            self.alarm.arm(1)

    def _first(self) -> None:
        if self.stopped:  # it ran on for so short a time only
            return
        frame = sys._getframe(1)
        foreseen, self.subject = self.subject, self._describe(depth_of(frame), frame.f_code)
        self._begun = True
        if foreseen == self.subject:
            self._beat()
            return
        self._next(monotonic_ns())
        self.alarm.arm(self.due_ns + self._shared.pace.slack_ns)

    def _describe(self, base_depth: int, base_code: CodeType) -> Subject:
        return Subject(
            loop=self.loop,
            thread_id=threading.get_ident(),
            native_id=threading.get_native_id(),
            thread_name=threading.current_thread().name,
            context_address=self._shared.context_address(),
            base_depth=base_depth,
            base_code=base_code,
            thread_state=thread_state(),
        )

    def _beat(self) -> None:
        if self.stopped:
            return
        try:
            now = monotonic_ns()
            slack = self._shared.pace.slack_ns
            self.watched_ns += now - self.last_ns
            self._count(now)
            if now - self.due_ns < slack:
                self._next(now)
                self._shared.others.note(now)
                self._shared.note_threadpool(now)
                self.alarm.arm(self.due_ns + slack)
            else:
                late = self._late(now)
                self._look_after(now)
                self.late.append(replace(late, aftermath=self.aftermath_so_far()))
                self.aftermath = None
                self._next(now)
                self.alarm.arm(1)
        except Exception as error:
            self._shared.trouble(error)

    def _count(self, now: int) -> None:
        """Keep how late a beat is. One that was called early, as when the budget changes, says nothing of the loop."""
        late, pace = now - self.due_ns, self._shared.pace
        if late > -pace.slack_ns and self._ring is not None:
            self._ring.write(max(0, late), pace.interval_ns)

    def _look_after(self, now: int) -> None:
        """Look who has waited, where a callback may have been over budget since the last beat."""
        begun = self.aftermath_so_far()
        if now - self.last_ns < 2 * self._shared.pace.interval_ns:
            if begun is not None:
                begun.dismiss()
            return
        self.aftermath = begun or self._shared.aftermath(self.loop, self.last_ns)
        if self.aftermath is not None:
            self.aftermath.look()

    def aftermath_so_far(self) -> RequestsAround | None:
        """What the watchdog has begun since the last beat: it may come too late with it, when the next beat has been."""
        begun = self.aftermath
        return begun if begun is not None and begun.since_ns == self.last_ns else None

    def _next(self, now: int) -> None:
        self._note(now)
        interval = self._shared.pace.interval_ns
        self._handle = self.loop.call_later(interval / 1e9, self._beat, context=self._context)

    def _note(self, now: int) -> None:
        """A beat, or the begin of a run: from now on the next is waited for."""
        interval, slack, probe_ns = self._shared.pace
        if now - self.due_ns > slack // 2 or self._beats % _EVERY == 0:
            self._delay_ns = self._run_delay.read()
        self._beats += 1
        self.last_ns = now
        self.due_ns = now + interval
        self._cpu_ns = own_cpu_ns() or 0
        self._gc_ns = self._shared.collector_ns()
        self._switches = voluntary_switches()
        self._noted = None
        if self.probe is not None:
            self.probe.arm(probe_ns)

    def note_run_delay(self) -> None:
        """Called by the watchdog, before its first look since a beat. Not every beat has time for it."""
        if self._noted is None:
            delay = self._run_delay.read()
            self._noted = None if delay is None else (monotonic_ns(), delay)

    def spent(self) -> Spent:
        """What its thread has spent until now; until its last beat, where the system does not tell of other threads."""
        now, cpu_ns = monotonic_ns(), thread_cpu_ns(self._native_id)
        if cpu_ns is None:
            return Spent(self.last_ns, self._cpu_ns)
        if self.late or now - self.due_ns < self._shared.pace.slack_ns:
            return Spent(now, cpu_ns)
        return Spent(now, cpu_ns, max(0, now - self.due_ns - (cpu_ns - self._cpu_ns)))

    def _late(self, now: int) -> LateBeat:
        """A beat that came late. Who was in the way comes first: it goes on as soon as the GIL is free.

        Where this thread gets the GIL before the watchdog does, nobody sees it earlier.
        """
        own = threading.get_ident()
        with UNCOLLECTED:
            frames = frames_of_others(own, None)
            other = self._shared.others.in_the_way(frames, own, now - self.due_ns)
        switches = None if self._switches is None else voluntary_switches() - self._switches
        return replace(self.overdue(now, own_cpu_ns()), switches=switches, other=other)

    def overdue(self, now: int, cpu_ns: int | None) -> LateBeat:
        """The beat that is late by now, as if it had come. `cpu_ns` is the CPU clock of the loop's thread, if known."""
        return LateBeat(
            last_ns=self.last_ns,
            due_ns=self.due_ns,
            at_ns=now,
            cpu_start_ns=self._cpu_ns,
            cpu_ns=None if cpu_ns is None else cpu_ns - self._cpu_ns,
            gc_ns=self._shared.collector_ns() - self._gc_ns,
            run_delay_ns=self._estimated_run_delay(now),
            aftermath=self.aftermath_so_far(),
        )

    def _estimated_run_delay(self, now: int) -> int | None:
        """Since the first look it is known. Before that it was no more than since it was last read, some beats ago."""
        delay = self._run_delay.read()
        if delay is None or self._delay_ns is None:
            return None
        since, before = self._noted or (now, delay)
        return delay - before + min(before - self._delay_ns, since - self.last_ns)
