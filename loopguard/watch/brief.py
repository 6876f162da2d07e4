"""Runs of loops that may be over at once: noted as they begin, and given a heartbeat only when they last.

To begin a heartbeat and to end it takes longer than a small test's loop; a suite has thousands of them. So one begins
when a run has lasted for half a budget: on the loop itself, or where that is held on the watchdog, which comes by as
often while loops are run at all.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import Context

from loopguard.capture.clocks import RunDelay, own_cpu_ns
from loopguard.capture.contexts import thread_state
from loopguard.capture.frames import UNCOLLECTED, frames_of_threads
from loopguard.capture.looks import Subject
from loopguard.capture.probe import ProbeTimer
from loopguard.clock import monotonic_ns
from loopguard.watch.heartbeat import Earlier, Heartbeat, Watching
from loopguard.watch.loops import foreseen_base
from loopguard.watch.timer import Alarm, Alarms


class _Station:
    """A thread that runs loops, with the tools for a heartbeat at hand; they go to the first run that lasts.

    `loop` is the one that runs now. `lock` is for the moment in which a run ends or is taken up.
    """

    def __init__(
        self, alarm: Alarm, shared: Watching, adopt: Callable[[Heartbeat], object]
    ) -> None:
        self.thread = threading.current_thread()
        self.thread_id = threading.get_ident()
        self.native_id = threading.get_native_id()
        self.thread_state = thread_state()
        self.context_address = shared.context_address()
        self.alarm = alarm
        self.run_delay = RunDelay(self.native_id)
        self.delay_ns = self.run_delay.read()
        self.probe = _probe_timer(shared, self.native_id)
        self.lock = threading.Lock()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.heart: Heartbeat | None = None
        self.began_ns = self.cpu_ns = self.gc_ns = 0
        self.armed = False
        self._shared = shared
        self._adopt = adopt
        self._context = Context()
        self._handle: asyncio.TimerHandle | None = None

    def begin(self, loop: asyncio.AbstractEventLoop, now: int) -> None:
        self.began_ns = now
        self.cpu_ns = own_cpu_ns() or 0
        self.gc_ns = self._shared.collector_ns()
        self.loop = loop
        interval = self._shared.pace.interval_ns / 1e9
        self._handle = loop.call_later(interval, self._lasts, context=self._context)

    def _lasts(self) -> None:
        """On the loop, where it is not held: the first beat of many."""
        try:
            with self.lock:
                heart = self.take_up() if self.heart is None else None
            if heart is not None:
                self._adopt(heart)
                heart.join()
        except Exception as error:
            self._shared.trouble(error)

    def end(self) -> None:
        """The loop has stopped. What has held it until then, and kept the watchdog from coming by, is told all the same."""
        try:
            with self.lock:
                overdue_ns = self.began_ns + self._shared.pace.interval_ns
                overdue = monotonic_ns() - overdue_ns >= self._shared.pace.slack_ns
                heart = self.take_up() if self.heart is None and overdue else None
                self.loop = None
            if heart is not None:
                self._adopt(heart)
            if self._handle is not None:
                self._handle.cancel()
            if self.heart is not None:
                self.heart.stop()
        except Exception as error:
            self._shared.trouble(error)

    def arm(self, cpu_ns: int) -> None:
        """Have the probe go off when the thread has computed for so long; never where it is 0.

        Not at each run, which would cost more than all the rest. Who arms it is the watchdog, and comes by to do so again
        long before that: where it is kept from it, native code keeps the GIL, in a loop or not.
        """
        self.armed = cpu_ns != 0
        if self.probe is not None and self.heart is None:
            self.probe.arm(cpu_ns)

    def take_up(self) -> Heartbeat | None:
        """A heartbeat for the run that goes on; None where it is about to begin or to end."""
        loop = self.loop
        with UNCOLLECTED:
            innermost = frames_of_threads(self.thread_id, self.thread_state).get(self.thread_id)
            base = None if loop is None or innermost is None else foreseen_base(loop, innermost)
        if loop is None or base is None:
            return None
        subject = Subject(
            loop,
            self.thread_id,
            self.native_id,
            self.thread.name,
            self.context_address,
            *base,
            self.thread_state,
        )
        earlier = Earlier(
            subject,
            self.began_ns,
            self.cpu_ns,
            self.gc_ns,
            self.delay_ns,
            self.probe,
            self.run_delay,
        )
        self.heart = Heartbeat(loop, self.alarm, self._shared, earlier)
        return self.heart

    @property
    def spent(self) -> bool:
        """Whether the tools are a heartbeat's, or of no use since the thread has ended."""
        return self.heart is not None or not self.thread.is_alive()


class BriefRuns:
    """The threads that run loops, and what runs on them now. `lasting` is called on the watchdog's thread."""

    def __init__(
        self, alarms: Alarms, shared: Watching, adopt: Callable[[Heartbeat], object]
    ) -> None:
        self._adopt = adopt
        self._alarms = alarms
        self._shared = shared
        self._stations: dict[int, _Station] = {}
        self._left: list[Alarm] = []  # only the watchdog may drop them
        self._asked = False
        self._asked_ns = 0
        self.alarm = alarms.new()

    def begin(self, loop: asyncio.AbstractEventLoop) -> Callable[[], None] | None:
        """Note that a loop begins to run on this thread; None where one runs there already.

        What is returned is to be called when it has stopped.
        """
        station = self._stations.get(threading.get_ident())
        if station is not None and station.thread.is_alive() and station.loop is not None:
            return None
        if station is None or station.spent:
            station = self._new_station()
        now = monotonic_ns()
        station.begin(loop, now)
        if not (self._asked and station.armed):
            station.arm(self._shared.pace.probe_ns)
        if not self._asked:
            station.delay_ns = station.run_delay.read()  # the watchdog has not come by for a while
            self._ask(now)
        return station.end

    def unseen(self) -> bool:
        """Whether a loop has run for a while and the watchdog has yet to come by."""
        until = monotonic_ns() - self._shared.pace.interval_ns
        return any(
            station.loop is not None and station.heart is None and station.began_ns < until
            for station in list(self._stations.values())
        )

    def lasting(self) -> list[Heartbeat]:
        """Heartbeats for the loops that have run for a while."""
        while self._left:
            self._alarms.drop(self._left.pop())
        now = monotonic_ns()
        since, self._asked = self._asked_ns, False
        found: list[Heartbeat] = []
        active = False
        for station in list(self._stations.values()):
            runs = station.loop is not None or station.began_ns >= since
            station.arm(self._shared.pace.probe_ns if runs else 0)
            active = active or runs
            with station.lock:
                lasts = now - station.began_ns >= self._shared.pace.interval_ns // 2
                if station.heart is not None:
                    continue
                if station.loop is None or not lasts:
                    station.delay_ns = station.run_delay.read()
                    continue
                heart = station.take_up()
                found += [heart] if heart is not None else []
        if active:
            self._ask(now)
        return found

    def close(self) -> None:
        """When nothing is watched any more."""
        for thread_id in list(self._stations):
            self._discard(self._stations.pop(thread_id))

    def abandon(self) -> None:
        """In a forked child: the alarms are the parent's, and no timer of the probe's has come along."""
        for station in self._stations.values():
            station.probe = None
            station.run_delay.close()
        self._stations.clear()

    def _ask(self, now: int) -> None:
        self._asked, self._asked_ns = True, now
        self.alarm.arm(now + self._shared.pace.interval_ns)

    def _discard(self, station: _Station) -> None:
        """Give its tools up; those that a heartbeat has are its own."""
        if station.heart is None:
            station.run_delay.close()
            self._left.append(station.alarm)
            if station.probe is not None:
                station.probe.delete()

    def _new_station(self) -> _Station:
        for thread_id, station in list(self._stations.items()):
            if not station.thread.is_alive():
                self._discard(self._stations.pop(thread_id))
        station = _Station(self._alarms.new(), self._shared, self._adopt)
        self._stations[station.thread_id] = station
        return station


def _probe_timer(shared: Watching, native_id: int) -> ProbeTimer | None:
    try:
        return None if shared.probe is None else shared.probe.timer(native_id)
    except OSError as error:  # no more timers are granted
        shared.trouble(error)
        return None
