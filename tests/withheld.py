"""What the machine did not give: for how long the threads of this process were ready to run and got no CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

UNDISTURBED = 0.005  # seconds; what a quiet machine may take to run a thread


def run_delays() -> dict[str, int]:
    """Of each thread, in nanoseconds since it began; nothing where nobody tells."""
    delays = {}
    for task in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # it has ended
            delays[task.parent.name] = int(task.read_text().split()[1])
    return delays


def most_withheld(before: Mapping[str, int], after: Mapping[str, int]) -> float:
    """Seconds for which the machine gave no CPU to the thread that lacked it most."""
    return max((after[task] - before.get(task, 0) for task in after), default=0) / 1e9


@contextmanager
def excused(truth: Mapping[str, Any]) -> Iterator[None]:
    """What fails in here is skipped where the machine gave no CPU, by its own account: of that less is known."""
    try:
        yield
    except AssertionError as miss:
        if truth["withheld"] <= UNDISTURBED:
            raise
        pytest.skip(f"the machine gave no CPU for {truth['withheld']:.4f} s: {miss}")
