"""The one thread that looks: it sleeps in the kernel until a loop is overdue, and looks until it beats again."""

from __future__ import annotations

import asyncio
import errno
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol
from uuid import uuid4

from loopguard.capture import iteration, probed
from loopguard.capture.cgroup import Throttling
from loopguard.capture.clocks import RunDelay, voluntary_switches
from loopguard.capture.looks import Observer
from loopguard.capture.probe import Dump
from loopguard.capture.probed import TICK_NS
from loopguard.clock import monotonic_ns, unix_ns
from loopguard.evidence import Held, Incident, LateBeat, Look
from loopguard.lasting import LastingThread
from loopguard.record import Phase
from loopguard.watch.brief import BriefRuns
from loopguard.watch.detector import find_congestion, find_stalls
from loopguard.watch.early import Early
from loopguard.watch.heartbeat import Heartbeat, Pace, Watching
from loopguard.watch.kept_waiting import share, what_went_on, with_what_went_on
from loopguard.watch.loops import is_uvloop
from loopguard.watch.timer import Alarm, Alarms

# Looks follow each other at this part of the budget while a verdict is near, and at this part of the callback's age
# after it: a stall of an hour gets some two hundred.
_OF_BUDGET = 12
_OF_AGE = 16
_QUICKEST_NS = 1_000_000
_AT_ONCE = 3  # looks, where each takes long
# Whom a callback delays is looked at when it may have run for this part of the budget: once, before it can be over.
_GLANCED_FROM = 0.8
# Seconds before it watches again after failures: so much for each in a row, up to so much.
_RESTED = 0.01
_MOST_RESTED = 5.0


class Box(Protocol):
    """Is told which stalls last; see `black_box`."""

    def opened(self, id: str) -> None: ...  # noqa: A002 - as the record calls it
    def ended(self, id: str) -> None: ...  # noqa: A002


@dataclass(slots=True)
class _Watch:
    """One heartbeat, and the looks since it was last heard.

    `next_ns` is the time for which the next look was asked, `since_ns` when the callback that runs was first seen.
    `lent` are looks that another thread took in the watchdog's place, and `looking` is had by who takes one.
    """

    heart: Heartbeat
    early: Early
    looks: list[Look] = field(default_factory=list)
    lent: deque[Look] = field(default_factory=deque)
    looking: threading.Lock = field(default_factory=threading.Lock)
    next_ns: int = 0
    since_ns: int = 0
    read_iteration: iteration.Reader | None = None

    def add(self, look: Look) -> None:
        last = self.looks[-1] if self.looks else None
        if last is None or last.key != look.key:
            self.since_ns = look.at_ns
        if last is not None and last.stack == look.stack:
            look = replace(look, stack=last.stack)  # keep it once
        self.looks.append(look)


class Watchdog:
    """Watches loops from a thread of its own, and hands incidents on.

    Everything but `_watches` is touched by that thread alone; a loop's own thread adds its watch, in one step.
    """

    def __init__(
        self,
        observer: Observer,
        alarms: Alarms,
        shared: Watching,
        budget_ns: int,
        congestion_ns: int,
        hand_on: Callable[[Incident], None],
        surroundings: Callable[[Held], tuple[Phase | None, int]],
        box: Box | None = None,
    ) -> None:
        self.budget_ns = budget_ns
        self.congestion_ns = congestion_ns
        self.looks = 0
        self.restarts = 0
        self._failures = 0
        self._observer = observer
        self._alarms = alarms
        self._shared = shared
        self._hand_on = hand_on
        self._surroundings = surroundings
        self._box = box
        self._watches: dict[Alarm, _Watch] = {}
        self._brief = BriefRuns(alarms, shared, self._adopt)
        self._watched_ns = 0
        self._paused = False
        self._resumed_ns = 0
        self._stopping = False
        self._dumps: deque[Dump] = deque(maxlen=16)
        self._layout: iteration._Layout | None = None
        self._sought = False
        self._own_delay: RunDelay | None = None
        self._counted = 0, 0
        self._throttling = Throttling()
        self._thread = self._new_thread()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let go of all loops and end the thread. Heartbeats are to be stopped on their own threads."""
        self._stopping = True
        self._alarms.wake()
        self._thread.end(timeout=1)

    def abandon(self) -> None:
        """In a forked child, where the thread is not: let go of all loops without a word to the parent.

        The timers are shared with the parent, so they are closed and never disarmed.
        """
        self._alarms.close()
        if self._own_delay is not None:
            self._own_delay.close()
        self._brief.abandon()
        for watch in self._watches.values():
            watch.heart.abandon()
        self._watches.clear()

    def begin(self, loop: asyncio.AbstractEventLoop) -> Heartbeat:
        """Watch a loop from its next iteration on. On the loop's thread."""
        for earlier in self.hearts:
            if earlier.loop is loop:  # it ran when it was begun, and has stopped since, unnoticed
                earlier.leave()
        if self._alarms.lost:
            self._begin_anew()
        heart = Heartbeat(loop, self._alarms.new(), self._shared)
        self._adopt(heart)
        return heart

    def _begin_anew(self) -> None:
        """Somebody closed our files, as a daemon closes all: watch with new ones. The old thread waits for ever."""
        self._watches.clear()
        self._alarms.renew()
        self._brief = BriefRuns(self._alarms, self._shared, self._adopt)
        self._thread = self._new_thread()
        self._thread.start()
        self.restarts += 1
        self._shared.struck(OSError(errno.EBADF, "the files of the watch were closed"))

    def _new_thread(self) -> LastingThread:
        return LastingThread("watchdog", self._run, self._struck)

    def note(self, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
        """Watch a loop that is about to run, if it lasts; returns what ends that. On the loop's thread."""
        return self._brief.begin(loop) or self.begin(loop).stop

    @property
    def at_work(self) -> bool:
        """Whether any loop is watched closely, or should be. If none is, and it has not woken, nothing was found."""
        return bool(self._watches) or self.behind

    @property
    def behind(self) -> bool:
        """Whether a loop has run for a while unseen; that is over in a moment."""
        return self._brief.unseen()

    def close_brief(self) -> None:
        """Once no loop is to be noted any more."""
        self._brief.close()

    def set_budget(self, budget_ns: int, congestion_ns: int) -> None:
        self.budget_ns = budget_ns
        self.congestion_ns = congestion_ns
        self._shared.pace = Pace.of(budget_ns)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._resumed_ns = monotonic_ns()
        self._paused = False

    @property
    def paused(self) -> bool:
        return self._paused

    @property
    def hearts(self) -> list[Heartbeat]:
        return [watch.heart for watch in list(self._watches.values()) if not watch.heart.stopped]

    @property
    def watched_ns(self) -> int:
        """Nanoseconds for which loops were watched, summed over all."""
        return self._watched_ns + sum(
            watch.heart.watched_ns for watch in list(self._watches.values())
        )

    def stand_in(self) -> None:
        """Look at the loops for which the watchdog is late, on another thread of ours that got the GIL before it.

        Who holds it after a native call that kept it is a matter of luck, and nobody else may see what called that.
        """
        try:
            for watch in list(self._watches.values()):
                last = [*watch.looks[-1:], *watch.lent][-1:]
                asked_ns = max([self._asked_ns(watch), *(look.at_ns for look in last)])
                if monotonic_ns() - asked_ns > 2 * _switch_ns():
                    watch.lent.extend(self._look(watch, asked_ns))
        except Exception as error:
            self._shared.trouble(error)

    def settle(self, timeout: float) -> bool:
        """Wait until every beat that came late is judged; False where that took longer than `timeout` seconds."""
        until = monotonic_ns() + int(timeout * 1e9)
        while any(watch.heart.late for watch in list(self._watches.values())):
            if monotonic_ns() > until:
                return False
            time.sleep(0.001)
        return True

    def _run(self) -> None:
        """Watch until told to stop. After failures it begins anew, and more slowly while nothing succeeds."""
        until = monotonic_ns() + int(1e9 * min(_RESTED * self._failures, _MOST_RESTED))
        while monotonic_ns() < until and not self._stopping:
            time.sleep(_RESTED)
        if threading.current_thread() is not self._thread:
            return  # another watches in its place
        while not self._stopping:
            self._watch()
        self._alarms.close()

    def _struck(self, error: BaseException) -> None:
        self.restarts += 1
        self._failures += 1
        self._shared.struck(error)

    def _watch(self) -> None:
        self._shared.others.watchdog = native_id = threading.get_native_id()
        self._find_layout()
        self._shared.others.gil.find()
        self._shared.others.find_foreign()
        for alarm, watch in list(self._watches.items()):
            self._prepare(watch)
            alarm.arm(1)  # where a look was broken off, nobody else asks for the next
        self._own_delay = own_delay = RunDelay(native_id)
        self._counted = voluntary_switches(), own_delay.read() or 0
        try:
            while not self._stopping:
                self._round(own_delay)
                self._failures = 0
        finally:
            own_delay.close()

    def _round(self, own_delay: RunDelay) -> None:
        if not any(heart.late or heart.due_ns < monotonic_ns() for heart in self.hearts):
            self._counted = voluntary_switches(), own_delay.read() or 0
            self._shared.others.find_foreign()
        switches, delay = self._counted

        def waited() -> tuple[int, int]:
            """How often it asked for the GIL since the loops were on time, or it last counted; how long it had no CPU."""
            self._counted = voluntary_switches(), own_delay.read() or 0
            return self._counted[0] - switches, self._counted[1] - delay

        gone_off = self._alarms.wait()
        self.looks += 1
        taken_up = self._brief.lasting() if self._brief.alarm in gone_off else []
        gone_off += [self._adopt(heart) for heart in taken_up]
        for alarm in gone_off:
            watch = self._watches.get(alarm)
            if watch is None:
                continue
            seen = self._looks(watch)
            waits, starved = waited()
            for look in share(seen, waits, starved):
                for each in with_what_went_on(look, watch.looks, self.budget_ns, _switch_ns()):
                    watch.add(each)
            self._look_back(watch, seen, waits, starved)
            self._glance(watch, seen)
            if seen and not watch.heart.late:
                self._let_go(watch, watch.looks[-1].key)
                self._tell_early(watch, watch.looks[-1])
            self._judge(watch, waited)
            self._plan(alarm, watch)
        for heart in taken_up:
            heart.join()
        self._find_layout()

    def _adopt(self, heart: Heartbeat) -> Alarm:
        """Watch a run that has lasted; it may be overdue already. On its thread, or the watchdog's."""
        self._watches[heart.alarm] = watch = _Watch(heart, Early(self._box is not None))
        self._prepare(watch)
        if is_uvloop(heart.loop) and not self._sought:
            self._alarms.wake()
        return heart.alarm

    def _looks(self, watch: _Watch) -> list[Look]:
        """What was lent, and a look; and another where the GIL was lost in mid-look: what runs by then may be another
        callback, and nobody sees that if it keeps the GIL until it ends."""
        seen = _taken(watch.lent)
        for _ in range(_AT_ONCE):
            asked_ns = max([self._asked_ns(watch), *(look.at_ns for look in seen)])
            own = self._look(watch, asked_ns)
            seen += own
            if not own or monotonic_ns() - own[-1].at_ns <= 2 * _switch_ns():
                break
        return seen

    def _asked_ns(self, watch: _Watch) -> int:
        return max(watch.next_ns, watch.heart.due_ns + self._shared.pace.slack_ns)

    def _look(self, watch: _Watch, asked_ns: int) -> list[Look]:
        """A look, if the loop is overdue. Nothing here may let the GIL go before it."""
        heart = watch.heart
        # Served: from now on anew. Never disarmed, for native code may get the GIL before this is over.
        self._arm_probe(heart, self._shared.pace.probe_ns)
        subject = heart.subject
        if heart.stopped or self._paused or subject is None:
            return []
        if monotonic_ns() < asked_ns or not watch.looking.acquire(blocking=False):
            return []
        try:
            if not heart.loop.is_running():
                if not heart.told_of_stop:  # it ran already when it was begun
                    heart.leave()
                return []
            # Before the look, which lets the GIL go: the beat that ends the stall may come in the midst of it.
            heart.note_run_delay()
            dumps = partial(self._dumps_of, heart, heart.last_ns, monotonic_ns())
            return self._observer.look(subject, asked_ns, watch.read_iteration, dumps)
        finally:
            watch.looking.release()

    def _look_back(self, watch: _Watch, seen: list[Look], gil_waits: int, starved_ns: int) -> None:
        """Add what is known of the time that the watchdog then waited for the GIL: to look at all, or in mid-look."""
        heart = watch.heart
        if heart.subject is None or not (seen or heart.late):
            return
        beat = heart.late[-1] if heart.late else heart.overdue(monotonic_ns(), None)
        overdue = max(watch.next_ns, beat.due_ns + self._shared.pace.slack_ns)
        asked = max([look.at_ns for look in seen if look.at_ns <= beat.at_ns], default=overdue)
        if asked < beat.at_ns:
            too_late = self._too_late(heart, asked, beat, gil_waits, starved_ns)
            earlier = [look for look in watch.looks if look.at_ns <= beat.at_ns]
            for look in what_went_on(too_late, earlier, self.budget_ns, _switch_ns()):
                watch.add(look)

    def _too_late(
        self, heart: Heartbeat, asked_ns: int, beat: LateBeat, gil_waits: int, starved_ns: int
    ) -> Look:
        """What is left to see of the time until the beat; the beat itself may have seen who was in the way."""
        assert heart.subject is not None  # it has beaten
        look = self._observer.too_late(heart.subject, asked_ns, beat.at_ns)
        other = beat.other or look.other
        return replace(look, other=other, gil_waits=gil_waits, starved_ns=starved_ns)

    def _glance(self, watch: _Watch, seen: list[Look]) -> None:
        """Look who waits for a callback that may be over budget soon; once for each."""
        heart, look = watch.heart, seen[-1] if seen else None
        if look is None or look.key is None or heart.late:
            return
        begun = heart.aftermath_so_far()
        aftermath = begun or self._shared.aftermath(heart.loop, heart.last_ns)
        if aftermath is None or aftermath.glanced(look.key):
            return
        since_ns = heart.last_ns
        if begun is not None:
            others = (each.at_ns for each in watch.looks if each.key != look.key)
            since_ns = max(others, default=since_ns)
        if look.at_ns - since_ns >= _GLANCED_FROM * self.budget_ns:
            heart.aftermath = aftermath
            aftermath.glance(look.key, lambda: bool(heart.late) or heart.stopped)

    def _dumps_of(self, heart: Heartbeat, begin_ns: int, end_ns: int) -> list[Dump]:
        """What the probe saw in that time, if no other loop was late: a dump does not say of which it is."""
        if self._shared.probe is None:
            return []
        self._dumps.extend(self._shared.probe.read())
        found = [
            dump for dump in self._dumps if begin_ns <= dump.at_ns + TICK_NS and dump.at_ns < end_ns
        ]
        for dump in found:
            self._dumps.remove(dump)
        alone = not any(other is not heart and other.due_ns < end_ns for other in self.hearts)
        return found if alone else []

    def _tell_early(self, watch: _Watch, look: Look) -> None:
        """Tell of a callback while it holds the loop, so that it is out before a supervisor kills the process.

        Not by a look that was kept waiting: what held the loop may be over since.
        """
        heart = watch.heart
        if heart.last_ns < self._resumed_ns:
            return
        kept_waiting = look.key is None or look.late_ns > self.budget_ns
        most_ns = look.at_ns - heart.last_ns
        if kept_waiting or not watch.early.may_be_due(look.key, most_ns, self.budget_ns):
            return
        beat = heart.overdue(look.at_ns, look.cpu_ns)
        for held in self._stalls_in(beat, watch.looks):
            if held.looks[-1:] != (look,):
                continue
            keep, tell = watch.early.due(look.key, held.end_ns - held.start_ns, self.budget_ns)
            if not (keep or tell):
                continue
            so_far = self._incident(watch, held, ongoing=True)
            if keep and self._box is not None:
                self._box.opened(so_far.id)
                self._hand_on(replace(so_far, boxed=True))
            if tell:
                self._hand_on(so_far)

    def _let_go(self, watch: _Watch, key: object) -> None:
        """Have the black box forget what stands in it, unless that callback still runs: `key`, None where none does."""
        kept = watch.early.let_go(key)
        if kept is not None and self._box is not None:
            self._box.ended(kept)

    def _judge(self, watch: _Watch, waited: Callable[[], tuple[int, int]]) -> None:
        """Draw the verdict on each beat that came late."""
        if watch.heart.late or watch.heart.stopped or self._paused:
            self._let_go(watch, None)
        judged = False
        while watch.heart.late:
            beat = watch.heart.late[0]
            watch.looks += share(_taken(watch.lent), *waited()) if watch.lent else []
            looks = [look for look in watch.looks if beat.last_ns <= look.at_ns <= beat.at_ns]
            watch.looks = [look for look in watch.looks if look.at_ns > beat.at_ns]
            if not looks:  # it came since the watchdog looked back
                overdue = min(beat.due_ns + self._shared.pace.slack_ns, beat.at_ns)
                looks = [self._too_late(watch.heart, overdue, beat, *waited())]
            looks = self._with_missed(watch.heart, beat, looks)
            try:
                if not self._paused and beat.last_ns >= self._resumed_ns:
                    held_at_all = self._stalls_in(beat, looks)
                    for held in held_at_all or find_congestion(beat, looks, self.congestion_ns):
                        self._hand_on(self._incident(watch, held))
            finally:
                watch.early.clear()
                watch.heart.late.popleft()
                judged = True
        if judged:
            self._throttling.note()

    def _with_missed(self, heart: Heartbeat, beat: LateBeat, looks: list[Look]) -> list[Look]:
        """The looks with what the probe saw beside them."""
        dumps = self._dumps_of(heart, beat.last_ns, beat.at_ns)
        overdue_ns = min(beat.due_ns + self._shared.pace.slack_ns, beat.at_ns)
        depth = 0 if heart.subject is None else heart.subject.base_depth
        return probed.among(looks, dumps, overdue_ns, beat.at_ns, depth)

    def _stalls_in(self, beat: LateBeat, looks: list[Look]) -> list[Held]:
        return find_stalls(beat, looks, self.budget_ns, _switch_ns())

    def _incident(self, watch: _Watch, held: Held, ongoing: bool = False) -> Incident:
        subject = watch.heart.subject
        assert subject is not None  # it has beaten, or nothing could be late
        early = watch.early.id_of(held.looks[-1].key) if held.looks else None
        phase, in_flight = self._surroundings(held)
        kind = type(subject.loop)
        return Incident(
            id=early or uuid4().hex,
            ongoing=ongoing,
            held=held,
            budget_ns=self.congestion_ns if held.together else self.budget_ns,
            thread=subject.thread_name,
            thread_id=subject.thread_id,
            loop=f"{kind.__module__}.{kind.__qualname__}",
            phase=phase,
            in_flight=in_flight,
            wall_offset_ns=unix_ns() - monotonic_ns(),
            throttled=self._throttling.since_noted(),
        )

    def _plan(self, alarm: Alarm, watch: _Watch) -> None:
        """Ask for the next look, or wait for the next beat to be overdue."""
        heart = watch.heart
        if heart.stopped:
            if not heart.late:
                self._watched_ns += heart.watched_ns
                self._watches.pop(alarm, None)
                self._alarms.drop(alarm)
            return
        if heart.subject is None:  # its first beat is still to come, and arms the alarm
            return
        now, overdue = monotonic_ns(), heart.due_ns + self._shared.pace.slack_ns
        if now < overdue:
            watch.next_ns = 0
            alarm.arm(overdue)
            self._arm_probe(heart, self._shared.pace.probe_ns)
            return
        heart.nudge()
        age = now - watch.since_ns if watch.looks else 0
        gap = self.budget_ns // _OF_BUDGET if age < 2 * self.budget_ns else age // _OF_AGE
        watch.next_ns = now + max(gap, _QUICKEST_NS)
        alarm.arm(watch.next_ns)
        self._arm_probe(heart, watch.next_ns - now + self._shared.pace.probe_ns // 2)

    def _arm_probe(self, heart: Heartbeat, cpu_ns: int) -> None:
        if heart.probe is not None:
            heart.probe.arm(cpu_ns)

    def _find_layout(self) -> None:
        """Find out uvloop's layout as soon as a loop of its runs, and no sooner: a private loop is needed for it, and a
        daemon that closed the files of that one, after the install, would be aborted by libuv."""
        watches = [watch for watch in list(self._watches.values()) if is_uvloop(watch.heart.loop)]
        if watches and not self._sought:
            self._sought = True
            self._layout = iteration.find_layout()
            for watch in watches:
                self._prepare(watch)

    def _prepare(self, watch: _Watch) -> None:
        """Find out how to read this loop's iterations; again where it began before uvloop's layout was known."""
        loop = watch.heart.loop
        if is_uvloop(loop):
            watch.read_iteration = iteration.uvloop_reader(loop, self._layout)
        elif isinstance(loop, asyncio.BaseEventLoop):
            watch.read_iteration = iteration.from_run_once


def _taken(lent: deque[Look]) -> list[Look]:
    return [lent.popleft() for _ in range(len(lent))]


def _switch_ns() -> int:
    """The interpreter's switch interval, which may be changed while it runs."""
    return int(sys.getswitchinterval() * 1e9)
