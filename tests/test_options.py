"""docs/options.md has every option, with its true default and limits; thresholds can be changed while it runs."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import loopguard
from loopguard import config
from loopguard.capture import stacks
from loopguard.config import Config, ConfigError, read_config
from loopguard.explain import explainer, source
from loopguard.tell import outlet, reporter, stacktrace
from loopguard.tell.limits import Limits
from tests.holding import BUDGET, LONG, hold, run, told

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "options.md").read_text()
DEFAULTS = {
    "none": (None, ()),
    "on": (True,),
    "derived": ((),),
    "the working directory": (Path.cwd(),),
}


def rows(table: str) -> list[list[str]]:
    """The cells of the rows of a table, found by its first heading."""
    body = PAGE.partition(f"\n| {table} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in row.split(" | ")] for row in body.splitlines()[2:]]


OPTIONS = {cells[0].strip("| `"): cells[1:] for cells in rows("option")}
FIXED = {cells[0].strip("| "): int(re.split(r"\D", cells[1])[0]) for cells in rows("what")}


def test_the_page_has_exactly_the_options_that_there_are() -> None:
    assert list(OPTIONS) == [option.name for option in fields(Config)]


def test_each_is_an_argument_of_install_with_no_value_of_its_own() -> None:
    arguments = inspect.signature(loopguard.install).parameters
    assert {name: arguments[name].default for name in OPTIONS} == dict.fromkeys(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_its_default_is_the_one_on_the_page(name: str) -> None:
    shown = OPTIONS[name][0]
    real: Any = getattr(Config(), name)
    if factor := re.fullmatch(r"(\d+) × `budget`", shown):
        followed = {"error_budget": "severe_from", "congestion_budget": "congested_from"}[name]
        assert real is None
        assert getattr(Config(budget=3), followed) == 3 * int(factor[1])
    elif shown in DEFAULTS:
        assert real in DEFAULTS[shown]
    else:
        assert real == float(shown)


@pytest.mark.parametrize("name", [name for name, cells in OPTIONS.items() if "seconds" in cells[1]])
def test_its_limits_are_those_on_the_page(name: str) -> None:
    low, high = (float(number) for number in re.findall(r"[\d.]+", OPTIONS[name][1]))
    assert (low, high) == (config.MINIMUM_BUDGET, config.MAXIMUM_BUDGET)
    for value in (low, high):
        assert getattr(read_config({}, {f"LOOPGUARD_{name.upper()}": str(value)}), name) == value
    for value in (low * 0.99, high * 1.01):
        with pytest.raises(ConfigError):
            read_config({name: value}, {})


def test_the_fixed_limits_are_those_on_the_page() -> None:
    limits = inspect.signature(Limits).parameters
    assert list(FIXED.values()) == [
        limits["each"].default,
        limits["in_all"].default,
        reporter.LONGEST_QUEUE,
        int(outlet.PATIENCE),
        reporter.REMEMBERED,
        explainer.DEEPEST,
        stacktrace.MOST_LINES,
        source.LONGEST,
    ]
    assert reporter.LONGEST_QUEUE == outlet.LONGEST_QUEUE
    assert explainer.DEEPEST < stacks.INNERMOST
    assert limits["window"].default == 60


# While it runs


@pytest.mark.parametrize("name, factor", [("error_budget", 5), ("congestion_budget", 2)])
def test_a_threshold_can_be_set_and_can_follow_the_budget_again(name: str, factor: int) -> None:
    guard = loopguard.install(budget=0.2, log=False)
    assert getattr(guard, name) == pytest.approx(0.2 * factor)
    setattr(guard, name, 7)
    guard.budget = 0.3
    assert getattr(guard, name) == 7
    setattr(guard, name, None)
    assert getattr(guard, name) == pytest.approx(0.3 * factor)
    with pytest.raises(ConfigError, match=f"from assignment to Guard.{name}"):
        setattr(guard, name, 0)
    assert getattr(guard, name) == pytest.approx(0.3 * factor)


def test_the_severity_changes_with_its_threshold_while_it_runs() -> None:
    guard = loopguard.install(budget=BUDGET, log=False)
    for threshold in (1.0, LONG / 2, None):
        guard.error_budget = threshold
        run(hold())
        assert guard.flush(10)
    assert [stall.severity for stall in told(guard)] == ["warning", "error", "warning"]
