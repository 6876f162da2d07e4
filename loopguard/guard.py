"""What `install()` gives: a guard, its life, and what becomes of it in a fork."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any
from weakref import WeakSet

from loopguard.apps import App, Apps
from loopguard.capture.frames import in_main_interpreter
from loopguard.config import Config
from loopguard.engine import Engine
from loopguard.record import Stall
from loopguard.tell.log import log_event
from loopguard.tell.outlet import Outlet
from loopguard.tell.report import Subscription
from loopguard.tell.reporter import GUARD
from loopguard.watch.loops import LoopHook


class Guard:
    """Watches the event loops of this process. Made by `loopguard.install()`.

    Usable as a context manager, which uninstalls at its end. `subscriptions` hear of stalls beside what the options
    name; `brief` is for a process that runs many loops, each for a moment only; `profiles` counts those of requests.
    """

    def __init__(
        self,
        config: Config,
        subscriptions: Sequence[Subscription] = (),
        brief: bool = False,
        profiles: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._config = config
        self._brief = brief
        self._profiles = profiles
        self._subscriptions = subscriptions
        self._apps = Apps(config.in_app)
        self._engine: Engine | None = None
        self._hook = LoopHook(self._begin)
        self._on_uninstall: Callable[[], None] | None = None
        self._dormant = False
        self._farewell: Any = None
        self._held: dict[int, list[Outlet]] = {}  # by the thread that is forking

    def start(self, on_uninstall: Callable[[], None], with_next_loop: bool = False) -> None:
        """Begin to watch, or be dormant until a loop runs.

        Does nothing where the option `enabled` is off, or in a sub-interpreter.
        """
        self._on_uninstall = on_uninstall
        _started.add(self)
        if not in_main_interpreter():
            if self._config.log:
                with suppress(Exception):  # the user's own logging
                    log_event("info", GUARD, {"off": "sub-interpreters are not watched"})
        elif self._config.enabled and with_next_loop:
            self._dormant = True
            self._hook.install()
        elif self._config.enabled:
            # The threads first: where the system grants none, nothing is patched yet.
            self._engine = Engine(self._config, self._apps, self._subscriptions, self._brief)
            self._engine.start()
            self._hook.install()
            self._foresee_farewell()

    def follow(self, app: App) -> None:
        """Tie stalls to the requests of this application too."""
        self._apps.all.append(app)
        if self._engine is not None:
            self._engine.follow(app)

    def trouble(self, error: BaseException) -> None:
        """A failure of our own: counted, and each kind of it said once."""
        if self._engine is not None:
            self._engine.reporter.trouble(error)

    def join(self, timeout: float = 1.0) -> None:
        """Watch also the loops that run on other threads already; waits for those, `timeout` seconds at most."""
        if self._engine is not None:
            self._engine.join(timeout)

    @property
    def stalls(self) -> tuple[Stall, ...]:
        """The latest final records, oldest first, at most 256."""
        return () if self._engine is None else tuple(self._engine.reporter.stalls)

    @property
    def budget(self) -> float:
        """Seconds that one callback may hold the loop. Settable while it runs.

        Raises:
            ConfigError: the value set is no number of seconds within the limits.
        """
        return self._config.budget

    @budget.setter
    def budget(self, seconds: float) -> None:
        self._set("budget", seconds)

    @property
    def error_budget(self) -> float:
        """Seconds from which a stall is an error. Settable while it runs; None: 5 × the budget.

        Raises:
            ConfigError: the value set is no number of seconds within the limits.
        """
        return self._config.severe_from

    @error_budget.setter
    def error_budget(self, seconds: float | None) -> None:
        self._set("error_budget", seconds)

    @property
    def congestion_budget(self) -> float:
        """Seconds that one iteration of the loop may take. Settable while it runs; None: 2 × the budget.

        Raises:
            ConfigError: the value set is no number of seconds within the limits.
        """
        return self._config.congested_from

    @congestion_budget.setter
    def congestion_budget(self, seconds: float | None) -> None:
        self._set("congestion_budget", seconds)

    def _set(self, name: str, seconds: float | None) -> None:
        self._config = self._config.with_threshold(name, seconds)
        if self._engine is not None:
            self._engine.reconfigure(self._config)

    def stats(self) -> dict[str, int | float]:
        """What was counted since install; always `stalls == logged + suppressed + dropped` once flushed."""
        counts = {} if self._engine is None else self._engine.stats()
        return {**_NOTHING, **counts, **self._profiles()}

    def pause(self) -> None:
        """Watch no more until `resume()`. A stall that lasts at either moment is not reported."""
        if self._engine is not None:
            self._engine.watchdog.pause()

    def resume(self) -> None:
        if self._engine is not None:
            self._engine.watchdog.resume()

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until every stall that has ended is told; False where that took longer than `timeout` seconds."""
        return self._engine is None or self._engine.flush(timeout)

    def catch_up(self, timeout: float = 1.0) -> bool:
        """Wait until every stall that began before this call is told, also one that its loop has yet to notice.

        What holds the loop that this is called on counts until now. False where that took longer than `timeout` seconds,
        as where another thread's loop is still held.
        """
        return self._engine is None or self._engine.catch_up(timeout)

    def uninstall(self) -> None:
        """Stop, and leave nothing behind: no thread, timer, middleware, callback or patch."""
        self._end()

    def say_farewell(self) -> None:
        """The same as the interpreter exits."""
        self._end(exiting=True)

    def _end(self, exiting: bool = False) -> None:
        self._hook.uninstall()
        for app in self._apps.all:
            app.leave()
        if self._engine is not None:
            self._engine.stop(exiting)  # the last stalls still want their routes
        self._apps.all.clear()
        self._dormant = False
        _started.discard(self)
        if self._farewell is not None:
            self._farewell.cancel()
            self._farewell = None
        if self._on_uninstall is not None:
            self._on_uninstall()

    def before_fork(self) -> None:
        """Let the sinks come to rest, so that the child inherits no lock that they hold; a moment is all they get."""
        if self._engine is not None:
            self._held[threading.get_ident()] = self._engine.reporter.hold(_REST)

    def after_fork(self) -> None:
        """In the parent: go on."""
        for outlet in self._held.pop(threading.get_ident(), ()):
            outlet.release()

    def fork(self) -> None:
        """In a forked child, where none of our threads is: be inert until a loop runs. The parent goes on as before."""
        engine, self._engine = self._engine, None
        self._held.clear()
        if engine is not None:
            self._dormant = True
            for app in self._apps.all:
                app.leave()
            engine.abandon()

    @property
    def dormant(self) -> bool:
        """Whether this waits for a loop to run: in a forked child, or where it was started so."""
        return self._dormant and self._engine is None

    def revive(self) -> None:
        """Begin to watch, if dormant."""
        if self.dormant:
            self._engine = Engine(self._config, self._apps, self._subscriptions, self._brief)
            for app in self._apps.all:
                self._engine.follow(app)
            self._engine.start()
            self._foresee_farewell()

    def _foresee_farewell(self) -> None:
        """Tell what is left also where this is a child of multiprocessing: such a one runs no exit handlers but those."""
        processes: Any = sys.modules.get("multiprocessing.process")
        util: Any = sys.modules.get("multiprocessing.util")
        if processes and util and processes.parent_process() is not None:
            self._farewell = util.Finalize(None, self.say_farewell, exitpriority=0)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
        """A loop is about to run. Never raises: the loop is the user's."""
        try:
            self.revive()
        except Exception:
            # No thread, no memory: then this child stays as it is. There is nothing yet to count it, or to tell.
            self._engine = None
            self._dormant = False
        return (lambda: None) if self._engine is None else self._engine.begin(loop)

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.uninstall()


# Seconds that a fork may be kept waiting for sinks that are busy.
_REST = 0.1

_NOTHING: dict[str, int | float] = dict.fromkeys(
    (
        "stalls", "logged", "suppressed", "dropped", "exempt", "not_scheduled", "sink_errors", "troubles",
        "watchdog_restarts", "looks", "delay_samples_lost", "in_flight", "loops",
        "profiles", "profiles_refused",
    ),
    0,
)  # fmt: skip

# Of a process that forks. One is installed; those of tests come and go beside it.
_started: WeakSet[Guard] = WeakSet()


def _before_fork() -> None:
    for guard in list(_started):
        guard.before_fork()


def _after_fork_in_parent() -> None:
    for guard in list(_started):
        guard.after_fork()


def _after_fork_in_child() -> None:
    """A child has none of our threads: it is guarded from when it runs a loop."""
    for guard in list(_started):
        guard.fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
