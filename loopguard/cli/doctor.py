"""`loopguard doctor`: what this machine and this Python can do, who else owns our names, and what the guard costs here."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import loopguard
from loopguard.config import PREFIX, Config, ConfigError, read_config
from loopguard.tell.identity import own_version
from loopguard.tell.printable import printable

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_SECONDS = 2.0
_BESIDE = ("fastapi", "starlette", "uvicorn", "uvloop", "opentelemetry-sdk", "structlog")


def add_to(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "doctor",
        help="what this machine and this Python can do, and what the guard costs here",
        description="Tries each kind of evidence and says why the rest is not to be had; reads the options from the "
        "environment; says who else owns our names; and measures what a guard costs on this machine.",
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=_SECONDS,
        help="how long each idle process is measured, from 0.2 (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Always 0: it was asked for facts, and not for a verdict."""
    for line in lines(options.seconds):
        print(printable(line), flush=True)
    return 0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.2 <= seconds <= 60:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.2 to 60")
    return seconds


def lines(seconds: float) -> Iterator[str]:
    """What it says, as it is found out; each idle process is measured for so many seconds."""
    yield from _place()
    config = Config()
    yield ""
    yield "Options from the environment"
    given = sorted(name for name in os.environ if name.startswith(PREFIX))
    try:
        config = read_config({})
        yield f"  {', '.join(given) or 'none'}"
    except ConfigError as error:
        yield f"  install() would refuse them: {error}"
    yield ""
    yield "Evidence"
    yield from _evidence(config.black_box)
    yield ""
    yield "Names"
    yield from _names()
    yield ""
    yield f"Cost on this machine, at a budget of {config.budget:g} s, while all is well"
    yield from _cost(config.budget, seconds)


def _place() -> Iterator[str]:
    yield f"loopguard {own_version() or '(not installed, run from its source)'}"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    yield f"  {python} on {platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} CPUs"
    found = [f"{name} {version}" for name in _BESIDE if (version := _version(name))]
    yield f"  beside {', '.join(found)}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _evidence(black_box: Path | None) -> Iterator[str]:
    from loopguard.diagnosis.evidence import kinds

    for kind in kinds(black_box):
        have = "no " if kind.missing else "yes"
        yield f"  {have} {kind.name:<13} {kind.tells}"
        if kind.missing:
            yield f"      {'':<13} not here: {kind.missing}"


def _names() -> Iterator[str]:
    from loopguard.diagnosis.names import conflicts

    yield f"  import loopguard: {Path(loopguard.__file__).parent}"
    found = conflicts()
    yield from (f"  {conflict}" for conflict in found)
    if not found:
        yield "  nobody else claims the import or the scripts"


def _cost(budget: float, seconds: float) -> Iterator[str]:
    from loopguard.diagnosis.cost import idle_costs, layer_us

    yield f"  {layer_us():.2f} µs a request, in the ASGI layer"
    for cost in idle_costs(budget, seconds):
        bare, guarded = cost.bare, cost.guarded
        yield (
            f"  {guarded.percent:.2f} % of a core when idle on {cost.loop} (bare {bare.percent:.2f} %), "
            f"{_wakeups(guarded.wakeups)} wake-ups a second (bare {_wakeups(bare.wakeups)})"
        )


def _wakeups(number: float | None) -> str:
    return "an unknown number of" if number is None else f"{number:.1f}"
