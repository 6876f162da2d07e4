"""The instrumentor, called by hand: nothing starts before a loop runs, and nothing is left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("opentelemetry.instrumentation", reason="needs the extra `fastapi`")
pytest.importorskip("starlette", reason="needs the extra `fastapi`")

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import loopguard
from loopguard.integrations.instrumentor import LoopguardInstrumentor
from tests.holding import BUDGET, LONG, changes_since, left_in_process, run

CALL = Starlette.__call__


def ours() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("loopguard")]


@pytest.fixture
def instrumentor(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopguardInstrumentor]:
    monkeypatch.setenv("LOOPGUARD_BUDGET", str(BUDGET))
    monkeypatch.setenv("LOOPGUARD_LOG", "off")
    made = LoopguardInstrumentor()
    made.instrument()
    yield made
    if made.is_instrumented_by_opentelemetry:
        made.uninstrument()
    assert Starlette.__call__ is CALL


async def block(request: Request) -> PlainTextResponse:
    import time

    time.sleep(LONG)
    return PlainTextResponse("done")


def shop() -> Starlette:
    inner = Starlette(routes=[Route("/block", block)])
    return Starlette(routes=[Route("/block/{item}", block), Mount("/inner", inner)])


async def asked(app: Any, path: str) -> None:
    """A request, as a server makes it."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        assert message.get("status", 200) == 200

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "headers": [],
        "query_string": b"",
        "root_path": "",
        "http_version": "1.1",
        "scheme": "http",
        "server": ("test", 80),
        "client": ("test", 1),
    }
    await asyncio.sleep(BUDGET)
    await asyncio.create_task(app(scope, receive, send))
    await asyncio.sleep(BUDGET)


def routes_told(*apps: Any) -> list[str | None]:
    """The routes of the stalls of a request for each kind of path of the apps."""

    async def main() -> list[str | None]:
        for app in apps:
            await asked(app, "/block/7")
            await asked(app, "/inner/block")
        from loopguard import installation

        assert installation._installed is not None
        guard = installation._installed.guard
        assert await asyncio.to_thread(guard.flush, 10)
        told = [stall for stall in guard.stalls if stall.call == "time.sleep"]
        assert guard.stats()["troubles"] == 0
        assert told[-1].process.requests == 2 * len(apps)
        return [stall.request.route for stall in told if stall.request is not None]

    return run(main())


def test_nothing_starts_before_a_loop_runs(instrumentor: LoopguardInstrumentor) -> None:
    assert ours() == []
    run(asyncio.sleep(0))
    assert ours() != []


def test_each_app_that_is_served_is_followed_and_none_that_is_mounted(
    instrumentor: LoopguardInstrumentor,
) -> None:
    assert routes_told(shop(), shop()) == ["/block/{item}", "/inner/block"] * 2


def test_uninstrumented_nothing_is_left(instrumentor: LoopguardInstrumentor) -> None:
    instrumentor.uninstrument()
    before = left_in_process()
    instrumentor.instrument()
    app = shop()
    routes_told(app)
    instrumentor.uninstrument()
    assert changes_since(before) == {}
    assert Starlette.__call__ is CALL
    run(asked(app, "/block/7"))
    assert ours() == []


def test_an_explicit_install_replaces_it_and_is_not_uninstrumented(
    instrumentor: LoopguardInstrumentor,
) -> None:
    app = shop()
    guard = loopguard.install(app, budget=BUDGET, log=False)
    assert Starlette.__call__ is CALL
    assert routes_told(app) == ["/block/{item}", "/inner/block"]
    instrumentor.uninstrument()
    assert loopguard.install(app, budget=BUDGET, log=False) is guard


def test_it_is_replaced_also_while_its_loop_runs(instrumentor: LoopguardInstrumentor) -> None:
    """As from an application's lifespan."""
    app = shop()

    async def main() -> list[str | None]:
        await asked(app, "/block/7")
        guard = loopguard.install(app, budget=BUDGET, log=False)
        await asked(app, "/block/7")
        assert await asyncio.to_thread(guard.flush, 10)
        told = [stall for stall in guard.stalls if stall.call == "time.sleep"]
        return [stall.request.route for stall in told if stall.request is not None]

    assert run(main()) == ["/block/{item}"]


def test_wrap_is_explicit_too(instrumentor: LoopguardInstrumentor) -> None:
    loopguard.wrap(shop())
    assert Starlette.__call__ is CALL


def test_it_leaves_an_explicit_install_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = loopguard.install(budget=BUDGET, log=False)
    made = LoopguardInstrumentor()
    made.instrument()
    made.uninstrument()
    assert loopguard.install(budget=BUDGET, log=False) is guard


def test_switched_off_it_patches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPGUARD_ENABLED", "0")
    made = LoopguardInstrumentor()
    made.instrument()
    assert Starlette.__call__ is CALL
    run(asyncio.sleep(0))
    assert ours() == []
    made.uninstrument()
