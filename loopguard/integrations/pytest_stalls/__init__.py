"""The pytest plugin's door: options and markers, and no more than that until somebody asks for the plugin.

pytest loads this in every project that shares an environment with loopguard, whose other imports take longer than a
small test suite. All else is in `plugin`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from loopguard.integrations.pytest_stalls.plugin import Stalls

_PLUGIN = "asyncio_loopguard_stalls"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("stalls", "tests that block the event loop (asyncio-loopguard)")
    group.addoption(
        "--stalls",
        action="store_true",
        help="fail each test whose code blocks an event loop for longer than its budget",
    )
    group.addoption(
        "--stall-budget",
        metavar="SECONDS",
        type=_seconds,
        help="the longest that one callback may hold a loop (default: ini stall_budget, 0.1)",
    )
    group.addoption(
        "--stall-baseline",
        metavar="PATH",
        type=Path,
        help="a file of known stalls, which fail no test unless they take more than twice as long",
    )
    group.addoption(
        "--stall-baseline-update",
        action="store_true",
        help="write what was found to that file instead of failing",
    )
    group.addoption(
        "--stall-jsonl", metavar="PATH", type=Path, help="append each record to this file"
    )
    parser.addini("stalls", "the same as --stalls", type="bool", default=False)
    parser.addini("stall_budget", "the same as --stall-budget", default="0.1")
    parser.addini(
        "stall_phases",
        "the phases of a test in which a stall fails it: setup, call, teardown",
        type="args",
        default=["call"],
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "stall_budget(seconds): the longest that a callback may hold an event loop in this test",
    )
    config.addinivalue_line(
        "markers",
        "allow_stalls(reason): this test may hold its event loop for as long as it takes",
    )
    if config.getoption("--stalls") or config.getini("stalls"):
        _plugin(config, everywhere=True)
    elif config.getoption("--stall-baseline-update"):
        raise pytest.UsageError("--stall-baseline-update needs --stalls")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Where it is off, a test may still ask for it."""
    if session.config.pluginmanager.has_plugin(_PLUGIN):
        return
    for item in session.items:
        if asks(item):
            _plugin(session.config, everywhere=False)
            return


def asks(item: pytest.Item) -> bool:
    """Whether a test asks to be watched: by our marker, or by our fixture, not by one of its own with that name."""
    if item.get_closest_marker("stall_budget") is not None:
        return True
    # What stands behind a name is known to pytest's own `_fixtureinfo` alone. Without it the name decides.
    known = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    nearest = known.get("stalls", (None,))[-1]
    named = "stalls" in getattr(item, "fixturenames", ())
    return named and (nearest is None or nearest.func.__module__ == __name__)


@pytest.fixture
def stalls(request: pytest.FixtureRequest) -> Stalls:
    """The stalls of this test so far, as a sequence; the verdict is the test's own."""
    records: Stalls = _plugin(request.config, everywhere=False).leave_to_test(request.node)
    return records


def _plugin(config: pytest.Config, everywhere: bool) -> Any:
    """The plugin itself, made where it is not there yet."""
    plugin = config.pluginmanager.get_plugin(_PLUGIN)
    if plugin is None:
        from loopguard.integrations.pytest_stalls.plugin import StallPlugin

        plugin = StallPlugin(config, everywhere)
        config.pluginmanager.register(plugin, _PLUGIN)
    return plugin


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from None
