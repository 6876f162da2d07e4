"""The one installation of a process: install, uninstall, wrap."""

from __future__ import annotations

import atexit
import importlib.util
import os
import threading
from collections.abc import Iterable
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

from loopguard.config import (
    PREFIX,
    AlreadyInstalledError,
    Config,
    ConfigError,
    Listener,
    read_config,
)
from loopguard.guard import Guard
from loopguard.integrations.asgi import Around, StarletteApp, WrappedApp
from loopguard.integrations.served import ServedApps

if TYPE_CHECKING:
    from loopguard.integrations.profiling import RequestProfiler

_lock = threading.RLock()  # what fails half-way is undone inside it
_installed: _Installation | None = None


class _Installation(NamedTuple):
    """What is installed: for which application, as it was asked for, and what that meant."""

    guard: Guard
    app: object
    asked: object
    config: Config
    without_code: bool = False
    around: Around | None = None


def install(
    app: Any = None,
    *,
    budget: float | None = None,
    error_budget: float | None = None,
    congestion_budget: float | None = None,
    on_stall: Listener | None = None,
    on_ongoing: Listener | None = None,
    jsonl: str | PathLike[str] | None = None,
    ignore: str | Iterable[str] | None = None,
    log: bool | None = None,
    traces: bool | None = None,
    metrics: bool | None = None,
    enabled: bool | None = None,
    in_app: str | Iterable[str] | None = None,
    probe: bool | None = None,
    black_box: str | PathLike[str] | None = None,
    source: bool | None = None,
    root: str | PathLike[str] | None = None,
    profile_token: str | None = None,
    profile_dir: str | PathLike[str] | None = None,
) -> Guard:
    """Guard the event loops of this process, and tie what holds them to the requests of `app`.

    `app` is a FastAPI or Starlette application; without it, stalls are tied to tasks and spans only. Guarded are
    the loop that runs now, and each that runs from now on. An option that is None is read from the environment
    (`LOOPGUARD_BUDGET` and so on), else has its default. A second identical call returns the same Guard.

    Raises:
        ConfigError: a value cannot be used, or names an option that this version does not have.
        AlreadyInstalledError: it is installed already with another app or other options.
    """
    arguments = {name: value for name, value in locals().items() if name != "app"}
    global _installed
    with _lock:
        # As it was asked for, and what that meant: the same words may mean another directory by now.
        asked = arguments, {key: os.environ[key] for key in os.environ if key.startswith(PREFIX)}
        config = read_config(arguments)
        if _installed is not None and _installed.without_code:
            _installed.guard.uninstall()
        if _installed is not None and _installed.guard.dormant:
            # A forked child that runs no loop yet: it may go on as its parent did, or begin anew in its own way.
            inherited = _installed
            if inherited.app is app and inherited.config == config:
                inherited.guard.revive()
                return inherited.guard
            inherited.guard.uninstall()
        if _installed is not None:
            same = asked == _installed.asked or config == _installed.config
            if _installed.app is app and same:
                return _installed.guard
            raise AlreadyInstalledError(
                "loopguard is installed already, for another app or with other options; uninstall() it first"
            )
        profiler = _new_profiler(config)
        around = None if profiler is None else profiler.around
        followed = None if app is None else StarletteApp(app, around)
        guard = _new_guard(config, profiler)
        try:
            guard.start(on_uninstall=lambda: _forget(guard))
            if followed is not None:
                guard.follow(followed)
        except BaseException:
            guard.uninstall()
            raise
        _installed = _Installation(guard, app, asked, config, around=around)
        atexit.register(guard.say_farewell)
        return guard


def wrap(app: Any, **options: Any) -> WrappedApp:
    """Any ASGI 3 application (Litestar, Quart, Django), to be served in its place.

    Installs loopguard with the options of `install()`, where that is not done yet.

    Raises:
        ConfigError, AlreadyInstalledError: as `install()`; or `app` is no application.
    """
    WrappedApp(app)  # refused before anything is installed
    explicit = _installed is not None and not _installed.without_code
    guard = _installed.guard if _installed and explicit and not options else install(**options)
    wrapped = WrappedApp(app, None if _installed is None else _installed.around)
    guard.follow(wrapped)
    return wrapped


def _new_profiler(config: Config) -> RequestProfiler | None:
    """Raises ConfigError where pyinstrument is not installed."""
    if config.profile_token is None or config.profile_dir is None or not config.enabled:
        return None
    if importlib.util.find_spec("pyinstrument") is None:
        raise ConfigError("profile_token: needs pyinstrument, of the extra `profile`")
    from loopguard.integrations.profiling import RequestProfiler

    return RequestProfiler(config.profile_token, config.profile_dir)


def _new_guard(config: Config, profiler: RequestProfiler | None) -> Guard:
    if profiler is None:
        return Guard(config)
    guard = Guard(config, profiles=profiler.counts)
    profiler.trouble = guard.trouble
    return guard


def install_without_code() -> Guard:
    """Guard each loop from the first that runs, and follow each Starlette application that is served.

    Where nothing is installed yet; an explicit `install()` replaces it. All options come from the environment, and
    until a loop runs, nothing is started: every process of a command comes by here.

    Raises:
        ConfigError: as `install()`.
    """
    global _installed
    with _lock:
        if _installed is not None:
            return _installed.guard
        config = read_config({})
        profiler = _new_profiler(config)
        guard = _new_guard(config, profiler)

        def follow(app: Any) -> None:
            try:
                guard.follow(StarletteApp(app, None if profiler is None else profiler.around))
            except Exception as error:
                guard.trouble(error)

        def forget() -> None:
            served.leave()
            _forget(guard)

        served = ServedApps(follow)
        guard.start(on_uninstall=forget, with_next_loop=True)
        if config.enabled:
            served.enter()
        _installed = _Installation(guard, None, None, config, without_code=True)
        atexit.register(guard.say_farewell)
        return guard


def uninstall_without_code() -> None:
    """Undo `install_without_code()`, unless an explicit `install()` has replaced it."""
    if _installed is not None and _installed.without_code:
        _installed.guard.uninstall()


def uninstall() -> None:
    """Undo `install()`: nothing of it is left behind. Does nothing where nothing is installed."""
    if _installed is not None:
        _installed.guard.uninstall()


def _after_fork_in_child() -> None:
    """A child's locks are its own."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _forget(guard: Guard) -> None:
    global _installed
    with _lock:
        if _installed is not None and _installed.guard is guard:
            _installed = None
    atexit.unregister(guard.say_farewell)
