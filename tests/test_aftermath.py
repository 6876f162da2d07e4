"""Which requests were ready to run when the loop came back: real tasks on real loops, and 10,000 at once."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

import pytest

from loopguard.capture.aftermath import RequestsAround
from loopguard.capture.requests import RequestTable
from loopguard.capture.streaming import is_open_connection
from loopguard.capture.tasks import tasks_of, waits_for
from loopguard.evidence import Crossing
from tests.holding import LOOPS, run

HELD = 0.3
SOON = 0.1  # within it
LONG = 30.0  # beyond it


@dataclass
class Peer:
    """Both ends of a connection that is answered, or not, and what else requests wait for."""

    answered: socket.socket
    silent: socket.socket
    event: asyncio.Event = field(default_factory=asyncio.Event)
    never: asyncio.Event = field(default_factory=asyncio.Event)
    over: threading.Event = field(default_factory=threading.Event)


Handler = Callable[[Peer], Awaitable[object]]


async def read(connection: socket.socket) -> None:
    await asyncio.get_running_loop().sock_recv(connection, 1)


async def spin(_peer: Peer) -> None:
    while True:
        await asyncio.sleep(0)


async def tick(_peer: Peer) -> None:
    while True:
        await asyncio.sleep(0.01)


async def gather(peer: Peer) -> None:
    await asyncio.gather(asyncio.sleep(SOON), peer.never.wait())


async def group(peer: Peer) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(asyncio.sleep(SOON))
        tasks.create_task(peer.never.wait())


async def wait_for_group(peer: Peer) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(peer.never.wait())


async def in_time(peer: Peer) -> None:
    async with asyncio.timeout(SOON):
        await peer.never.wait()


READY: dict[str, Handler] = {
    "sleep": lambda _: asyncio.sleep(SOON),
    "spin": spin,
    "tick": tick,
    "answered": lambda peer: read(peer.answered),
    "thread": lambda _: asyncio.to_thread(time.sleep, SOON),
    "gather": gather,
    "group": group,
    "in_time": in_time,
    "set_before": lambda peer: peer.event.wait(),
}
WAITS: dict[str, Handler] = {
    "sleep_long": lambda _: asyncio.sleep(LONG),
    "event": lambda peer: peer.never.wait(),
    "queue": lambda _: asyncio.Queue[None]().get(),
    "silent": lambda peer: read(peer.silent),
    "thread_long": lambda peer: asyncio.to_thread(peer.over.wait),
    "gather_long": lambda peer: asyncio.gather(asyncio.sleep(LONG), peer.never.wait()),
    "group_long": wait_for_group,
}


async def set_then_waits(peer: Peer) -> None:
    await peer.event.wait()
    await peer.never.wait()


async def request(table: RequestTable, name: str, handler: Handler, peer: Peer) -> None:
    """As a server runs one: in a task with a context of its own."""

    async def served() -> None:
        await handler(peer)

    coroutine = served()
    table.follower()({"type": "http", "name": name}, coroutine)
    await coroutine


@contextmanager
def peers() -> Iterator[Peer]:
    pairs = [socket.socketpair() for _ in range(2)]
    try:
        for near, _ in pairs:
            near.setblocking(False)
        peer = Peer(pairs[0][0], pairs[1][0])
        timer = threading.Timer(SOON, pairs[0][1].send, (b"x",))
        timer.start()
        yield peer
        timer.join()
        peer.over.set()
    finally:
        for pair in pairs:
            for each in pair:
                each.close()


async def crossings(handlers: dict[str, Handler], glance: bool) -> dict[str, bool | None]:
    """Hold the loop with those in flight, and look; what is not in the answer is known to have waited."""
    loop, table = asyncio.get_running_loop(), RequestTable()
    around = RequestsAround(loop, table, 0)
    tasks: list[asyncio.Task[None]] = []
    peer_of = peers()
    with peer_of as peer:
        for name, handler in handlers.items():
            tasks.append(asyncio.create_task(request(table, name, handler, peer)))
        await asyncio.sleep(0)
        await asyncio.sleep(0.015)
        over = threading.Event()
        watchdog = threading.Timer(SOON, around.glance, ("key", over.is_set))
        if glance:
            watchdog.start()
        peer.event.set()
        loop.call_later(0.02, around.look)  # as the beat that is due in mid-stall
        start_ns = time.monotonic_ns()
        time.sleep(HELD)
        end_ns = time.monotonic_ns()
        over.set()
        await asyncio.sleep(0.05)
        seen = around.in_flight(start_ns, end_ns, [])
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert seen.open_connections == 0
    return {crossing.request.scope["name"]: crossing.ready for crossing in seen.crossings}


@pytest.mark.core
@pytest.mark.parametrize("loop", LOOPS)
def test_exactly_those_are_ready_that_could_have_run(loop: str) -> None:
    """Whatever they waited for: the ones that got it meanwhile, and none of those that went on waiting."""
    assert run(crossings(READY | WAITS, glance=True), loop) == dict.fromkeys(READY, True)


@pytest.mark.core
@pytest.mark.parametrize("loop", LOOPS)
def test_without_a_glance_those_are_missed_at_most_that_ran_on_before_the_first_beat(
    loop: str,
) -> None:
    """As where native code kept the GIL to the end: none is named that went on waiting."""
    found = run(crossings(READY | WAITS, glance=False), loop)
    behind_the_culprit = {"tick", "spin", "set_before"}
    assert found == dict.fromkeys(found, True)
    assert set(READY) - behind_the_culprit <= set(found) <= set(READY)


@pytest.mark.core
@pytest.mark.parametrize("loop", LOOPS)
def test_one_that_runs_on_before_anybody_can_look_was_seen_ready_in_mid_stall(loop: str) -> None:
    """It stood behind the culprit in the same iteration, and waits for something else right after it."""
    assert run(crossings({"behind": set_then_waits}, glance=True), loop) == {"behind": True}


@pytest.mark.core
def test_with_very_many_tasks_it_is_not_known_unless_there_was_time_to_look() -> None:
    """Rather than holding the loop."""

    async def main() -> tuple[set[bool | None], set[bool | None]]:
        others = [asyncio.create_task(asyncio.sleep(LONG)) for _ in range(1000)]
        await asyncio.sleep(0)
        handlers = {"tick": tick, **WAITS}
        found = [set((await crossings(handlers, glance)).values()) for glance in (True, False)]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        return found[0], found[1]

    assert run(main()) == ({True}, {None})


@pytest.mark.core
def test_a_request_without_a_task_is_not_known() -> None:
    """As one whose server runs it by hand."""

    async def main() -> list[Crossing]:
        table = RequestTable()
        around = RequestsAround(asyncio.get_running_loop(), table, 0)
        coroutine = asyncio.sleep(0)
        Context().run(table.follower(), {"type": "http"}, coroutine)
        around.look()
        await asyncio.sleep(0)
        seen = around.in_flight(0, time.monotonic_ns(), [])
        coroutine.close()
        return list(seen.crossings)

    (crossing,) = asyncio.run(main())
    assert crossing.ready is None


@pytest.mark.core
def test_all_tasks_are_found() -> None:
    async def main() -> bool:
        tasks = {asyncio.create_task(asyncio.sleep(LONG)) for _ in range(50)}
        await asyncio.sleep(0)
        found = {known() for known in tasks_of(asyncio.get_running_loop())}
        waiting = [waits_for(task) for task in tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert None not in waiting
        return tasks <= found

    assert asyncio.run(main())


class TestOpenConnections:
    """What is counted apart: WebSockets, and responses that have streamed for over a minute."""

    MINUTE = 61_000_000_000

    @pytest.mark.core
    def test_a_websocket_is_one_from_its_beginning(self) -> None:
        assert is_open_connection({"type": "websocket"}, 0, None)

    @pytest.mark.core
    @pytest.mark.parametrize("lasted_ns", [59_000_000_000, MINUTE])
    def test_a_response_that_streams_is_one_after_a_minute(self, lasted_ns: int) -> None:
        from starlette.responses import StreamingResponse

        async def never() -> Any:
            await asyncio.Event().wait()
            yield b""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await StreamingResponse(never())(scope, receive, send)

        async def main() -> bool:
            async def receive() -> Any:
                await asyncio.Event().wait()

            async def send(_message: Any) -> None:
                pass

            scope = {"type": "http", "asgi": {}}
            coroutine = app(scope, receive, send)
            task = asyncio.create_task(coroutine)
            await asyncio.sleep(0.01)
            found = is_open_connection(scope, lasted_ns, coroutine)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return found

        assert asyncio.run(main()) is (lasted_ns == self.MINUTE)

    @pytest.mark.core
    @pytest.mark.parametrize("begun", [True, False])
    def test_the_server_says_whether_a_response_has_begun(self, begun: bool) -> None:
        class Cycle:
            def __init__(self) -> None:
                self.transport = object()
                self.response_started = begun

            async def receive(self) -> Any:
                await asyncio.Event().wait()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()

        async def main() -> bool:
            coroutine = app({}, Cycle().receive, None)
            task = asyncio.create_task(coroutine)
            await asyncio.sleep(0)
            found = is_open_connection({"type": "http"}, self.MINUTE, coroutine)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return found

        assert asyncio.run(main()) is begun

    @pytest.mark.core
    def test_a_slow_request_is_none(self) -> None:
        assert not is_open_connection({"type": "http"}, self.MINUTE, None)
