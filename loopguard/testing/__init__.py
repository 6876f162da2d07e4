"""For tests without pytest: `no_stalls`, and the error that it raises."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import ParamSpec, TypeVar, cast

from loopguard.record import Stall
from loopguard.testing.recorder import Recorder
from loopguard.testing.verdict import outcome_of
from loopguard.testing.words import explanation, headline

__all__ = ["StallError", "StallWarning", "no_stalls"]

P = ParamSpec("P")
R = TypeVar("R")


class StallError(AssertionError):
    """The event loop was blocked for longer than allowed; `stalls` are the records, the longest first."""

    def __init__(self, message: str, stalls: tuple[Stall, ...]) -> None:
        super().__init__(message)
        self.stalls = stalls


class StallWarning(UserWarning):
    """The event loop was blocked by an import or the garbage collector: real, but it fails no test."""


class no_stalls:  # noqa: N801 - used like a function: a context manager and decorator
    """No callback may hold an event loop of this process for longer than `budget` seconds.

    As `with no_stalls():` or `async with no_stalls():`, around code that runs loops or inside of one, or as a decorator
    of a function, sync or async. What the system took (a thread that got no CPU) does not count; an import or the
    garbage collector only warns. An error of the code's own goes on as it is, with what was found as a note.

    Raises:
        StallError: at the end, where one did.
        ConfigError: the budget is no number of seconds within the limits.
    """

    def __init__(self, budget: float = 0.1) -> None:
        self._budget = budget
        self._recorders: list[Recorder] = []
        Recorder(budget)  # a budget that cannot be used is refused here

    def __enter__(self) -> None:
        recorder = Recorder(self._budget)
        recorder.start()
        recorder.join()
        self._recorders.append(recorder)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        recorder = self._recorders.pop()
        try:
            found = self._judge(recorder)
        finally:
            recorder.stop()
        if found is not None and error is None:
            raise found
        if found is not None and error is not None:
            error.add_note(str(found))

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        if inspect.iscoroutinefunction(function):
            return cast(Callable[P, R], _around_coroutine(self._budget, function))
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError("no_stalls decorates functions and coroutine functions, not generators")

        @functools.wraps(function)
        def watched(*args: P.args, **kwargs: P.kwargs) -> R:
            with no_stalls(self._budget):
                return function(*args, **kwargs)

        return watched

    def _judge(self, recorder: Recorder) -> StallError | None:
        seen = sorted(recorder.take(), key=lambda each: -each.stall.duration)
        outcomes = [outcome_of(each, self._budget, recorder.evidence) for each in seen]
        texts = [f"{headline(each.stall, self._budget)}\n{explanation(each)}" for each in seen]
        for text, outcome in zip(texts, outcomes, strict=True):
            if outcome == "warns":
                warnings.warn(StallWarning(text), stacklevel=3)
        failing = [place for place, outcome in enumerate(outcomes) if outcome == "fails"]
        if not failing:
            return None
        message = "\n\n".join(texts[place] for place in failing)
        return StallError(message, tuple(seen[place].stall for place in failing))


def _around_coroutine(
    budget: float, function: Callable[P, Awaitable[R]]
) -> Callable[P, Awaitable[R]]:
    @functools.wraps(function)
    async def watched(*args: P.args, **kwargs: P.kwargs) -> R:
        async with no_stalls(budget):
            return await function(*args, **kwargs)

    return watched
