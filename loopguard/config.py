"""How closely to watch: options from arguments, environment and defaults, each checked once, at install."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from loopguard.record import Stall

MINIMUM_BUDGET = 0.005
MAXIMUM_BUDGET = 3600.0
LONGEST_SHOWN = 200
PREFIX = "LOOPGUARD_"
SHORTEST_SECRET = 16

Listener = Callable[[Stall], object]


class ConfigError(ValueError):
    """An option that cannot be used. Its text gives the value, the limit, and where the value came from."""


class AlreadyInstalledError(RuntimeError):
    """loopguard is installed already, with other options or for another application."""


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except OSError:  # it has been removed: then nothing lies below it
        return Path(os.devnull)


@dataclass(frozen=True, slots=True)
class Config:
    """All options of `install()`, checked. Durations are in seconds."""

    budget: float = 0.1
    error_budget: float | None = None
    congestion_budget: float | None = None
    on_stall: Listener | None = None
    on_ongoing: Listener | None = None
    jsonl: Path | None = None
    ignore: tuple[str, ...] = ()
    log: bool = True
    traces: bool = True
    metrics: bool = True
    enabled: bool = True
    in_app: tuple[str, ...] = ()
    probe: bool = True
    black_box: Path | None = None
    source: bool = True
    root: Path = field(default_factory=_working_directory)
    profile_token: str | None = field(default=None, repr=False)
    profile_dir: Path | None = None

    def with_threshold(self, name: str, seconds: object) -> Config:
        """The same options with another `budget`, `error_budget` or `congestion_budget`, checked as at install.

        The latter two follow the budget again where they are None.

        Raises:
            ConfigError: it is no number of seconds within the limits.
        """
        follows = seconds is None and name != "budget"
        changed: dict[str, Any] = {
            name: None if follows else _seconds(name, seconds, f"assignment to Guard.{name}")
        }
        return replace(self, **changed)

    @property
    def severe_from(self) -> float:
        """Seconds from which a stall is an error; it follows the budget unless `error_budget` was given."""
        return 5 * self.budget if self.error_budget is None else self.error_budget

    @property
    def congested_from(self) -> float:
        """Seconds from which one iteration of the loop is a stall, though none of its callbacks is over the budget."""
        return 2 * self.budget if self.congestion_budget is None else self.congestion_budget


def read_config(
    arguments: Mapping[str, object], environ: Mapping[str, str] | None = None
) -> Config:
    """Merge arguments over `LOOPGUARD_…` variables over defaults.

    An argument that is None counts as not given.

    Raises:
        ConfigError: a value is unusable, or names an option that this version does not have.
    """
    environ = os.environ if environ is None else environ
    given: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, read in _READERS.items():
        value = arguments.get(name)
        variable = PREFIX + name.upper()
        if value is not None:
            sources[name] = f"argument {name}"
        elif environ.get(variable, "") != "":
            value, sources[name] = environ[variable], f"environment variable {variable}"
        if name in sources:
            given[name] = read(name, value, sources[name])
    if "profile_token" in given and "profile_dir" not in given:
        _refuse_secret(
            "profile_token",
            given["profile_token"],
            sources["profile_token"],
            "needs profile_dir too",
        )
    if "profile_dir" in given and "profile_token" not in given:
        _refuse(
            "profile_dir", given["profile_dir"], "needs profile_token too", sources["profile_dir"]
        )
    return Config(**given)


def _refuse(name: str, value: object, limit: str, source: str) -> NoReturn:
    raise ConfigError(f"{name}={_shown(value)} (from {source}): {limit}")


def _shown(value: object) -> str:
    """The value in one bounded piece, whatever it is: an integer of 5,000 digits cannot even be printed."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - of somebody else's object; the error to tell of is another
        text = f"<{type(value).__qualname__}>"
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…"


def _seconds(name: str, value: object, source: str) -> float:
    limit = f"must be a number of seconds from {MINIMUM_BUDGET} to {MAXIMUM_BUDGET:.0f}"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        _refuse(name, value, limit, source)
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        _refuse(name, value, limit, source)
    if not math.isfinite(seconds) or not MINIMUM_BUDGET <= seconds <= MAXIMUM_BUDGET:
        _refuse(name, value, limit, source)
    return seconds


_WORDS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


def _switch(name: str, value: object, source: str) -> bool:
    if isinstance(value, bool):
        return value
    word = _WORDS.get(value.strip().lower()) if isinstance(value, str) else None
    if word is None:
        _refuse(
            name,
            value,
            "must be on or off (True, False; 1, 0, true, false, yes, no, on, off)",
            source,
        )
    return word


def _names(name: str, value: object, source: str) -> tuple[str, ...]:
    limit = "must be a list of names, or names separated by commas"
    if isinstance(value, str):
        value = value.split(",")
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
        _refuse(name, value, limit, source)
    names = tuple(value)
    if not all(isinstance(item, str) for item in names):
        _refuse(name, names, limit, source)
    return tuple(item.strip() for item in names if item.strip())


def _listener(name: str, value: object, source: str) -> Listener:
    if not callable(value):
        _refuse(name, value, "must be a function that takes the stall's record", source)
    return value


def _directory(name: str, value: object, source: str) -> Path:
    path = _path(name, value, source)
    try:
        known = path.is_dir()
    except (OSError, ValueError):  # a name that is too long, or cannot be one
        known = False
    if not known:
        _refuse(name, value, "must be a directory", source)
    return path


def _own_directory(name: str, value: object, source: str) -> Path:
    """A directory in which files can be made, found and taken away."""
    path = _directory(name, value, source)
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        _refuse(name, value, "must be a directory that this process may read and write", source)
    return path


def _writable_file(name: str, value: object, source: str) -> Path:
    """A file that can be appended to, or made. It is not made here: another option may still be refused."""
    path = _path(name, value, source)
    try:
        # Not blocking, for a FIFO: it would wait for its reader.
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_NONBLOCK", 0)))
    except FileNotFoundError as error:
        folder = Path(os.path.realpath(path)).parent
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            _refuse(name, value, f"must be a file that can be appended to: {error}", source)
    except (OSError, ValueError) as error:
        _refuse(name, value, f"must be a file that can be appended to: {error}", source)
    return path


def _path(name: str, value: object, source: str) -> Path:
    if not isinstance(value, (str, os.PathLike)):
        _refuse(name, value, "must be a path", source)
    try:
        text = os.fsdecode(value)
        path = Path(os.path.abspath(text))
    except (TypeError, OSError) as error:
        _refuse(name, value, f"must be a path: {error}", source)
    if not text:
        _refuse(name, value, "must be a path", source)
    return path


def _secret(name: str, value: object, source: str) -> str:
    """Of what is refused only the length is told."""
    if not isinstance(value, str) or len(value) < SHORTEST_SECRET or not value.isascii():
        limit = f"must be at least {SHORTEST_SECRET} characters of ASCII"
        _refuse_secret(name, value, source, limit)
    return value


def _refuse_secret(name: str, value: object, source: str, limit: str) -> NoReturn:
    what = f"{len(value)} characters" if isinstance(value, str) else type(value).__name__
    raise ConfigError(f"{name}=<{what}> (from {source}): {limit}")


_Reader = Callable[[str, object, str], Any]
_READERS: dict[str, _Reader] = {
    "budget": _seconds,
    "error_budget": _seconds,
    "congestion_budget": _seconds,
    "on_stall": _listener,
    "on_ongoing": _listener,
    "jsonl": _writable_file,
    "ignore": _names,
    "log": _switch,
    "traces": _switch,
    "metrics": _switch,
    "enabled": _switch,
    "in_app": _names,
    "probe": _switch,
    "black_box": _own_directory,
    "source": _switch,
    "root": _directory,
    "profile_token": _secret,
    "profile_dir": _own_directory,
}

assert set(_READERS) == {option.name for option in fields(Config)}
