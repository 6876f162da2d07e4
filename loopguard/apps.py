"""The applications that are followed: whose code is whose, and which route a request has."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import Context
from typing import Protocol

from loopguard.capture.lifespan import Lifespan
from loopguard.capture.requests import RequestTable
from loopguard.evidence import ActiveRequest, RawFrame
from loopguard.explain.ownership import Ownership


class App(Protocol):
    """An application that we follow the requests of; see `integrations.asgi`."""

    def enter(
        self, requests: RequestTable, lifespan: Lifespan, trouble: Callable[[BaseException], None]
    ) -> None: ...
    def leave(self) -> None: ...
    def packages(self) -> Iterable[str]: ...
    def route(self, request: ActiveRequest, context: Context | None) -> str | None: ...


class Apps:
    """All of them; `in_app` are the packages that the user calls their own beside those of the applications."""

    def __init__(self, in_app: tuple[str, ...]) -> None:
        self.all: list[App] = []
        self._in_app = in_app
        self._ownership: Ownership | None = None
        self._until_known = Ownership(in_app)

    def ownership(self) -> Ownership:
        """Whose code is whose; found out at the first stall, when each application has all its routes."""
        if self._ownership is None:
            derived = [name for app in self.all for name in app.packages()]
            self._ownership = Ownership((*self._in_app, *derived))
        return self._ownership

    def seem_to_own(self, frame: RawFrame) -> bool:
        """For the watchdog, which has no time to find out: by what is known so far."""
        return not (self._ownership or self._until_known).library(frame)

    def route(self, request: ActiveRequest, context: Context | None) -> str | None:
        routes = (app.route(request, context) for app in self.all)
        return next((route for route in routes if route is not None), None)
