"""The one installation of a process: install, uninstall, wrap."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterable
from os import PathLike
from typing import Any

from loopguard.config import PREFIX, AlreadyInstalledError, Listener, read_config
from loopguard.guard import Guard
from loopguard.integrations.asgi import StarletteApp, WrappedApp

_lock = threading.RLock()  # what fails half-way is undone inside it
_installed: tuple[Guard, object, object, object] | None = None


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
        if _installed is not None and _installed[0].dormant:
            # A forked child that runs no loop yet: it may go on as its parent did, or begin anew in its own way.
            inherited = _installed[0]
            if _installed[1] is app and _installed[3] == config:
                inherited.revive()
                return inherited
            inherited.uninstall()
        if _installed is not None:
            guard, installed_app, installed_asked, installed_config = _installed
            if installed_app is app and (installed_asked == asked or installed_config == config):
                return guard
            raise AlreadyInstalledError(
                "loopguard is installed already, for another app or with other options; uninstall() it first"
            )
        followed = None if app is None else StarletteApp(app)
        guard = Guard(config)
        try:
            guard.start(on_uninstall=lambda: _forget(guard))
            if followed is not None:
                guard.follow(followed)
        except BaseException:
            guard.uninstall()
            raise
        _installed = guard, app, asked, config
        atexit.register(guard.say_farewell)
        return guard


def wrap(app: Any, **options: Any) -> WrappedApp:
    """Any ASGI 3 application (Litestar, Quart, Django), to be served in its place.

    Installs loopguard with the options of `install()`, where that is not done yet.

    Raises:
        ConfigError, AlreadyInstalledError: as `install()`; or `app` is no application.
    """
    wrapped = WrappedApp(app)
    guard = _installed[0] if _installed is not None and not options else install(**options)
    guard.follow(wrapped)
    return wrapped


def uninstall() -> None:
    """Undo `install()`: nothing of it is left behind. Does nothing where nothing is installed."""
    installed = _installed
    if installed is not None:
        installed[0].uninstall()


def _before_fork() -> None:
    if _installed is not None:
        _installed[0].before_fork()


def _after_fork_in_parent() -> None:
    if _installed is not None:
        _installed[0].after_fork()


def _after_fork_in_child() -> None:
    """A child has none of our threads: it is guarded from when it runs a loop. Its locks are its own."""
    global _lock
    _lock = threading.RLock()
    if _installed is not None:
        _installed[0].fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )


def _forget(guard: Guard) -> None:
    global _installed
    with _lock:
        if _installed is not None and _installed[0] is guard:
            _installed = None
    atexit.unregister(guard.say_farewell)
