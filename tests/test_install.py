"""Installed once, in whatever place and on whatever loop; uninstalled without a trace."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import loopguard
from tests.holding import (
    BUDGET,
    LONG,
    LOOPS,
    REST,
    UVLOOP,
    changes_since,
    hold,
    left_in_process,
    new_loop,
    run,
    told,
)

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def _everything_loaded() -> None:
    """What is made once in a process and stays: imported modules, libuv's pipe for signals."""
    with loopguard.install(log=False):
        run(asyncio.sleep(0))
        if UVLOOP:
            run(asyncio.sleep(0), "uvloop")


@pytest.fixture(autouse=True)
def nothing_left(_everything_loaded: None) -> Iterator[None]:
    """After each test the process is as it was before: threads, files, signals, patches."""
    before = left_in_process()
    yield
    loopguard.uninstall()
    assert changes_since(before) == {}


def install(app: Any = None, **options: Any) -> loopguard.Guard:
    return loopguard.install(app, **{"budget": BUDGET, "log": False, **options})


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_that_runs_later_is_guarded(loop: str) -> None:
    guard = install()
    run(hold(), loop)
    (stall,) = told(guard)
    assert stall.culprit is not None
    assert (stall.call, stall.culprit.function) == ("time.sleep", "hold")
    assert ("uvloop" in stall.loop) == (loop == "uvloop")


@pytest.mark.parametrize("loop", LOOPS)
def test_the_loop_that_runs_already_is_guarded(loop: str) -> None:
    async def main() -> None:
        guard = install()
        await hold()
        assert len(told(guard)) == 1
        assert guard.stats()["loops"] == 1

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_that_was_joined_is_left_when_it_stops(loop: str) -> None:
    """What comes between two runs of it is no stall, and nothing of ours is on it."""
    guards = []

    async def main() -> None:
        guards.append(install())
        await asyncio.sleep(REST)

    own = new_loop(loop)
    own.run_until_complete(main())
    assert guards[0].stats()["loops"] == 0
    assert "stop" not in vars(own)
    time.sleep(LONG)
    own.run_until_complete(asyncio.sleep(REST))
    assert told(guards[0]) == []
    own.run_until_complete(hold())
    assert len(told(guards[0])) == 1
    own.close()


@pytest.mark.parametrize("loop", LOOPS)
def test_the_last_callback_of_a_joined_loop_is_judged_too(loop: str) -> None:
    async def main() -> loopguard.Guard:
        guard = install()
        await asyncio.sleep(REST)
        time.sleep(LONG)
        return guard

    assert [stall.call for stall in told(run(main(), loop))] == ["time.sleep"]


@pytest.mark.parametrize("loop", LOOPS)
def test_several_loops_are_guarded_at_a_time(loop: str) -> None:
    guard = install()
    threads = [threading.Thread(target=run, args=(hold(), loop), name=f"t{n}") for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {stall.thread for stall in told(guard)} == {"t0", "t1", "t2"}


def test_an_identical_install_is_the_same_guard(tmp_path: Path) -> None:
    def listen(stall: loopguard.Stall) -> None: ...

    options = {"jsonl": tmp_path / "x", "ignore": "a,b", "on_stall": listen, "root": tmp_path}
    guard = install(**options)
    assert install(**options) is guard
    assert install(**options, error_budget=None) is guard
    guard.budget = 0.5
    assert install(**options) is guard


def test_an_identical_install_is_the_same_guard_in_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon goes to / between its start and its application's lifespan."""
    guard = install()
    monkeypatch.chdir(tmp_path)
    assert install() is guard
    with pytest.raises(loopguard.AlreadyInstalledError):
        install(root=tmp_path)


def test_an_install_that_fails_half_way_is_undone() -> None:
    """As with an application that does not let itself be changed."""

    class Frozen:
        router = middleware_stack = None
        __slots__ = ()

        def build_middleware_stack(self) -> None: ...

    before = left_in_process()
    with pytest.raises((AttributeError, TypeError)):
        install(Frozen())
    assert changes_since(before) == {}
    with install(budget=0.2) as guard:
        assert guard.budget == 0.2


@pytest.mark.parametrize("other", [{"budget": 0.2}, {"source": False}, {"ignore": "startup"}])
def test_another_install_is_refused_and_changes_nothing(
    other: dict[str, Any], tmp_path: Path
) -> None:
    guard = install()
    time.sleep(REST)  # its watchdog opens a file or two as it begins
    before = left_in_process()
    with pytest.raises(loopguard.AlreadyInstalledError):
        install(**other, jsonl=tmp_path / "new.jsonl")
    assert changes_since(before) == {}
    assert list(tmp_path.iterdir()) == []
    assert install() is guard


def test_after_uninstall_another_can_be_installed() -> None:
    first = install()
    loopguard.uninstall()
    second = install(budget=0.2)
    assert second is not first
    first.uninstall()  # too late: not its own any more
    assert install(budget=0.2) is second


def test_uninstall_is_for_nothing_where_nothing_is_installed() -> None:
    before = left_in_process()
    loopguard.uninstall()
    guard = install()
    guard.uninstall()
    guard.uninstall()
    loopguard.uninstall()
    assert changes_since(before) == {}


@pytest.mark.parametrize("loop", LOOPS)
def test_what_was_seen_can_be_read_after_uninstall(loop: str) -> None:
    with install() as guard:
        run(hold(), loop)
    assert [stall.call for stall in guard.stalls] == ["time.sleep"]
    stats = guard.stats()
    assert (stats["stalls"], stats["logged"], stats["loops"]) == (1, 1, 0)
    assert guard.flush(0.1)


@pytest.mark.parametrize("loop", LOOPS)
def test_uninstalled_inside_the_loop_nothing_is_left_on_it(loop: str) -> None:
    async def main() -> None:
        running: Any = asyncio.get_running_loop()
        before = left_in_process()
        for place in (install().uninstall, loopguard.uninstall, install().uninstall):
            await asyncio.sleep(REST)
            place()
            install()
            await asyncio.sleep(REST)
            loopguard.uninstall()
            assert (changes_since(before), "stop" in vars(running)) == ({}, False)
            if loop == "asyncio":
                waiting = [*running._ready, *running._scheduled]
                assert [handle for handle in waiting if not handle.cancelled()] == []
        time.sleep(LONG)
        await asyncio.sleep(REST)

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_uninstalled_in_a_callback_that_is_a_stall_itself(loop: str) -> None:
    guard = install()

    def block_and_leave() -> None:
        time.sleep(LONG)
        loopguard.uninstall()

    async def main() -> None:
        await asyncio.sleep(REST)
        asyncio.get_running_loop().call_soon(block_and_leave)
        await asyncio.sleep(REST)

    run(main(), loop)
    assert [stall.culprit.function for stall in guard.stalls if stall.culprit] == [
        f"{test_uninstalled_in_a_callback_that_is_a_stall_itself.__name__}.<locals>.block_and_leave"
    ]


@pytest.mark.parametrize("loop", LOOPS)
def test_uninstalled_on_another_thread_while_the_loop_runs(loop: str) -> None:
    install()

    async def main() -> None:
        await asyncio.sleep(REST)
        await asyncio.get_running_loop().run_in_executor(None, loopguard.uninstall)
        await asyncio.sleep(REST)
        time.sleep(LONG)

    run(main(), loop)
    assert [name for name in threading.enumerate() if name.name.startswith("loopguard")] == []


def test_uninstalled_by_its_own_listener() -> None:
    """Also from the reporter's own thread."""
    gone = threading.Event()

    def listen(stall: loopguard.Stall) -> None:
        loopguard.uninstall()
        gone.set()

    install(on_stall=listen)
    run(hold())
    assert gone.wait(5)
    for thread in threading.enumerate():
        if thread.name.startswith("loopguard"):
            thread.join(5)


@pytest.mark.parametrize("loop", LOOPS)
def test_twenty_times_in_a_row_costs_nothing_more(loop: str, tmp_path: Path) -> None:
    """Threads and files after each are what they were before the first, and no guard lives on."""
    before = left_in_process()
    guards: weakref.WeakSet[loopguard.Guard] = weakref.WeakSet()
    for _ in range(20):
        with install(jsonl=tmp_path / "stalls.jsonl") as guard:
            run(asyncio.sleep(0.01), loop)
            assert guard.stats()["troubles"] == 0
        assert changes_since(before) == {}
        guards.add(guard)
        del guard
    gc.collect()
    assert len(guards) == 0


def test_somebody_elses_wrapper_around_ours_stays() -> None:
    """An APM may have patched the loop after us: what it put there is its own."""
    guard = install()
    ours = asyncio.BaseEventLoop.run_forever
    ran = []

    def theirs(self: asyncio.BaseEventLoop) -> None:
        ran.append(self)
        ours(self)

    asyncio.BaseEventLoop.run_forever = theirs  # type: ignore[method-assign]
    try:
        guard.uninstall()
        assert asyncio.BaseEventLoop.run_forever is theirs
        run(hold())
        assert len(ran) > 0
        assert guard.stalls == ()
    finally:
        asyncio.BaseEventLoop.run_forever = ours.__wrapped__  # type: ignore[method-assign, attr-defined]


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_switched_off_it_is_inert(
    how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = left_in_process()
    if how == "variable":
        monkeypatch.setenv("LOOPGUARD_ENABLED", "0")
        guard = install(jsonl=tmp_path / "stalls.jsonl")
    else:
        guard = install(jsonl=tmp_path / "stalls.jsonl", enabled=False)
    assert changes_since(before) == {}
    run(hold())
    assert guard.stalls == ()
    assert set(guard.stats().values()) == {0}
    assert guard.flush(0.0)
    guard.pause()
    guard.resume()
    guard.budget = 0.2
    assert guard.budget == 0.2
    assert list(tmp_path.iterdir()) == []
    guard.uninstall()
    monkeypatch.delenv("LOOPGUARD_ENABLED", raising=False)
    assert install().stats().keys() == guard.stats().keys()


Message = MutableMapping[str, Any]
App = Callable[[dict[str, Any], Callable[[], Awaitable[Message]], Any], Awaitable[None]]


@asynccontextmanager
async def lifespan_of(app: Any) -> AsyncIterator[None]:
    """Start the application and shut it down, as a server does: by messages, in a task of their own."""
    inbox: asyncio.Queue[Message] = asyncio.Queue()
    outbox: asyncio.Queue[Message] = asyncio.Queue()
    task = asyncio.create_task(app({"type": "lifespan"}, inbox.get, outbox.put))
    await inbox.put({"type": "lifespan.startup"})
    assert (await outbox.get())["type"] == "lifespan.startup.complete"
    yield
    await inbox.put({"type": "lifespan.shutdown"})
    assert (await outbox.get())["type"] == "lifespan.shutdown.complete"
    await task


async def request(app: Any, path: str) -> int:
    """The status that the application answers with."""
    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await asyncio.create_task(app({**scope, "root_path": "", "asgi": {}}, receive, send))
    return int(sent[0]["status"])


def make_app(lifespan: Any = None) -> Any:
    fastapi = pytest.importorskip("fastapi")
    app = fastapi.FastAPI(lifespan=lifespan)

    async def slow(item: str) -> str:
        time.sleep(LONG)
        return item

    app.add_api_route("/slow/{item}", slow)
    return app


def chain_of(app: Any) -> list[str]:
    """The classes of the built middleware, from outside to inside."""
    names, layer = [], app.middleware_stack
    while layer is not None:
        names.append(f"{type(layer).__module__}.{type(layer).__qualname__}")
        layer = getattr(layer, "app", None)
    return names


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("place", ["module", "running", "lifespan", "served"])
def test_an_app_is_followed_and_given_back_as_it_was(place: str, loop: str) -> None:
    """Installed before its middleware was built, in its lifespan, or after it has served."""

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        if place == "lifespan":
            install(app)
        yield

    app, untouched = make_app(lifespan), make_app()
    if place == "module":
        install(app)

    async def main() -> None:
        if place == "running":
            install(app)
        async with lifespan_of(untouched):
            pass
        async with lifespan_of(app):
            if place == "served":
                assert await request(app, "/slow/1") == 200
                await asyncio.sleep(REST)
                install(app)
            await asyncio.sleep(REST)
            assert await request(app, "/slow/4711") == 200
            await asyncio.sleep(REST)

    run(main(), loop)
    guard = install(app)
    (stall,) = [stall for stall in told(guard) if stall.request]
    assert stall.request is not None
    assert (stall.request.method, stall.request.route) == ("GET", "/slow/{item}")
    assert stall.phase == "serving"
    assert guard.stats()["in_flight"] == 0
    guard.uninstall()
    assert "build_middleware_stack" not in vars(app)
    assert chain_of(app) == chain_of(untouched)
    assert run(request(app, "/slow/4711"), loop) == 200


@pytest.mark.parametrize("loop", LOOPS)
def test_a_user_may_patch_the_app_too(loop: str) -> None:
    """What was on the app before us is there again; what came after us still serves."""
    app = make_app()
    build = app.build_middleware_stack

    def mine() -> Any:
        return build()

    app.build_middleware_stack = mine
    with install(app):
        assert app.build_middleware_stack is not mine
    assert app.build_middleware_stack is mine
    guard = install(app)
    outer = app.build_middleware_stack
    app.build_middleware_stack = lambda: outer()
    guard.uninstall()
    assert run(request(app, "/slow/4711"), loop) == 200
    assert not any(name.startswith("loopguard.") for name in chain_of(app))


RAW_APP = """
import time
import loopguard

async def raw(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    time.sleep(0.3)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})

app = loopguard.wrap(raw, budget=0.05)
assert loopguard.wrap(raw, budget=0.05) is not app  # a second application is followed by the same guard
"""


@pytest.mark.parametrize("loop", LOOPS)
def test_any_asgi_application_is_served_wrapped(loop: str, tmp_path: Path) -> None:
    """Under a real uvicorn, which must take it for ASGI 3."""
    uvicorn = pytest.importorskip("uvicorn")
    httpx = pytest.importorskip("httpx")
    from tests.real.server import Child, read_rows, wait_until

    app = loopguard.wrap(make_app(), enabled=False)
    config = uvicorn.Config(app, lifespan="off", log_config=None)
    config.load()
    assert config.interface == "asgi3"
    (tmp_path / "raw.py").write_text(RAW_APP)
    stalls = tmp_path / "stalls.jsonl"
    child = Child(
        ["-m", "uvicorn", "--app-dir", str(tmp_path), "raw:app", "--port", "0", "--loop", loop],
        tmp_path / "log",
        {"LOOPGUARD_JSONL": str(stalls), "LOOPGUARD_ROOT": str(tmp_path)},
    )
    try:
        url = child.wait_for(r"running on (http://127\.0\.0\.1:\d+)")
        assert httpx.get(f"{url}/secret/4711", trust_env=False, timeout=30).text == "ok"
        assert wait_until(lambda: bool(read_rows(stalls)), 5)
    finally:
        child.stop()
    record = next(row for row in read_rows(stalls) if row["request"])
    assert (record["culprit"]["file"], record["culprit"]["function"]) == ("raw.py", "raw")
    assert (record["request"]["method"], record["request"]["route"]) == ("GET", None)
    assert (record["phase"], "uvloop" in record["loop"]) == ("serving", loop == "uvloop")
    assert "secret" not in stalls.read_text()
    assert "Traceback" not in child.read()


def test_a_guard_of_its_own_is_not_replaced_by_wrap() -> None:
    async def nothing(scope: Any, receive: Any, send: Any) -> None: ...

    guard = install()
    loopguard.wrap(nothing)
    assert install() is guard
    with pytest.raises(loopguard.AlreadyInstalledError):
        loopguard.wrap(nothing, budget=0.2)


def test_a_process_that_never_uninstalls_ends_in_good_order(tmp_path: Path) -> None:
    """Its last stall is told, also where it ends right after it; nothing hangs and nothing complains."""
    script = """
import asyncio, sys, time
import loopguard
loopguard.install(budget=0.05, jsonl=sys.argv[1])
async def main():
    await asyncio.sleep(0.1)
    time.sleep(0.2)
asyncio.run(main())
"""
    stalls = tmp_path / "stalls.jsonl"
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", script, str(stalls)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert '"cause":"blocking_call"' in stalls.read_text()
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
