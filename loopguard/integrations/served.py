"""The Starlette applications that are served, found as each is called first, where nobody names them."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any
from weakref import ref as reference


class ServedApps:
    """Tells `follow` of each FastAPI or Starlette application that a server calls, once; not of those mounted in one.

    By a wrapper around `Starlette.__call__`, which FastAPI calls too. `follow` never raises.
    """

    def __init__(self, follow: Callable[[Any], None]) -> None:
        self._follow = follow
        self._seen: dict[int, reference[Any]] = {}
        self._entered: tuple[Any, Any, Any] | None = None
        self._left = False

    def enter(self) -> None:
        """Begin; does nothing where Starlette is not installed."""
        try:
            from starlette.applications import Starlette
        except ImportError:
            return
        wrapper = self._wrap(Starlette.__call__)
        self._entered = Starlette, Starlette.__call__, wrapper
        Starlette.__call__ = wrapper  # type: ignore[method-assign]

    def leave(self) -> None:
        """Put everything back. Where somebody else has wrapped our wrapper since, it stays there and does nothing."""
        self._left = True
        if self._entered is not None:
            kind, original, wrapper = self._entered
            if kind.__call__ is wrapper:
                kind.__call__ = original
            self._entered = None

    def _wrap(self, original: Any) -> Any:
        seen, note = self._seen, self._note

        def call(app: Any, scope: Any, receive: Any, send: Any) -> Any:
            if id(app) not in seen:
                note(app, scope)
            return original(app, scope, receive, send)

        return in_place_of(original, call)

    def _note(self, app: Any, scope: Any) -> None:
        if (
            self._left or "endpoint" in scope
        ):  # one that is mounted: the router has put itself there
            return
        key = id(app)
        self._seen[key] = reference(app, lambda _: self._seen.pop(key, None))
        self._follow(app)


def in_place_of(original: Any, call: Callable[[Any, Any, Any, Any], Any]) -> Any:
    """`call`, which hands on the coroutine of `original`, such that servers take it for the coroutine function."""
    if sys.version_info >= (3, 12):
        # A further coroutine around each request would cost more; but servers ask whether it is one.
        return inspect.markcoroutinefunction(functools.wraps(original)(call))

    @functools.wraps(original)
    async def called(app: Any, scope: Any, receive: Any, send: Any) -> None:
        await call(app, scope, receive, send)

    return called
