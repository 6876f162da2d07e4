"""One request under pyinstrument, on demand: who sends the token with a request gets that request's profile."""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from pyinstrument import Profiler
from pyinstrument.session import Session
from pyinstrument.stack_sampler import active_profiler_context_var

from loopguard.clock import monotonic
from loopguard.evidence import PROFILED

HEADER = b"x-loopguard-profile"
LONGEST = 30.0  # seconds; whoever is on that loop pays while it is on
APART = 10.0  # seconds between two
KEPT = 20  # files
_INTERVAL = 0.001

Scope = dict[str, Any]
Receive = Callable[[], Any]
Send = Callable[[Any], Any]
ASGIApp = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]


class RequestProfiler:
    """Profiles one request at a time in this process, and writes its session to a directory.

    `counts` tells how many were profiled, and how many tokens were wrong. Two profilers at once would spoil each
    other; a hook of somebody else's (`sys.setprofile`) is left alone.
    """

    def __init__(
        self,
        token: str,
        directory: Path,
        clock: Callable[[], float] = monotonic,
        longest: float = LONGEST,
    ) -> None:
        self.trouble: Callable[[BaseException], None] = _ignore
        self._token = token.encode()
        self._directory = directory
        self._clock = clock
        self._longest = longest
        self._taken = threading.Lock()
        self._free_at = 0.0
        self._counts = {"profiles": 0, "profiles_refused": 0}

    def counts(self) -> dict[str, int]:
        return self._counts.copy()

    def around(self, app: ASGIApp) -> ASGIApp:
        """The application, with the requests profiled that ask for it. Each other one costs a look at its headers."""

        def profiled(scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
            if scope["type"] == "http":
                for name, value in scope["headers"]:
                    if name.lower() == HEADER:
                        return self._asked(value, app, scope, receive, send)
            return app(scope, receive, send)

        return profiled

    def _asked(
        self, token: bytes, app: ASGIApp, scope: Scope, receive: Receive, send: Send
    ) -> Coroutine[Any, Any, None]:
        if hmac.compare_digest(token, self._token):
            return self._serve(app, scope, receive, send)
        self._counts["profiles_refused"] += 1
        return app(scope, receive, send)

    async def _serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        if sys.getprofile() is not None and not self._taken.locked():
            await app(scope, receive, _with_header(send, "unavailable"))
        elif self._clock() < self._free_at or not self._taken.acquire(blocking=False):
            await app(scope, receive, _with_header(send, "busy"))
        else:
            await self._profile(app, scope, receive, send)

    async def _profile(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        name = uuid4().hex[:16]
        profiler = Profiler(interval=_INTERVAL, async_mode="strict")
        try:
            profiler.start(target_description=f"request {name}")
        except Exception as error:  # noqa: BLE001 - the request is served all the same
            self.trouble(error)
            self._release()
            await app(scope, receive, _with_header(send, "unavailable"))
            return
        PROFILED.set(name)
        self._counts["profiles"] += 1
        finish = asyncio.get_running_loop().call_later(
            self._longest, self._finish, profiler, name, context=copy_context()
        )
        try:
            await app(scope, receive, _with_header(send, name))
        finally:
            finish.cancel()
            self._finish(profiler, name)
            # A server may go on to serve the connection in this context.
            active_profiler_context_var.set(None)
            PROFILED.set(None)

    def _finish(self, profiler: Profiler, name: str) -> None:
        """On the loop's thread, which took the samples; what is long is done on another."""
        if not profiler.is_running:
            return
        try:
            session = profiler.stop()
            threading.Thread(
                target=self._save, args=(session, name), name="loopguard-profile"
            ).start()
        except Exception as error:  # noqa: BLE001 - the request is served all the same
            self.trouble(error)
        finally:
            self._release()

    def _release(self) -> None:
        self._free_at = self._clock() + APART
        self._taken.release()

    def _save(self, session: Session, name: str) -> None:
        try:
            now = datetime.now(UTC)
            path = self._directory / f"profile-{now:%Y%m%dT%H%M%S}-{name}.json"
            whole = path.with_suffix(".part")
            fd = os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                json.dump(session.to_json(), file)
            whole.rename(path)
            for old in sorted(self._directory.glob("profile-*.json"))[:-KEPT]:
                old.unlink(missing_ok=True)
        except Exception as error:  # noqa: BLE001 - it is nobody else's trouble
            self.trouble(error)


def _with_header(send: Send, word: str) -> Send:
    """The response as it is, but for one header."""

    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), (HEADER, word.encode())]
            message = {**message, "headers": headers}
        await send(message)

    return sending


def _ignore(error: BaseException) -> None:
    pass
