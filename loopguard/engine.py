"""All parts of a running guard, wired together: from the options to running threads, and back to nothing."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial

from loopguard.apps import App, Apps
from loopguard.black_box.box import BlackBox
from loopguard.black_box.remains import Head
from loopguard.black_box.search import collect
from loopguard.capture import system_calls
from loopguard.capture.aftermath import RequestsAround
from loopguard.capture.clocks import run_delay_works, thread_cpu_works
from loopguard.capture.collector import CollectorClock
from loopguard.capture.contexts import ContextReader
from loopguard.capture.lifespan import Lifespan
from loopguard.capture.looks import Observer
from loopguard.capture.others import OtherThreads
from loopguard.capture.probe import new_probe
from loopguard.capture.requests import RequestTable
from loopguard.capture.threadpool import ThreadLimiters
from loopguard.clock import monotonic
from loopguard.config import Config
from loopguard.evidence import Held, Incident
from loopguard.explain.explainer import Explainer, severity_of
from loopguard.explain.sufferers import Sufferers
from loopguard.lasting import LastingThread
from loopguard.record import Phase, Process, Severity, Stall
from loopguard.tell.identity import Identity, own_version
from loopguard.tell.jsonl import JsonLines
from loopguard.tell.marks import Marks
from loopguard.tell.metrics import Metrics, Sources
from loopguard.tell.report import Report, Subscription
from loopguard.tell.reporter import GUARD, Notice, Reporter
from loopguard.tell.spans import Spans
from loopguard.watch.delays import Delays
from loopguard.watch.heartbeat import Heartbeat, Pace, Watching
from loopguard.watch.load import Load
from loopguard.watch.loops import loops_elsewhere
from loopguard.watch.timer import Alarms, new_alarms
from loopguard.watch.watchdog import Watchdog


class Engine:
    """All parts of a running guard, wired together."""

    def __init__(
        self,
        config: Config,
        apps: Apps,
        subscriptions: Sequence[Subscription],
        brief: bool,
    ) -> None:
        self._apps = apps
        self._brief = brief
        self._config = config
        self._identity = Identity()
        self._requests = RequestTable()
        self._lifespan = Lifespan(self._sum_up, self._sum_up_at_once)
        self._collector = CollectorClock()
        self._contexts = ContextReader()
        self._running = False
        self._ending = threading.Event()
        self._caught_up_at = 0
        self._given_up: set[int] = set()
        native_id = threading.get_native_id()
        self._evidence = {
            "thread_cpu": thread_cpu_works(),
            "contexts": self._contexts.reads_threads,
            "system_calls": system_calls.works(native_id),
            "run_delay": run_delay_works(native_id),
        }
        self._box_missing: OSError | None = None
        self._box = self._new_box()
        dump = None if self._box is None else self._box.dump
        self._probe = new_probe(dump) if config.probe else None
        self._evidence["probe"] = self._probe is not None
        self._delays = Delays()
        self._threadpool = ThreadLimiters()
        self._load = Load(lambda: self.watchdog.hearts)
        self._metrics = self._new_metrics() if config.metrics else None
        self.reporter = Reporter(
            self._explainer().explain,
            [*self._own_subscriptions(), *subscriptions],
            config.ignore,
            config.log,
            keep=None if self._box is None else self._box.keep,
            sufferers=Sufferers(apps.route, rest=self._give_way),
            mark=Marks(self._trouble) if config.traces else None,
            woken=self._look_first,
        )
        others = OtherThreads()
        alarms: Alarms = new_alarms(lambda: self._config.budget / 2)
        self._evidence["kernel_timer"] = alarms.kernel
        self.watchdog = Watchdog(
            observer=Observer(
                contexts=self._contexts,
                request_of=self._requests.of,
                cpu_clock=self._evidence["thread_cpu"],
                system_calls=self._evidence["system_calls"],
                others=others,
                own=apps.seem_to_own,
            ),
            alarms=alarms,
            shared=Watching(
                pace=Pace.of(int(config.budget * 1e9)),
                context_address=self._contexts.address,
                collector_ns=self._collector.read,
                trouble=self.reporter.trouble,
                struck=partial(self.reporter.trouble, struck="watchdog"),
                probe=self._probe,
                others=others,
                note_threadpool=self._threadpool.note,
                delays=self._delays,
                aftermath=self._aftermath,
            ),
            budget_ns=int(config.budget * 1e9),
            congestion_ns=int(config.congested_from * 1e9),
            hand_on=self._hand_on,
            surroundings=self._surroundings,
            box=self._box,
        )
        self._searching = LastingThread("black-box-search", self._search_box, self._trouble)

    def start(self) -> None:
        path = self._config.jsonl
        if path is not None and not path.exists():
            path.touch(mode=0o600)
        self._running = True
        self.reporter.start()
        if self._box is not None:
            self._box.start()
        self.watchdog.start()
        self._collector.start()
        if self._metrics is not None:
            self._metrics.start()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        self.reporter.say(Notice("info", GUARD, self._introduction(loop)))
        if self._box_missing is not None:
            self.reporter.trouble(self._box_missing)
        if self._config.black_box is not None:
            self._searching.start()
        if loop is not None:
            self.begin(loop)

    def stop(self, exiting: bool = False) -> None:
        """Where the interpreter is `exiting`, what was counted may still be collected: an SDK does so at its end."""
        if not self._running:
            return
        self._running = False
        hearts = self.watchdog.hearts
        for heart in hearts:
            _on_its_thread(heart, heart.stop)
        self.watchdog.settle(timeout=0.5)
        self.watchdog.stop()
        for heart in hearts:
            heart.give_up_probe()  # one that goes off after this would find nobody
        self.watchdog.close_brief()
        if self._probe is not None:
            self._probe.close()
        self._ending.set()
        self._searching.end(timeout=_LAST_WORDS)
        self.reporter.stop(timeout=_LAST_WORDS)
        if self._box is not None:
            self._box.close(timeout=_LAST_WORDS)
        self._collector.stop()
        if self._metrics is not None and not exiting:
            self._metrics.stop()

    def abandon(self) -> None:
        self._running = False
        if self._metrics is not None:
            self._metrics.abandon()
        self.watchdog.abandon()
        self.reporter.abandon()
        if self._probe is not None:
            self._probe.close()
        if self._box is not None:
            self._box.abandon()
        self._collector.stop()

    def follow(self, app: App) -> None:
        app.enter(self._requests, self._lifespan, self.reporter.trouble)

    def reconfigure(self, config: Config) -> None:
        self._config = config
        self.watchdog.set_budget(int(config.budget * 1e9), int(config.congested_from * 1e9))
        if self._box is not None:
            self._box.set_budget(config.budget)
        for heart in self.watchdog.hearts:
            _on_its_thread(heart, heart.renew)

    def flush(self, timeout: float) -> bool:
        until = monotonic() + timeout
        return self.watchdog.settle(timeout) and self.reporter.flush(max(0.0, until - monotonic()))

    def join(self, timeout: float) -> None:
        loops = loops_elsewhere()
        for loop in loops:
            with suppress(RuntimeError):  # it has been closed since
                loop.call_soon_threadsafe(self.begin, loop)
        until = monotonic() + timeout
        while not {loop for loop in loops if loop.is_running()} <= {
            heart.loop for heart in self.watchdog.hearts
        }:
            if monotonic() > until:
                return
            time.sleep(_MOMENT / 5)

    def catch_up(self, timeout: float) -> bool:
        looks = self.watchdog.looks
        if looks == self._caught_up_at and not self.watchdog.at_work:
            return True
        until = monotonic() + timeout
        while self.watchdog.behind and monotonic() < until:
            time.sleep(_MOMENT / 5)
        for heart in self.watchdog.hearts:
            if heart.on_this_thread:
                heart.renew()
        while overdue := {
            heart.last_ns
            for heart in self.watchdog.hearts
            if heart.is_overdue and heart.last_ns not in self._given_up
        }:
            if monotonic() > until:
                self._given_up = overdue  # none is waited for twice
                break
            time.sleep(_MOMENT / 5)
        told = self.flush(max(0.0, until - monotonic()))
        if told:
            self._caught_up_at = looks
        return told

    def stats(self) -> dict[str, int | float]:
        counts = asdict(self.reporter.counts)
        del counts["exempt_by_reason"]
        return {
            **counts,
            "sink_errors": self.reporter.sink_errors + (0 if self._box is None else self._box.lost),
            "watchdog_restarts": self.watchdog.restarts,
            "looks": self.watchdog.looks,
            "delay_samples_lost": self._delays.lost,
            "in_flight": len(self._requests),
            "loops": sum(heart.loop.is_running() for heart in self.watchdog.hearts),
        }

    def begin(self, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
        """Watch a loop, on its own thread; returns what ends that. Never raises: the loop is the user's."""
        try:
            if self._brief and not loop.is_running():
                return self.watchdog.note(loop)
            heart = self.watchdog.begin(loop)
            if self._box is not None:
                self._box.watches(_name_of(type(loop)), threading.current_thread().name)
        except Exception as error:
            self.reporter.trouble(error)
            return _nothing

        def end() -> None:
            try:
                heart.stop()
            except Exception as error:
                self.reporter.trouble(error)

        return end

    def _introduction(self, loop: asyncio.AbstractEventLoop | None) -> dict[str, object]:
        return {
            "loop": None if loop is None else _name_of(type(loop)),
            "budget_ms": round(self._config.budget * 1000, 1),
            "version": own_version(),
            "python": sys.version.split()[0],
            "evidence": sorted(kind for kind, here in self._evidence.items() if here),
            "evidence_missing": sorted(kind for kind, here in self._evidence.items() if not here)
            or None,
        }

    async def _sum_up(self) -> None:
        """See that all is told before the application has ended, without holding its loop."""
        try:
            await self._all_told()
            self.reporter.sum_up()
            if self._box is not None:
                self._box.set_aside()
            await self._all_told()
        except Exception as error:
            self.reporter.trouble(error)

    async def _all_told(self) -> None:
        until = monotonic() + _LAST_WORDS
        await asyncio.sleep(_MOMENT)  # the beat that ends a stall comes with the loop's next turn
        while not self.flush(timeout=0) and monotonic() < until:  # noqa: ASYNC110 - threads end it
            await asyncio.sleep(_MOMENT)

    def _sum_up_at_once(self) -> None:
        """The same where nothing can be awaited: it holds the loop, if only for a moment."""
        try:
            for heart in self.watchdog.hearts:
                _on_its_thread(heart, heart.renew)
            self.flush(_LAST_WORDS)
            self.reporter.sum_up()
            if self._box is not None:
                self._box.set_aside()
            self.flush(_LAST_WORDS)
        except Exception as error:
            self.reporter.trouble(error)

    def _own_subscriptions(self) -> list[Subscription]:
        """JSONL first: it is the quickest and outlives the process."""
        config, all_of_them = self._config, []
        if config.jsonl is not None:
            lines = JsonLines(config.jsonl)
            all_of_them.append(
                Subscription("jsonl", lines, ongoing=True, fatal=True, close=lines.close)
            )
        if config.traces:
            spans = Spans(own_version())
            all_of_them.append(Subscription("spans", spans, late=spans.late))
        if self._metrics is not None:
            metrics = self._metrics
            all_of_them.append(
                Subscription("metrics", metrics, late=metrics.late, unexplained=metrics.unexplained)
            )
        if config.on_stall is not None:
            all_of_them.append(Subscription("on_stall", partial(_call, config.on_stall)))
        if config.on_ongoing is not None:
            listener = partial(_call, config.on_ongoing)
            all_of_them.append(Subscription("on_ongoing", listener, final=False, ongoing=True))
        return all_of_them

    def _new_metrics(self) -> Metrics:
        sources = Sources(
            counts=lambda: self.reporter.counts,
            delays=self._delays.drain,
            delays_lost=lambda: self._delays.lost,
            utilization=self._load.read,
            threadpool=self._threadpool.read,
            watching=lambda: self._running and not self.watchdog.paused,
            severity=self._severity,
        )
        return Metrics(sources, own_version(), lambda error: self.reporter.trouble(error))

    def _severity(self, incident: Incident) -> Severity:
        seconds = (incident.held.end_ns - incident.held.start_ns) / 1e9
        return severity_of("unknown", seconds, self._config.severe_from, incident.phase)

    def _hand_on(self, incident: Incident) -> None:
        self._load.add(incident)
        self.reporter.put(incident)

    def _new_box(self) -> BlackBox | None:
        """None where none can be made here: a full disk is no reason to keep an application from starting."""
        config = self._config
        if config.black_box is None:
            return None
        head = Head(
            pid=os.getpid(),
            budget=config.budget,
            root=str(config.root),
            source=config.source,
            in_app=config.in_app,
            loops=(),
            process=self._identity.process(0.0, 0),
        )
        try:
            box = BlackBox(config.black_box, head, self._trouble)
        except OSError as error:
            self._box_missing = error
            box = None
        self._evidence["black_box"] = box is not None
        return box

    def _search_box(self) -> None:
        """Tell of the stalls that earlier processes did not survive."""
        if self._config.black_box is not None:
            collect(self._config.black_box, self._tell_fatal)

    def _tell_fatal(self, stalls: tuple[Stall, ...]) -> bool:
        """Whether they are told by now: else their file stays for the next start."""
        if self._ending.is_set() or not all(map(self.reporter.tell_fatal, stalls)):
            return False
        return self.reporter.flush(_PATIENCE)

    def _trouble(self, error: BaseException) -> None:
        self.reporter.trouble(error)

    def _explainer(self) -> Explainer:
        return Explainer(
            config=lambda: self._config,
            ownership=self._apps.ownership,
            route=self._apps.route,
            process=self._process,
            fresh_until=time.time(),
            rest=self._give_way,
        )

    def _look_first(self) -> None:
        """What a thread of ours does when it has got the GIL, which it may have got before the watchdog."""
        self.watchdog.stand_in()

    def _give_way(self) -> None:
        """Let the loops have the GIL: whoever computes is not asked for it before 5 ms."""
        self._look_first()
        time.sleep(_GIVE_WAY)

    def _process(self) -> Process:
        return self._identity.process(self.watchdog.watched_ns / 1e9, self._requests.served)

    def _aftermath(self, loop: asyncio.AbstractEventLoop, since_ns: int) -> RequestsAround | None:
        return RequestsAround(loop, self._requests, since_ns) if self._requests.followed else None

    def _surroundings(self, held: Held) -> tuple[Phase | None, int]:
        """The phase of the application, and how many requests are in flight beside the culprit's."""
        culprit = held.looks[-1].request if held.looks else None
        phase = self._lifespan.phase_of(held)
        if not self._lifespan.known and self._requests.served:
            phase = "serving"  # a server that runs no lifespan
        own = 0 if culprit is None or culprit.ended else 1
        return phase, max(0, len(self._requests) - own)


# Seconds that may pass with telling what is left, when the process, the application or the guard ends.
_LAST_WORDS = 0.5
_MOMENT = 0.005
# Seconds that the sinks may take to tell of a stall that an earlier process did not survive.
_PATIENCE = 5.0
# Seconds for which the reporter lets the loops have the GIL, now and then in a long list.
_GIVE_WAY = 0.0001


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _call(listener: Callable[[Stall], object], report: Report) -> None:
    listener(report.stall)


def _nothing() -> None:
    pass


def _on_its_thread(heart: Heartbeat, act: Callable[[], None]) -> None:
    """Act where a heartbeat's handles may be touched: at once on its own thread, else as soon as that is free."""
    if heart.subject is None or heart.on_this_thread:
        act()
        return
    try:
        heart.loop.call_soon_threadsafe(act)
    except RuntimeError:
        act()  # the loop is closed
