"""When a request's data came, by the kernel's account of its connection; asked only shortly after a stall."""

from __future__ import annotations

import asyncio
import functools
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from loopguard.capture import arrivals
from loopguard.capture.arrivals import Arrivals
from loopguard.capture.lifespan import Lifespan
from loopguard.capture.requests import RequestTable
from loopguard.capture.sockets import since_last_data_ns
from loopguard.evidence import Held, LateBeat
from loopguard.explain.delays import delayed_in_queue
from loopguard.integrations.asgi import layer_around

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO is Linux's")
WAITED = 0.15
TICKS_NS = 15_000_000  # the kernel's, and a busy machine's


class Cycle:
    """As a server's own object for a request: its `receive` is bound to it, and it knows the transport."""

    def __init__(self, connection: socket.socket | None) -> None:
        self.transport = self
        self.connection = connection

    def get_extra_info(self, name: str) -> socket.socket | None:
        return self.connection if name == "socket" else None

    async def receive(self) -> dict[str, Any]:
        return {}


@contextmanager
def connected(family: socket.AddressFamily, path: Path) -> Iterator[socket.socket]:
    """The server's end of a connection that got data, unread for `WAITED` seconds."""
    unix = family == getattr(socket, "AF_UNIX", None)
    with socket.socket(family) as server, socket.socket(family) as client:
        server.bind(str(path / "socket") if unix else ("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
        client.send(b"GET / HTTP/1.1\r\n\r\n")
        time.sleep(WAITED)
        accepted, _ = server.accept()
        with accepted:
            yield accepted


def closed_over(receive: Callable[[], Any]) -> Callable[[], Any]:
    async def inner() -> Any:
        return await receive()

    return inner


def wrapped(receive: Callable[[], Any]) -> Callable[[], Any]:
    return functools.wraps(receive)(lambda: None)


class Bound:
    """As a middleware that hands on a method of its own."""

    def __init__(self, receive: Callable[[], Any]) -> None:
        self.receive = receive

    async def further(self) -> Any:
        return await self.receive()


@LINUX
@pytest.mark.core
@pytest.mark.parametrize(
    "around",
    [
        lambda receive: receive,
        closed_over,
        wrapped,
        functools.partial,
        lambda receive: Bound(receive).further,
        lambda receive: closed_over(wrapped(functools.partial(closed_over(receive)))),
    ],
    ids=["itself", "closure", "wraps", "partial", "method", "all of them"],
)
def test_the_kernel_tells_since_when_data_wait_however_receive_is_wrapped(
    around: Callable[[Any], object], tmp_path: Path
) -> None:
    with connected(socket.AF_INET, tmp_path) as connection:
        since_ns = since_last_data_ns(around(Cycle(connection).receive))
    assert since_ns is not None
    assert abs(since_ns - WAITED * 1e9) < 3 * TICKS_NS


@pytest.mark.core
@pytest.mark.parametrize(
    "receive",
    [None, 4711, print, lambda: None, Cycle(None).receive],
    ids=["nothing", "number", "in C", "function", "method without one"],
)
def test_where_no_connection_is_found_it_is_not_known(receive: object) -> None:
    assert since_last_data_ns(receive) is None


@pytest.mark.core
@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
def test_a_unix_socket_does_not_tell(tmp_path: Path) -> None:
    with connected(socket.AF_UNIX, tmp_path) as connection:
        assert since_last_data_ns(Cycle(connection).receive) is None


@LINUX
@pytest.mark.core
def test_a_closed_connection_does_not_tell(tmp_path: Path) -> None:
    with connected(socket.AF_INET, tmp_path) as connection:
        receive = Cycle(connection).receive
    assert since_last_data_ns(receive) is None


@pytest.mark.core
def test_nothing_of_the_users_runs_to_find_it() -> None:
    class Curious:
        """Whoever asks it for an attribute runs its code."""

        def __getattr__(self, name: str) -> object:
            raise AssertionError(f"asked for {name}")

        async def receive(self) -> None:
            pass

    assert since_last_data_ns(Curious().receive) is None


@pytest.mark.core
def test_a_circle_of_functions_ends() -> None:
    def first() -> object:
        return second

    def second() -> object:
        return first

    assert since_last_data_ns(first) is None


class World:
    """A layer, and what its requests are served by."""

    def __init__(self) -> None:
        self.table = RequestTable()
        self.troubles: list[BaseException] = []
        self.layer = layer_around(
            self.app, self.table, Lifespan(self.ended, lambda: None), self.troubles.append
        )

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        pass

    async def ended(self) -> None:
        pass

    def serve(self, receive: Any = None, scope: dict[str, Any] | None = None) -> None:
        begin: Any = self.layer
        coroutine: Coroutine[Any, Any, None] = begin(
            {"type": "http", **(scope or {})}, receive, None
        )
        coroutine.close()


@pytest.mark.core
def test_no_request_is_asked_while_all_is_well() -> None:
    world = World()
    world.serve()
    assert world.table.arrivals.since(0) == []
    assert world.table.served == 1


@pytest.mark.core
def test_requests_are_asked_after_a_stall_and_for_a_while_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, now = World(), [1_000_000_000]
    monkeypatch.setattr(arrivals, "monotonic_ns", lambda: now[0])
    world.table.arrivals.ask(over=True)
    world.serve()
    expected = [world.table.arrivals.more_may_come]
    now[0] += arrivals.PATIENCE_NS + 1
    expected.append(world.table.arrivals.more_may_come)
    assert expected == [True, False]
    world.serve()
    world.serve()
    (arrival,) = world.table.arrivals.since(0)
    assert arrival.arrived_ns is None
    assert world.table.served == 3
    assert world.troubles == []


@LINUX
@pytest.mark.core
def test_while_some_come_that_have_waited_more_are_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    with connected(socket.AF_INET, tmp_path) as connection:
        now = [time.monotonic_ns()]
        monkeypatch.setattr(arrivals, "monotonic_ns", lambda: now[0])
        world.table.arrivals.ask(over=True)
        now[0] += arrivals.PATIENCE_NS - 1_000_000
        # By the clock of the test it got data before the stall ended: `WAITED` ago by the kernel's.
        monkeypatch.setattr(
            arrivals, "since_last_data_ns", lambda receive: arrivals.PATIENCE_NS + 1
        )
        world.serve(Cycle(connection).receive)
        now[0] += arrivals.PATIENCE_NS - 1_000_000
        assert world.table.arrivals.more_may_come


@pytest.mark.core
def test_a_layer_that_was_retired_asks_nothing() -> None:
    world = World()
    world.table.arrivals.ask(over=True)
    world.layer.retire()
    world.serve()
    world.table.arrivals.ask(over=True)
    world.serve()
    assert world.table.arrivals.since(0) == []


@pytest.mark.core
@pytest.mark.parametrize(
    "scope, whole",
    [
        ({"method": "GET"}, True),
        ({"type": "websocket"}, True),
        ({"method": "POST", "headers": [(b"content-length", b"120")]}, True),
        ({"method": "POST", "headers": [(b"content-length", b"3000000")]}, False),
        ({"method": "POST", "headers": [(b"content-length", b"-")]}, False),
        ({"method": "POST", "headers": [(b"transfer-encoding", b"chunked")]}, False),
        ({"method": "POST", "headers": []}, True),
    ],
)
def test_a_long_body_does_not_come_with_its_head(scope: dict[str, Any], whole: bool) -> None:
    world = World()
    world.table.arrivals.ask(over=True)
    world.serve(scope=scope)
    (arrival,) = world.table.arrivals.since(0)
    assert arrival.whole is whole


@pytest.mark.core
def test_what_fails_as_it_is_asked_costs_the_request_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    error = LookupError("on purpose")

    def fail(_receive: object) -> int:
        raise error

    monkeypatch.setattr(arrivals, "since_last_data_ns", fail)
    world.table.arrivals.ask(over=True)
    world.serve()
    assert world.troubles == [error]
    assert world.table.served == 1


@pytest.mark.core
def test_noted_requests_are_let_go_of_when_nobody_asks_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noted, now = Arrivals(), [0]
    monkeypatch.setattr(arrivals, "monotonic_ns", lambda: now[0])
    noted.ask(over=True)
    coroutine = asyncio.sleep(0)
    noted.note({"type": "http"}, None, coroutine)
    noted.forget()
    assert len(noted.since(0)) == 1
    now[0] += arrivals.PATIENCE_NS + 1
    noted.forget()
    assert noted.since(0) == []
    coroutine.close()


@pytest.mark.core
def test_nobody_is_asked_any_more_where_no_stall_came_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What has run for most of a budget may be one, so they are asked by then; on a busy loop that is so all the time."""
    noted, now = Arrivals(), [10]
    asked: list[bool] = []
    monkeypatch.setattr(arrivals, "monotonic_ns", lambda: now[0])
    noted.enter(asked.append)
    coroutine = asyncio.sleep(0)
    noted.ask(over=False)
    noted.note({"type": "http"}, None, coroutine)
    noted.dismiss()
    assert noted.since(0) == []
    now[0] += 1
    noted.note({"type": "http"}, None, coroutine)
    assert asked == [True, False]
    noted.ask(over=True)
    noted.note({"type": "http"}, None, coroutine)
    noted.ask(over=False)
    noted.dismiss()
    assert noted.more_may_come, "an earlier stall is told of as before"
    assert len(noted.since(0)) == 1
    coroutine.close()


@LINUX
@pytest.mark.core
def test_one_that_came_after_a_stall_may_hold_the_loop_next_and_is_known_again(
    tmp_path: Path,
) -> None:
    """By its coroutine, also when that is gone; else it would be told of as delayed by itself. Nothing of it is kept."""
    noted, requests = Arrivals(), RequestTable()
    scope: dict[str, Any] = {"type": "http", "method": "GET"}
    noted.ask(over=True)
    time.sleep(0.05)
    coroutine = World().ended()
    with connected(socket.AF_INET, tmp_path) as connection:
        noted.note(scope, Cycle(connection).receive, coroutine)
    context = copy_context()
    context.run(requests.follower(), scope, coroutine)
    culprit = context.run(lambda: requests.of(copy_context()))
    assert culprit is not None
    coroutine.close()
    del coroutine
    began_ns = culprit.started_ns
    beat = LateBeat(began_ns, began_ns, began_ns + 10**9, 0, None, 0, None)
    held = Held(began_ns - 10**9, 0, began_ns + 10**9, (), beat)
    (arrival,) = noted.since(0)
    assert arrival.request.scope == {}
    assert delayed_in_queue(held, [arrival], [culprit]) == []
    assert [delay.request for delay in delayed_in_queue(held, [arrival], [])] == [arrival.request]
