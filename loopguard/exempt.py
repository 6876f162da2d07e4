"""What may block: code that says so itself, and what the options name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable
from contextvars import Context, ContextVar
from fnmatch import fnmatchcase
from types import TracebackType
from typing import ParamSpec, TypeVar, cast

from loopguard.clock import monotonic_ns

P = ParamSpec("P")
R = TypeVar("R")


_DEBUGGERS = frozenset(
    {"bdb", "debugpy", "ipdb", "pdb", "pdbpp", "pudb", "pydevd", "_pydevd_bundle"}
)
"""Whose frames stand above the line where a debugger has stopped (VS Code and PyCharm: those of pydevd)."""


class _Permit:
    """One block while it is entered, and when it was left (CLOCK_MONOTONIC): a task that was started in it carries
    it on in its context for as long as it lives."""

    __slots__ = ("left_ns", "reason")

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.left_ns: int | None = None


_permits: ContextVar[tuple[_Permit, ...]] = ContextVar("loopguard_allowed", default=())
"""Of the blocks that the code is in, the innermost last."""


class allow_blocking:  # noqa: N801 - used like a function: a context manager and decorator
    """Code that may hold the loop: a stall inside is counted as exempt and otherwise not reported.

    As `with allow_blocking("reason"):` or as a decorator of a function, sync or async.
    """

    def __init__(self, reason: str) -> None:
        if not isinstance(reason, str):
            raise TypeError(f"allow_blocking needs a reason in words, not {reason!r}")
        if not reason.strip():
            raise ValueError(f"allow_blocking needs a reason in words, not {reason!r}")
        self._reason = reason

    def __enter__(self) -> None:
        _permits.set((*_permits.get(), _Permit(self._reason)))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # No tokens: several tasks may be in one instance at a time, and each has a context of its own.
        *outer, left = _permits.get()
        left.left_ns = monotonic_ns()
        _permits.set(tuple(outer))

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        if inspect.iscoroutinefunction(function):
            return cast(Callable[P, R], _around_coroutine(self._reason, function))
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError(
                "allow_blocking decorates functions and coroutine functions, not generators"
            )

        @functools.wraps(function)
        def allowed(*args: P.args, **kwargs: P.kwargs) -> R:
            with allow_blocking(self._reason):
                return function(*args, **kwargs)

        return allowed


def _around_coroutine(
    reason: str, function: Callable[P, Awaitable[R]]
) -> Callable[P, Awaitable[R]]:
    @functools.wraps(function)
    async def allowed(*args: P.args, **kwargs: P.kwargs) -> R:
        with allow_blocking(reason):
            return await function(*args, **kwargs)

    return allowed


def reason_in(context: Context, since_ns: int = 0) -> str | None:
    """Why code that ran in `context` may block, in blocks that were not left before `since_ns`; None if it may not."""
    permits = context.get(_permits)
    for permit in reversed(permits or ()):
        if permit.left_ns is None or permit.left_ns >= since_ns:
            return permit.reason
    return None


def debugger_in(modules: Iterable[str | None]) -> str | None:
    """Why a callback on whose stack these modules were may hold the loop: somebody stands in a debugger there."""
    tops = {(module or "").partition(".")[0] for module in modules}
    return "debugger" if tops & _DEBUGGERS else None


def matches(patterns: Iterable[str], names: Iterable[str | None]) -> str | None:
    """The first of the patterns (`*` stands for any text) that one of the names matches."""
    known = [name for name in names if name is not None]
    return next(
        (pattern for pattern in patterns for name in known if fnmatchcase(name, pattern)), None
    )
