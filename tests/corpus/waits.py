"""Waits inside synchronous calls: sleep, sockets, TLS, files, pipes, child processes, DNS, databases."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import multiprocessing
import os
import select
import signal
import socket
import sqlite3
import ssl
import struct
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import requests

from tests.corpus.label import BLOCK, case, held, keep, rest, seconds, variable

LOCAL = "127.0.0.1"
# The first client imports what httpx needs, and that would be a stall of its own.
httpx.Client(verify=False, trust_env=False).close()

TO_PEER = r"tcp 127\.0\.0\.1:\d+"


def later(work: Callable[..., object], *arguments: object) -> None:
    """Do it in another thread, as the stall is to end."""
    threading.Timer(BLOCK, work, arguments).start()


def directory() -> Path:
    return Path(tempfile.mkdtemp(prefix="corpus-"))


# Sleeping


@case(waited_on="clock_nanosleep", served=True)
async def sleep() -> None:
    await rest()
    with held():
        time.sleep(BLOCK)  # blocks sleep: time.sleep, blocking_call


@case(waited_on="clock_nanosleep")
async def sleep_in_a_callback() -> None:
    done = asyncio.Event()

    def nap() -> None:
        with held():
            time.sleep(BLOCK)  # blocks sleep_in_a_callback: time.sleep, blocking_call
        done.set()

    await rest()
    asyncio.get_running_loop().call_later(0.02, nap)
    await done.wait()


@case(waited_on="clock_nanosleep")
async def sleep_in_a_child_task() -> None:
    async def nap() -> None:
        with held():
            time.sleep(BLOCK)  # blocks sleep_in_a_child_task: time.sleep, blocking_call

    await rest()
    await asyncio.create_task(nap())


@case(waited_on="clock_nanosleep", served=True)
async def sleep_in_a_comprehension() -> None:
    await rest()
    with held():
        # blocks sleep_in_a_comprehension: time.sleep, blocking_call
        naps = [time.sleep(BLOCK / 7) for _ in range(7)]  # type: ignore[func-returns-value]
    keep(naps)


class Store:
    def load(self) -> None:
        with held():
            time.sleep(BLOCK)  # blocks sleep_in_a_method: time.sleep, blocking_call


@case(waited_on="clock_nanosleep")
async def sleep_in_a_method() -> None:
    await rest()
    Store().load()


@case(waited_on="clock_nanosleep")
async def sleep_in_c() -> None:
    """A C extension that lets the GIL go."""
    usleep = ctypes.CDLL(None).usleep
    await rest()
    with held():
        usleep(int(BLOCK * 1e6))  # blocks sleep_in_c: -, blocking_call


@case(waited_on="p?select6?")
async def select_nothing() -> None:
    await rest()
    with held():
        select.select([], [], [], BLOCK)  # blocks select_nothing: select.select, blocking_call


@case(waited_on="rt_sigtimedwait")
async def sigtimedwait() -> None:
    await rest()
    with held():
        # blocks sigtimedwait: _signal.sigtimedwait|signal.sigtimedwait, blocking_call
        signal.sigtimedwait([signal.SIGUSR2], BLOCK)


# Sockets


def to_peer(name: str = "TCP") -> socket.socket:
    """Connected with the peer, which answers after `BLOCK` seconds whatever it is sent."""
    return socket.create_connection((LOCAL, int(variable(name))))


@case(waited_on=f"recvfrom {TO_PEER}", served=True, core=True)
async def tcp_recv() -> None:
    with to_peer() as connection:
        await rest()
        connection.sendall(b"?")
        with held():
            # blocks tcp_recv: socket.socket.recv|_socket.socket.recv, blocking_call
            connection.recv(100)


@case(waited_on=f"poll {TO_PEER}")
async def tcp_recv_with_timeout() -> None:
    with to_peer() as connection:
        connection.settimeout(5)
        await rest()
        connection.sendall(b"?")
        with held():
            # blocks tcp_recv_with_timeout: socket.socket.recv|_socket.socket.recv, blocking_call
            connection.recv(100)


@case(waited_on=f"recvfrom {TO_PEER}")
async def tcp_readline() -> None:
    with to_peer() as connection, connection.makefile("rb") as file:
        await rest()
        connection.sendall(b"?")
        with held():
            # blocks tcp_readline: io.BufferedReader.readline, blocking_call
            file.readline()


@case(waited_on="accept4? tcp")
async def tcp_accept() -> None:
    with socket.create_server((LOCAL, 0)) as server:
        await rest()
        later(lambda: keep(socket.create_connection(server.getsockname())))
        with held():
            # blocks tcp_accept: socket.socket.accept, blocking_call
            server.accept()[0].close()


@case(waited_on=f"sendto {TO_PEER}")
async def tcp_sendall() -> None:
    with socket.create_server((LOCAL, 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()

        def read() -> None:
            while accepted.recv(1 << 20):
                pass
            accepted.close()

        await rest()
        later(read)
        with held():
            # blocks tcp_sendall: socket.socket.sendall|_socket.socket.sendall, blocking_call
            client.sendall(bytes(20_000_000))
        client.close()


@case(waited_on="poll tcp")
async def tcp_connect() -> None:
    """To a server whose backlog is full."""
    with socket.create_server((LOCAL, 0), backlog=0) as server:
        address = server.getsockname()
        with socket.create_connection(address), socket.socket() as late:
            late.settimeout(BLOCK)
            await rest()
            with suppress(TimeoutError), held():
                # blocks tcp_connect: socket.socket.connect|_socket.socket.connect, blocking_call
                late.connect(address)


@case(waited_on=r"recvfrom udp 127\.0\.0\.1:\d+")
async def udp_recv() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.connect((LOCAL, int(variable("UDP"))))
        await rest()
        client.send(b"?")
        with held():
            # blocks udp_recv: socket.socket.recv|_socket.socket.recv, blocking_call
            client.recv(100)


@case(waited_on="recvfrom unix")
async def unix_recv() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        await rest()
        later(theirs.send, b"!")
        with held():
            # blocks unix_recv: socket.socket.recv|_socket.socket.recv, blocking_call
            ours.recv(1)


@case(waited_on=f"p?select6? {TO_PEER}")
async def select_a_socket() -> None:
    with to_peer() as connection:
        await rest()
        connection.sendall(b"?")
        with held():
            # blocks select_a_socket: select.select, blocking_call
            select.select([connection], [], [])


@case(waited_on=f"poll {TO_PEER}")
async def poll_a_socket() -> None:
    with to_peer() as connection:
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        await rest()
        connection.sendall(b"?")
        with held():
            poll.poll()  # blocks poll_a_socket: select.poll.poll, blocking_call


@case(waited_on=f"epoll_p?wait {TO_PEER}")
async def epoll_a_socket() -> None:
    with to_peer() as connection, select.epoll() as epoll:
        epoll.register(connection, select.EPOLLIN)
        await rest()
        connection.sendall(b"?")
        with held():
            epoll.poll()  # blocks epoll_a_socket: select.epoll.poll, blocking_call


# TLS


def tls() -> ssl.SSLContext:
    """Of a client that asks for no certificate, for the server has none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")
    return context


@case(waited_on=f"read {TO_PEER}", served=True)
async def tls_recv() -> None:
    with tls().wrap_socket(to_peer("TLS")) as connection:
        await rest()
        connection.sendall(b"?")
        with held():
            connection.recv(100)  # blocks tls_recv: ssl.SSLSocket.recv, blocking_call


@case(waited_on=f"read {TO_PEER}")
async def tls_handshake() -> None:
    """The peer says nothing for a while, and then something that is no TLS."""
    context, plain = tls(), to_peer()
    await rest()
    with plain, suppress(ssl.SSLError, OSError), held():
        # blocks tls_handshake: ssl.SSLContext.wrap_socket, blocking_call
        context.wrap_socket(plain)


# HTTP


@case(waited_on=f"(recvfrom|poll) {TO_PEER}", served=True)
async def http_by_requests() -> None:
    url = f"http://{LOCAL}:{variable('HTTP')}/{BLOCK}"
    session = requests.Session()
    session.trust_env = False
    await rest()
    with held():
        session.get(url)  # blocks http_by_requests: requests.sessions.Session.get, blocking_call


@case(waited_on=f"(recvfrom|poll) {TO_PEER}", served=True)
async def http_by_httpx() -> None:
    url = f"http://{LOCAL}:{variable('HTTP')}/{BLOCK}"
    with httpx.Client(verify=False, trust_env=False) as client:
        await rest()
        with held():
            client.get(url)  # blocks http_by_httpx: httpx._client.Client.get, blocking_call


@case(waited_on=f"(recvfrom|poll) {TO_PEER}")
async def http_by_urllib() -> None:
    url = f"http://{LOCAL}:{variable('HTTP')}/{BLOCK}"
    await rest()
    with held():
        # blocks http_by_urllib: urllib.request.urlopen, blocking_call
        answer = urllib.request.urlopen(url)
    answer.close()


# Files and pipes


@case(waited_on=r"openat /\w+/[^/]+/…")
async def fifo_open() -> None:
    path = directory() / "fifo"
    os.mkfifo(path)
    await rest()
    later(lambda: keep(path.open("wb")))
    with held():
        # blocks fifo_open: io.open, blocking_call
        file = open(path, "rb")  # noqa: SIM115 -- the line is to open it and no more
    file.close()


@case(waited_on=r"read /\w+/[^/]+/…")
async def fifo_read() -> None:
    path = directory() / "fifo"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)
    await rest()
    later(os.write, fd, b"!")
    with held():
        os.read(fd, 1)  # blocks fifo_read: os.read, blocking_call
    os.close(fd)


@case(waited_on="read pipe", served=True)
async def pipe_read() -> None:
    reading, writing = os.pipe()
    await rest()
    later(os.write, writing, b"!")
    with held():
        os.read(reading, 1)  # blocks pipe_read: os.read, blocking_call
    os.close(reading)
    os.close(writing)


@case(waited_on="write pipe")
async def pipe_write() -> None:
    reading, writing = os.pipe()
    await rest()
    later(lambda: os.read(reading, 1 << 20))
    with held():
        os.write(writing, bytes(1 << 17))  # blocks pipe_write: os.write, blocking_call
    os.close(reading)
    os.close(writing)


@case(waited_on=r"flock /\w+/[^/]+/…")
async def flock() -> None:
    path = directory() / "locked"
    with path.open("w") as theirs, path.open("w") as ours:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        await rest()
        later(fcntl.flock, theirs, fcntl.LOCK_UN)
        with held():
            fcntl.flock(ours, fcntl.LOCK_EX)  # blocks flock: fcntl.flock, blocking_call


@case(waited_on=r"fcntl /\w+/[^/]+/…")
async def record_lock() -> None:
    path = directory() / "locked"
    take, free = (
        struct.pack("hhqqi4x", kind, 0, 0, 0, 0) for kind in (fcntl.F_WRLCK, fcntl.F_UNLCK)
    )
    with path.open("w") as theirs, path.open("w") as ours:
        fcntl.fcntl(theirs, fcntl.F_OFD_SETLKW, take)
        await rest()
        later(fcntl.fcntl, theirs, fcntl.F_OFD_SETLK, free)
        with held():
            # blocks record_lock: fcntl.fcntl, blocking_call
            fcntl.fcntl(ours, fcntl.F_OFD_SETLKW, take)


def write_and_sync(fd: int) -> None:
    os.pwrite(fd, bytes(1 << 16), 0)
    os.fsync(fd)


def fsync_takes_no_time() -> str | None:
    with tempfile.TemporaryFile() as file:
        took = min(seconds(lambda: write_and_sync(file.fileno())) for _ in range(3))
    return "files are in memory here: fsync does not wait" if took < 0.0005 else None


@case(waited_on=r"fsync /.+", lacking=fsync_takes_no_time)
async def fsync() -> None:
    with (directory() / "written").open("wb") as file:
        fd = file.fileno()
        until = time.monotonic() + 0.15 + BLOCK
        await rest()
        with held():
            while time.monotonic() < until:  # blocks fsync: os.fsync|os.pwrite, blocking_call
                os.pwrite(fd, bytes(1 << 16), 0)
                os.fsync(fd)


@case(waited_on=r"read unix")
async def connection_recv() -> None:
    ours, theirs = multiprocessing.Pipe()
    await rest()
    later(theirs.send, "!")
    with held():
        # blocks connection_recv: multiprocessing.connection._ConnectionBase.recv, blocking_call
        ours.recv()
    ours.close()
    theirs.close()


# Child processes

NAP = ["sleep", str(BLOCK)]


@case(waited_on=r"wait4 pid \d+", served=True)
async def subprocess_run() -> None:
    await rest()
    with held():
        # blocks subprocess_run: subprocess.run, blocking_call
        subprocess.run(NAP, check=True)


@case(waited_on="read pipe")
async def subprocess_check_output() -> None:
    await rest()
    with held():
        # blocks subprocess_check_output: subprocess.check_output, blocking_call
        subprocess.check_output(NAP)


@case(waited_on="poll pipe")
async def subprocess_run_captured() -> None:
    await rest()
    with held():
        # blocks subprocess_run_captured: subprocess.run, blocking_call
        subprocess.run(NAP, capture_output=True, check=True)


@case(waited_on=r"wait4 pid \d+")
async def child_wait() -> None:
    await rest()
    child = subprocess.Popen(NAP)
    await asyncio.sleep(0)
    with held():
        child.wait()  # blocks child_wait: subprocess.Popen.wait, blocking_call


@case(waited_on=r"wait4 pid \d+")
async def waitpid() -> None:
    await rest()
    pid = os.posix_spawnp("sleep", NAP, os.environ)
    await asyncio.sleep(0)
    with held():
        os.waitpid(pid, 0)  # blocks waitpid: os.waitpid, blocking_call


@case(waited_on=r"wait4 pid \d+")
async def os_system() -> None:
    await rest()
    with held():
        os.system(f"sleep {BLOCK}")  # blocks os_system: os.system, blocking_call


# DNS


def resolver() -> str | None:
    """Have this thread ask our own name server, by the resolver's own state (resolver(3)), if it is glibc's."""
    library = ctypes.CDLL(None)
    try:
        library.__res_init()
        state = library.__res_state
    except AttributeError:
        return "the C library's resolver is not glibc's"
    state.restype = ctypes.c_void_p
    address = socket.inet_aton(LOCAL)
    server = struct.pack("=H", socket.AF_INET) + struct.pack("!H", int(variable("DNS"))) + address
    ctypes.memmove(state() + 16, struct.pack("=i", 1) + server, 12)  # nscount, nsaddr_list[0]
    return None


@case(waited_on=r"poll udp 127\.0\.0\.1:\d+", given=resolver, served=True)
async def getaddrinfo(_: object) -> None:
    await rest()
    with held():
        # blocks getaddrinfo: socket.getaddrinfo, blocking_call
        socket.getaddrinfo("slow.example.", 80, socket.AF_INET)


@case(waited_on=r"poll udp 127\.0\.0\.1:\d+", given=resolver)
async def gethostbyname(_: object) -> None:
    await rest()
    with held():
        # blocks gethostbyname: _socket.gethostbyname|socket.gethostbyname, blocking_call
        socket.gethostbyname("slow.example.")


# Databases


def postgres() -> Any:
    import psycopg2

    return psycopg2.connect(variable("POSTGRES"))


@case(
    waited_on=r"poll (unix( /\w+/[^/]+/…)?|tcp 127\.0\.0\.1:\d+)",
    given=postgres,
    served=True,
    needs="POSTGRES",
)
async def postgres_query(given: Any) -> None:
    with closing(given) as connection, connection.cursor() as cursor:
        await rest()
        with held():
            # blocks postgres_query: psycopg2.extensions.cursor.execute, blocking_call
            cursor.execute("select pg_sleep(%s)", (BLOCK,))


def two_clients() -> tuple[Any, Any]:
    ours, theirs = postgres(), postgres()
    with theirs.cursor() as cursor:
        cursor.execute("select pg_advisory_xact_lock(1)")
    return ours, theirs


@case(
    waited_on=r"poll (unix( /\w+/[^/]+/…)?|tcp 127\.0\.0\.1:\d+)",
    given=two_clients,
    needs="POSTGRES",
)
async def postgres_lock(given: tuple[Any, Any]) -> None:
    ours, theirs = given
    with ours.cursor() as cursor:
        await rest()
        later(theirs.rollback)
        with held():
            # blocks postgres_lock: psycopg2.extensions.cursor.execute, blocking_call
            cursor.execute("select pg_advisory_xact_lock(1)")
    ours.close()
    theirs.close()


def redis_client() -> Any:
    import redis

    client = redis.Redis(port=int(variable("REDIS")))
    client.ping()
    return client


@case(waited_on=f"(recvfrom|poll) {TO_PEER}", given=redis_client, served=True, needs="REDIS")
async def redis_pop(client: Any) -> None:
    await rest()
    with held():
        # blocks redis_pop: redis.commands.core.ListCommands.blpop, blocking_call
        client.blpop(["none"], BLOCK)


@case(waited_on=f"(recvfrom|poll) {TO_PEER}", given=redis_client, needs="REDIS")
async def redis_script(client: Any) -> None:
    """A script holds the server itself."""
    script = f"""
        local began = redis.call('time')
        repeat
            local now = redis.call('time')
        until now[1] - began[1] + (now[2] - began[2]) / 1e6 > {BLOCK}
    """
    await rest()
    with held():
        # blocks redis_script: redis.commands.core.ScriptCommands.eval, blocking_call
        client.eval(script, 0)


@case(waited_on="clock_nanosleep")
async def sqlite_locked() -> None:
    path = directory() / "database"
    theirs = sqlite3.connect(path, check_same_thread=False)
    theirs.execute("begin exclusive")
    ours = sqlite3.connect(path, timeout=BLOCK)
    await rest()
    with suppress(sqlite3.OperationalError), held():
        # blocks sqlite_locked: sqlite3.Connection.execute, blocking_call
        ours.execute("begin immediate")
    ours.close()
    theirs.close()
