"""What a thread waits in, and on what: real threads, blocked in real calls."""

from __future__ import annotations

import fcntl
import hashlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from loopguard.capture import system_calls
from loopguard.capture.system_calls import waiting_in
from loopguard.evidence import Wait
from tests.threads import blocked, open_files

pytestmark = [
    pytest.mark.skipif(
        not system_calls.works(threading.get_native_id()),
        reason="this system does not show the calls of a thread",
    ),
]


@contextmanager
def waiting(work: Callable[[], object], release: Callable[[], object]) -> Iterator[Wait | None]:
    with blocked(work, release) as thread:
        yield waiting_in(thread.native_id)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["v4", "v6"])
def server(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    host = "127.0.0.1" if request.param is socket.AF_INET else "::1"
    try:
        listening = socket.create_server((host, 0), family=request.param)
    except OSError:
        pytest.skip("no IPv6 here")
    with listening:
        yield listening


def address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def test_a_receive_from_tcp_names_the_peer(server: socket.socket) -> None:
    with socket.create_connection(server.getsockname()[:2]) as client:
        peer, _ = server.accept()
        with peer, waiting(lambda: client.recv(1), lambda: peer.send(b"x")) as wait:
            assert wait == Wait("recvfrom", f"tcp {address(server)}")


def test_a_socket_with_a_timeout_waits_in_poll_for_the_same_peer(server: socket.socket) -> None:
    with socket.create_connection(server.getsockname()[:2], timeout=60) as client:
        peer, _ = server.accept()
        with peer, waiting(lambda: client.recv(1), lambda: peer.send(b"x")) as wait:
            assert wait == Wait("poll", f"tcp {address(server)}")


def test_a_send_to_a_peer_that_does_not_read_names_it(server: socket.socket) -> None:
    with socket.create_connection(server.getsockname()[:2]) as client:
        peer, _ = server.accept()

        def send() -> None:
            with suppress(OSError):
                client.sendall(b"x" * 100_000_000)

        with waiting(send, peer.close) as wait:
            assert wait == Wait("sendto", f"tcp {address(server)}")


def test_an_accept_has_no_peer_yet(server: socket.socket) -> None:
    def accept() -> None:
        server.accept()[0].close()

    def connect() -> None:
        socket.create_connection(server.getsockname()[:2]).close()

    with waiting(accept, connect) as wait:
        assert wait == Wait("accept4", "tcp")


def test_a_connect_to_a_server_that_does_not_answer_names_it() -> None:
    """Its backlog is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        client = socket.socket()

        def connect() -> None:
            with suppress(OSError):
                client.connect(server.getsockname())

        def give_up() -> None:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

        with waiting(connect, give_up) as wait:
            assert wait == Wait("connect", f"tcp {address(server)}")
        for sock in (client, *fillers):
            sock.close()


def test_a_receive_from_a_datagram_socket_is_udp() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as ours:
        ours.bind(("127.0.0.1", 0))
        with waiting(lambda: ours.recv(1), lambda: ours.sendto(b"x", ours.getsockname())) as wait:
            assert wait == Wait("recvfrom", "udp")


def test_a_receive_from_a_unix_socket_is_unix() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, waiting(lambda: ours.recv(1), lambda: theirs.send(b"x")) as wait:
        assert wait == Wait("recvfrom", "unix")


def test_a_unix_socket_is_named_by_its_path_which_is_cut_where_it_is_told(tmp_path: Path) -> None:
    path = str(tmp_path / "secret.sock")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen()
        client.connect(path)
        peer, _ = server.accept()
        with peer, waiting(lambda: client.recv(1), lambda: peer.send(b"x")) as wait:
            assert wait == Wait("recvfrom", f"unix {path}")


def test_an_abstract_unix_socket_is_named_in_what_can_be_printed() -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(f"\0loopguard\n\x1b[2J{os.getpid()}".encode() + b"\xff")
        server.listen()
        client.connect(server.getsockname())
        peer, _ = server.accept()
        with peer, waiting(lambda: client.recv(1), lambda: peer.send(b"x")) as wait:
            assert wait == Wait("recvfrom", f"unix @loopguard\\n\\x1b[2J{os.getpid()}\\xff")


@pytest.mark.parametrize("place", [0, 1])
def test_a_poll_of_several_is_for_the_first_that_has_a_peer(
    server: socket.socket, pipe: tuple[int, int], place: int
) -> None:
    """The others are there to wake it up."""
    with socket.create_connection(server.getsockname()[:2]) as client:
        peer, _ = server.accept()
        poller = select.poll()
        for file in (pipe[0], client.fileno())[:: 1 if place else -1]:
            poller.register(file, select.POLLIN)
        with peer, waiting(poller.poll, lambda: peer.send(b"x")) as wait:
            assert wait == Wait("poll", f"tcp {address(server)}")


def test_a_select_of_several_is_for_the_first_that_has_a_peer(
    server: socket.socket, pipe: tuple[int, int]
) -> None:
    with socket.create_connection(server.getsockname()[:2]) as client:
        peer, _ = server.accept()
        with (
            peer,
            waiting(
                lambda: select.select([pipe[0], client.fileno()], [], []), lambda: peer.send(b"x")
            ) as wait,
        ):
            assert wait is not None
            assert wait.on == f"tcp {address(server)}"


def test_an_epoll_of_several_is_for_the_one_that_has_a_peer(
    server: socket.socket, pipe: tuple[int, int]
) -> None:
    with socket.create_connection(server.getsockname()[:2]) as client, select.epoll() as poller:
        peer, _ = server.accept()
        poller.register(pipe[0], select.EPOLLIN)
        poller.register(client, select.EPOLLIN)
        with peer, waiting(poller.poll, lambda: peer.send(b"x")) as wait:
            assert wait == Wait("epoll_wait", f"tcp {address(server)}")


def test_a_connect_to_a_unix_socket_whose_backlog_is_full_names_it(tmp_path: Path) -> None:
    path = str(tmp_path / "full.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(0)
        filler, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        filler.connect(path)
        with waiting(lambda: client.connect(path), lambda: server.accept()[0].close()) as wait:
            assert wait == Wait("connect", f"unix {path}")
        filler.close()
        client.close()


def test_a_wait_for_a_pidfd_names_the_child() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        pidfd = os.pidfd_open(child.pid)
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        with waiting(poller.poll, child.kill) as wait:
            assert wait == Wait("poll", f"pid {child.pid}")
        os.close(pidfd)


def test_a_wait_for_a_child_by_its_pidfd_names_it() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        pidfd = os.pidfd_open(child.pid)
        options = os.WEXITED | os.WNOWAIT
        with waiting(lambda: os.waitid(os.P_PIDFD, pidfd, options), child.kill) as wait:
            assert wait == Wait("waitid", f"pid {child.pid}")
        os.close(pidfd)


def test_a_read_of_an_eventfd_is_one() -> None:
    eventfd = os.eventfd(0)
    with waiting(lambda: os.eventfd_read(eventfd), lambda: os.eventfd_write(eventfd, 1)) as wait:
        assert wait == Wait("read", "eventfd")
    os.close(eventfd)


def test_a_lock_of_a_part_of_a_file_names_it(tmp_path: Path) -> None:
    """Another process has it: such locks are a process's."""
    path = tmp_path / "lock"
    path.touch()
    script = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX);"
        "print(flush=True); sys.stdin.read()"
    )
    with (
        subprocess.Popen(
            [sys.executable, "-c", script, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as other,
        path.open("w") as wanted,
    ):
        assert other.stdout is not None
        other.stdout.readline()
        with waiting(lambda: fcntl.lockf(wanted, fcntl.LOCK_EX), other.kill) as wait:
            assert wait == Wait("fcntl", str(path))


RESTARTED = """
import socket, sys, threading, time
from loopguard.capture.system_calls import waiting_in
ours, theirs = socket.socketpair()
ours.settimeout(60)
lock = threading.Lock()
lock.acquire()
works = [lambda: ours.recv(1), lambda: lock.acquire(timeout=60)]
threads = [threading.Thread(target=work, daemon=True) for work in works]
for thread in threads:
    thread.start()
print("begun", flush=True)
sys.stdin.readline()
print([waiting_in(thread.native_id) for thread in threads], flush=True)
"""


def test_a_call_that_goes_on_after_a_stop_is_the_one_that_it_was() -> None:
    """The kernel restarts those with a time-out by a call of its own, `restart_syscall`."""
    with subprocess.Popen(
        [sys.executable, "-c", RESTARTED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.2)
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        child.send_signal(signal.SIGCONT)
        time.sleep(0.2)
        child.stdin.write("\n")
        child.stdin.flush()
        said = child.stdout.readline()
        child.kill()
    assert said == "[Wait(call='poll', on='unix'), Wait(call='futex', on='')]\n"


def test_a_read_of_a_pipe_is_one(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    with waiting(lambda: os.read(reader, 1), lambda: os.write(writer, b"x")) as wait:
        assert wait == Wait("read", "pipe")


def test_a_poll_is_for_the_first_of_its_files(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    with waiting(poller.poll, lambda: os.write(writer, b"x")) as wait:
        assert wait == Wait("poll", "pipe")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_select_is_for_the_first_of_its_files(pipe: tuple[int, int], place: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sets: list[Any] = [[], [], []]
        sets[place] = [ours.fileno()]
        sets[0] = [*sets[0], pipe[0]] if place else sets[0]
        if place == 1:
            ours.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    ours.send(b"x" * 65536)

        def release() -> None:
            os.write(pipe[1], b"x")
            theirs.send(b"x")

        with waiting(lambda: select.select(*sets), release) as wait:
            assert wait is not None
            assert wait.call in ("select", "pselect6")
            assert wait.on == ("pipe" if place else "unix")


def test_an_epoll_of_one_file_names_it_and_of_more_does_not(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    with select.epoll() as poller:
        poller.register(reader, select.EPOLLIN)
        with waiting(poller.poll, lambda: os.write(writer, b"x")) as wait:
            assert wait == Wait("epoll_wait", "pipe")
        os.read(reader, 1)
        other = os.dup(reader)
        poller.register(other, select.EPOLLIN)
        with waiting(poller.poll, lambda: os.write(writer, b"x")) as wait:
            assert wait == Wait("epoll_wait", "")
        os.close(other)


def test_a_flock_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as held, path.open("w") as wanted:
        fcntl.flock(held, fcntl.LOCK_EX)
        with waiting(
            lambda: fcntl.flock(wanted, fcntl.LOCK_EX), lambda: fcntl.flock(held, fcntl.LOCK_UN)
        ) as wait:
            assert wait == Wait("flock", str(path))


def test_a_wait_for_a_child_names_its_pid() -> None:
    with subprocess.Popen(["sleep", "60"]) as child, waiting(child.wait, child.kill) as wait:
        assert wait == Wait("wait4", f"pid {child.pid}")


def test_a_wait_for_any_child_names_none() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        with waiting(lambda: os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT), child.kill) as wait:
            assert wait == Wait("waitid", "")
        child.wait()


def test_a_wait_for_a_child_by_its_id_names_it() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        options = os.WEXITED | os.WNOWAIT
        with waiting(lambda: os.waitid(os.P_PID, child.pid, options), child.kill) as wait:
            assert wait == Wait("waitid", f"pid {child.pid}")


def test_a_sleep_waits_for_nothing_but_time() -> None:
    with waiting(lambda: time.sleep(0.1), int) as wait:
        assert wait == Wait("clock_nanosleep", "")


def test_a_lock_is_a_futex() -> None:
    lock = threading.Lock()
    lock.acquire()
    with waiting(lock.acquire, lock.release) as wait:
        assert wait == Wait("futex", "")


def test_opening_a_fifo_that_nobody_writes_names_it(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with waiting(lambda: fifo.open().close(), lambda: fifo.open("w").close()) as wait:
        assert wait == Wait("openat", str(fifo))


def test_a_wait_for_a_signal_is_named() -> None:
    signals = {signal.SIGRTMAX}
    waiter: list[int] = []

    def wait_for_signal() -> None:
        waiter.append(threading.get_ident())
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        signal.sigwaitinfo(signals)

    release: Any = lambda: signal.pthread_kill(waiter[0], signal.SIGRTMAX)  # noqa: E731
    with waiting(wait_for_signal, release) as wait:
        assert wait == Wait("rt_sigtimedwait", "")


def test_a_thread_that_computes_without_the_gil_waits_for_nothing() -> None:
    done = threading.Event()

    def compute() -> None:
        while not done.is_set():
            hashlib.pbkdf2_hmac("sha256", b"word", b"salt", 200_000)

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        assert thread.native_id is not None
        seen = []
        for _ in range(20):
            time.sleep(0.005)
            seen.append(waiting_in(thread.native_id))
        assert seen.count(None) > len(seen) // 2
    finally:
        done.set()
        thread.join()


def test_a_thread_that_has_ended_waits_for_nothing() -> None:
    assert waiting_in(2**30) is None
    assert not system_calls.works(2**30)


@pytest.mark.parametrize("call", ["poll", "ppoll", "select", "pselect6", "connect"])
def test_a_stale_pointer_is_no_crash(call: str, pipe: tuple[int, int]) -> None:
    """The thread may have gone on, and its memory be gone, between two reads."""
    for pointer in (0, 8, 2**47, 2**64 - 8):
        first = pipe[0] if call == "connect" else pointer
        assert system_calls._target(call, [first, pointer, pointer, pointer, 0, 0]) == ""


@pytest.mark.parametrize("call", sorted(system_calls._NAMES.values()))
def test_no_call_with_nonsense_for_arguments_raises(call: str) -> None:
    for nonsense in ([0xFFFFFFFFFFFFFFFF] * 6, [2**31] * 6, [0] * 6, [1] * 6, []):
        assert isinstance(system_calls._target(call, nonsense), str)


def test_a_file_that_was_closed_meanwhile_is_unknown(pipe: tuple[int, int]) -> None:
    assert system_calls._target("read", [10_000, 0, 0, 0, 0, 0]) == ""


def test_asking_leaves_no_file_open(server: socket.socket) -> None:
    with socket.create_connection(server.getsockname()[:2], timeout=60) as client:
        peer, _ = server.accept()
        with peer, blocked(lambda: client.recv(1), lambda: peer.send(b"x")) as thread:
            before = open_files()
            for _ in range(3):
                waiting_in(thread.native_id)
            assert open_files() == before


def test_asking_does_not_disturb_the_socket(server: socket.socket) -> None:
    """The copy is closed, not shut down, and shares the flags: none is changed."""
    with socket.create_connection(server.getsockname()[:2]) as client:
        peer, _ = server.accept()
        got: list[bytes] = []
        with peer:
            with blocked(lambda: got.append(client.recv(4)), lambda: peer.send(b"here")) as thread:
                waiting_in(thread.native_id)
                assert client.getblocking()
                assert os.get_blocking(client.fileno())
            assert got == [b"here"]


def test_an_unknown_machine_knows_no_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_calls, "_NAMES", {})
    assert not system_calls.works(threading.get_native_id())
    lock = threading.Lock()
    lock.acquire()
    with waiting(lock.acquire, lock.release) as wait:
        assert wait is None
