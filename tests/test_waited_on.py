"""What a record says that was waited on: real stalls of a guarded loop."""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loopguard
from loopguard.capture import system_calls
from tests.holding import BUDGET, LONG, LOOPS, REST, run, told

pytestmark = pytest.mark.skipif(
    not system_calls.works(threading.get_native_id()),
    reason="this system does not show the calls of a thread",
)


def later(release: Callable[[], object]) -> None:
    """From another thread, when the loop has been held for long."""
    timer = threading.Timer(LONG, release)
    timer.daemon = True
    timer.start()


def waited_on(block: Callable[[], object], loop: str, root: Path, release: Any = int) -> str | None:
    async def main() -> None:
        await asyncio.sleep(REST)
        later(release)
        block()
        await asyncio.sleep(REST)

    guard = loopguard.install(budget=BUDGET, log=False, root=str(root))
    run(main(), loop)
    [stall] = told(guard)
    assert stall.cause in ("blocking_call", "lock")
    return stall.waited_on


@pytest.mark.parametrize("loop", LOOPS)
def test_a_peer_on_tcp_by_its_address(loop: str, tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=60) as client,
    ):
        port = server.getsockname()[1]
        peer, _ = server.accept()
        with peer:
            said = waited_on(lambda: client.recv(1), loop, tmp_path, lambda: peer.send(b"x"))
    assert said == f"poll tcp 127.0.0.1:{port}"


@pytest.mark.parametrize("loop", LOOPS)
def test_a_peer_on_a_unix_socket_by_the_rule_for_paths(loop: str, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    (tmp_path / "elsewhere").mkdir()
    outside = f"{Path(*tmp_path.parts[:3])}/…"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(path))
        server.listen()
        client.connect(str(path))
        peer, _ = server.accept()
        for root, shown in ((tmp_path, "app.sock"), (tmp_path / "elsewhere", outside)):
            said = waited_on(lambda: client.recv(1), loop, root, lambda: peer.send(b"x"))
            assert said == f"recvfrom unix {shown}"
            loopguard.uninstall()
        peer.close()


@pytest.mark.parametrize("loop", LOOPS)
def test_a_child_by_its_pid(loop: str, tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", str(LONG)]) as child:
        assert waited_on(child.wait, loop, tmp_path) == f"wait4 pid {child.pid}"


@pytest.mark.parametrize("loop", LOOPS)
def test_a_file_under_root_by_its_path(loop: str, tmp_path: Path) -> None:
    path = tmp_path / "data" / "lock"
    path.parent.mkdir()
    with path.open("w") as held, path.open("w") as wanted:
        fcntl.flock(held, fcntl.LOCK_EX)
        said = waited_on(
            lambda: fcntl.flock(wanted, fcntl.LOCK_EX),
            loop,
            tmp_path,
            lambda: fcntl.flock(held, fcntl.LOCK_UN),
        )
    assert said == "flock data/lock"


@pytest.mark.parametrize("loop", LOOPS)
def test_a_pipe_a_lock_and_a_sleep(loop: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    lock = threading.Lock()
    lock.acquire()
    for block, release, said in (
        (lambda: os.read(reader, 1), lambda: os.write(writer, b"x"), "read pipe"),
        (lock.acquire, lock.release, "futex"),
        (lambda: time.sleep(LONG), int, "clock_nanosleep"),
    ):
        assert waited_on(block, loop, tmp_path, release) == said
        loopguard.uninstall()
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("loop", LOOPS)
def test_the_one_with_a_peer_of_those_that_are_polled(loop: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        select.epoll() as poller,
    ):
        port = server.getsockname()[1]
        poller.register(reader, select.EPOLLIN)
        poller.register(client, select.EPOLLIN)
        peer, _ = server.accept()
        with peer:
            said = waited_on(poller.poll, loop, tmp_path, lambda: peer.send(b"x"))
    os.close(reader)
    os.close(writer)
    assert said == f"epoll_wait tcp 127.0.0.1:{port}"
