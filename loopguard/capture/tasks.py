"""The tasks of a loop, and what they wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from types import BuiltinFunctionType
from typing import Any, cast
from weakref import WeakSet

Task = asyncio.Task[Any]
Future = asyncio.Future[Any]
Known = Callable[[], Task | None]

# Where asyncio notes tasks of all loops: since 3.12, and before.
_NOTED = ("_scheduled_tasks", "_all_tasks")


def tasks_of(loop: asyncio.AbstractEventLoop) -> Sequence[Known]:
    """What gives each task, those of other loops among them; None for one that is gone. On any thread.

    `asyncio.all_tasks` takes milliseconds for 10,000 in one go, where it is written in Python (until 3.13); to copy the
    references takes a tenth of one.
    """
    if not isinstance(asyncio.all_tasks, BuiltinFunctionType):
        for noted in (getattr(asyncio.tasks, name, None) for name in _NOTED):
            if isinstance(noted, WeakSet):
                return list(cast(Any, noted).data)
    return [partial(_same, task) for task in asyncio.all_tasks(loop)]


def _same(task: Task) -> Task:
    return task


def waits_for(task: Task) -> Future | None:
    """What a task waits for; None where it is ready to run.

    Raises:
        AttributeError: a task of some other make, which does not tell.
    """
    waiter: Future | None = task._fut_waiter  # type: ignore[attr-defined]
    return None if waiter is None or waiter.done() else waiter
