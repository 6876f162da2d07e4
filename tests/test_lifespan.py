"""The phase of the lifespan: that in which a line blocked, not the one that has begun by the time it is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

import loopguard

pytestmark = pytest.mark.core


async def ask(app: Any, path: str) -> None:
    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(_message: Any) -> None:
        pass

    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
    await app(scope, receive, send)


async def live(app: Any, seen: Callable[[str], None], path: str | None = None) -> None:
    """A whole life, as a server has it; `seen` is told of each message, as it is sent."""
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    started = asyncio.Event()

    async def send(message: Any) -> None:
        seen(message["type"])
        started.set()

    inbox.put_nowait({"type": "lifespan.startup"})
    task = asyncio.create_task(app({"type": "lifespan", "asgi": {}}, inbox.get, send))
    task.add_done_callback(lambda _task: started.set())
    await started.wait()
    if task.done():
        await task  # it has refused
    await asyncio.sleep(0.06)
    if path is not None:
        await ask(app, path)
        await asyncio.sleep(0.06)
    inbox.put_nowait({"type": "lifespan.shutdown"})
    await task


def blocking_lifespan(begin: Callable[[FastAPI], Any]) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        begin(app)
        await asyncio.sleep(0.06)
        time.sleep(0.3)
        yield
        time.sleep(0.3)

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def blocks() -> str:
        time.sleep(0.3)
        return "done"

    return app


@pytest.mark.parametrize("place", ["module", "lifespan"])
def test_each_phase_is_told_as_what_it_was(place: str) -> None:
    """The step that blocked at startup has said that it is complete before the loop comes back, and so on."""
    guards: list[loopguard.Guard] = []

    def install(app: FastAPI) -> None:
        guards.append(loopguard.install(app, log=False))

    app = blocking_lifespan(install if place == "lifespan" else lambda _app: None)
    if place == "module":
        install(app)
    asyncio.run(live(app, lambda _message: None, "/"))
    (guard,) = guards
    assert guard.flush(5)
    told = [stall for stall in guard.stalls if stall.call == "time.sleep"]
    assert [stall.phase for stall in told] == ["startup", "serving", "shutdown"]
    assert [stall.severity for stall in told] == ["warning"] * 3


def test_all_is_told_before_the_server_hears_that_the_application_has_ended() -> None:
    """It may end its process by a signal then; the last stall may be of the very step that says so."""
    app = blocking_lifespan(lambda _app: None)
    guard = loopguard.install(app, log=False)
    told: dict[str, int] = {}

    def seen(message: str) -> None:
        told[message] = sum(stall.phase == "shutdown" for stall in guard.stalls)

    asyncio.run(live(app, seen))
    assert told == {"lifespan.startup.complete": 0, "lifespan.shutdown.complete": 1}


def test_an_application_without_a_lifespan_serves_all_the_same() -> None:
    """As Django does: it refuses the lifespan by an error, and is not in its startup for ever."""

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        if scope["type"] == "lifespan":
            raise ValueError("not lifespan")
        time.sleep(0.3)

    async def main() -> None:
        wrapped = loopguard.wrap(app)
        with pytest.raises(ValueError, match="not lifespan"):
            await live(wrapped, lambda _message: None)
        await ask(wrapped, "/")
        await asyncio.sleep(0.06)

    guard = loopguard.install(log=False)
    asyncio.run(main())
    assert guard.flush(5)
    (stall,) = [stall for stall in guard.stalls if stall.call == "time.sleep"]
    assert stall.phase == "serving"


def test_the_layer_goes_inside_of_what_opens_the_span_and_comes_out_again() -> None:
    """Of another framework too: only there is the request's own span known."""

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        pass

    telemetry = OpenTelemetryMiddleware(app)
    inside = telemetry.app
    loopguard.wrap(telemetry, log=False)
    assert telemetry.app is not inside
    loopguard.uninstall()
    assert telemetry.app is inside
