"""Plain asyncio: whatever is over the budget by a beat is reported once, what is under it never."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.real.conftest import LOOPS
from tests.real.server import Child, Row, read_rows
from tests.real.told import CLOCK, belongs

BUDGET = 0.04
BEAT = BUDGET / 2
TIMES = 40


def _run(loop: str, kind: str, seconds: float, tmp_path: Path) -> tuple[list[Row], list[Row], Row]:
    """Run the script to its end: truths, records, and the guard's statistics."""
    truth, jsonl = tmp_path / "truth.jsonl", tmp_path / "stalls.jsonl"
    arguments = [loop, kind, str(TIMES), str(seconds), str(BUDGET), str(truth), str(jsonl)]
    child = Child(["-m", "tests.real.plain", *arguments], tmp_path / "output.log")
    assert child.process.wait(60) == 0, child.read()
    return read_rows(truth), read_rows(jsonl), json.loads(child.read().splitlines()[-1])


@pytest.mark.core
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", ["sleep", "spin"])
def test_each_block_of_budget_and_a_beat_is_reported_once(
    kind: str, loop: str, tmp_path: Path
) -> None:
    """At whatever phase of the beat it begins; and the record says where it blocked.

    A busy machine may leave it so little of a CPU that the rest is within the budget: only then may
    it be said to have not been scheduled, or be left out.
    """
    truths, records, stats = _run(loop, kind, BUDGET + BEAT + 0.01, tmp_path)
    assert stats["stalls"] == len(records)
    counts = [sum(belongs(record, truth) for record in records) for truth in truths]
    assert sum(counts) == len(records)
    starved = [kind == "spin" and truth["used"] < BUDGET for truth in truths]
    assert counts == [min(n, 1) if poor else 1 for n, poor in zip(counts, starved, strict=True)]
    for record in records:
        if record["cause"] == "not_scheduled":
            (used,) = [truth["used"] for truth in truths if belongs(record, truth)]
            assert kind == "spin"
            assert record["cpu_time"] < BUDGET
            assert used - record["duration_error"] < BUDGET
        else:
            blamed = record["cause"], record["culprit"]["function"], record["call"]
            assert blamed in _blame(kind)


def _blame(kind: str) -> set[tuple[str, str, str | None]]:
    if kind == "sleep":
        return {("blocking_call", "main", "time.sleep")}
    return {("cpu", "spin", "time.perf_counter"), ("cpu", "spin", None)}


@pytest.mark.core
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", ["sleep", "spin"])
def test_a_block_below_the_budget_is_never_reported(kind: str, loop: str, tmp_path: Path) -> None:
    """Nine tenths of a budget, at whatever phase; what the machine drew out beyond it is excused."""
    truths, records, _ = _run(loop, kind, 0.9 * BUDGET, tmp_path)
    records = [record for record in records if record["cause"] != "not_scheduled"]
    longer = [truth for truth in truths if truth["lasted"] > BUDGET - CLOCK]
    assert [
        record for record in records if not any(belongs(record, truth) for truth in longer)
    ] == []
