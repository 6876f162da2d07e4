"""Handlers that each hold the event loop on one marked line, for about `BLOCK` seconds.

A mark says `# blocks CASE: CALL, CAUSE`, behind the line that is to be blamed or alone above it.
`marks.py` reads the marks, so that this file is the one place where the truth stands.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import queue
import random
import re
import socket
import sqlite3
import subprocess
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Annotated, ParamSpec, TypeVar

import httpx
import requests
from fastapi import APIRouter, Depends, FastAPI
from fastapi.concurrency import run_in_threadpool
from opentelemetry import trace

from tests.real.truth import Held

BLOCK = 0.3
COMPUTE = 0.4  # how fast the machine is changes meanwhile: this leaves room above the budget

router = APIRouter(prefix="/cases")
mounted = FastAPI()
executor = ThreadPoolExecutor(1)

P = ParamSpec("P")
T = TypeVar("T")


def peer_url() -> str:
    """The slow peer's address for an answer after `BLOCK` seconds."""
    return f"http://127.0.0.1:{os.environ['REAL_PEER']}/{BLOCK}"


def squares(rounds: int) -> int:
    """Sum squares in plain Python."""
    total = 0
    for number in range(rounds):  # blocks helper: -, cpu
        total += number * number
    return total


def seconds(work: Callable[[], object]) -> float:
    """How long the work takes here, at its fastest."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


ROUNDS = int(50_000 * COMPUTE / seconds(lambda: squares(50_000)))

# No match, but every start is tried up to the end: the time grows with the square of the length.
PATTERN = re.compile("[ab]*c")
TEXT = "a" * int(2_000 * (COMPUTE / seconds(lambda: PATTERN.search("a" * 2_000))) ** 0.5)


@functools.cache
def numbers() -> list[float]:
    """As many as `json.dumps` takes that long for."""
    some = [random.random() for _ in range(20_000)]
    return some * int(COMPUTE / seconds(lambda: json.dumps(some)))


@functools.cache
def shuffled() -> list[float]:
    """At least as many as `sorted` takes that long for."""
    some = [random.random() for _ in range(100_000)]
    return [random.random() for _ in range(int(100_000 * COMPUTE / seconds(lambda: sorted(some))))]


kept: dict[str, object] = {}  # what takes long to free is not to be freed behind the marked line

# The first client imports what httpx needs, and that is a stall of its own.
httpx.Client(verify=False).close()


def hold(lock: threading.Lock) -> None:
    """Have another thread take the lock and keep it for `BLOCK` seconds; return once it has it."""
    taken = threading.Event()

    def keep() -> None:
        with lock:
            taken.set()
            time.sleep(BLOCK)

    threading.Thread(target=keep, name="lock-keeper").start()
    taken.wait()


@router.get("/sleep/{item}")
async def sleep(item: str) -> str:
    with Held("sleep"):
        time.sleep(BLOCK)  # blocks sleep: time.sleep, blocking_call
    return item


@router.post("/posted/{item}")
async def posted(item: str, body: dict[str, str]) -> str:
    with Held("posted"):
        time.sleep(BLOCK)  # blocks posted: time.sleep, blocking_call
    return item + body["word"]


@mounted.get("/reports/{item}")
async def report(item: str) -> str:
    with Held("mounted"):
        time.sleep(BLOCK)  # blocks mounted: time.sleep, blocking_call
    return item


@router.get("/requests/{item}")
async def by_requests(item: str) -> str:
    url = peer_url()
    with Held("requests"):
        requests.get(url, timeout=5)  # blocks requests: requests.api.get, blocking_call
    return item


@router.get("/httpx/{item}")
async def by_httpx(item: str) -> str:
    url = peer_url()
    with httpx.Client(verify=False) as client:  # no certificates to load
        await asyncio.sleep(0)
        with Held("httpx", resumed=True):
            client.get(url)  # blocks httpx: httpx._client.Client.get, blocking_call
    return item


@router.get("/urllib/{item}")
async def by_urllib(item: str) -> str:
    url = peer_url()
    with Held("urllib"):
        urllib.request.urlopen(url).close()  # blocks urllib: urllib.request.urlopen, blocking_call
    return item


@router.get("/recv/{item}")
async def by_socket(item: str) -> str:
    with socket.create_connection(("127.0.0.1", int(os.environ["REAL_PEER"]))) as connection:
        connection.sendall(f"GET /{BLOCK} HTTP/1.0\r\n\r\n".encode())
        with Held("recv"):
            # blocks recv: socket.socket.recv|_socket.socket.recv, blocking_call
            connection.recv(1024)
    return item


@router.get("/psycopg2/{item}")
async def by_psycopg2(item: str, dsn: str) -> str:
    import psycopg2

    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        await asyncio.sleep(0)
        with Held("psycopg2", resumed=True):
            # blocks psycopg2: psycopg2.extensions.cursor.execute, blocking_call
            cursor.execute("select pg_sleep(0.3)")
    return item


@router.get("/sqlite3/{item}")
async def by_sqlite3(item: str) -> str:
    with closing(sqlite3.connect(os.environ["REAL_SQLITE"], timeout=BLOCK)) as connection:
        try:
            with Held("sqlite3"):
                # blocks sqlite3: sqlite3.Connection.execute, blocking_call
                connection.execute("begin immediate")
        except sqlite3.OperationalError as error:
            return f"{item}: {error}"
    raise AssertionError("the other process was to hold the database")


@router.get("/subprocess/{item}")
async def by_subprocess(item: str) -> str:
    with Held("subprocess"):
        # blocks subprocess: subprocess.run, blocking_call
        subprocess.run(["sleep", str(BLOCK)], check=True)
    return item


@router.get("/acquire/{item}")
async def by_acquire(item: str) -> str:
    lock = threading.Lock()
    hold(lock)
    with Held("acquire"):
        lock.acquire()  # blocks acquire: _thread.lock.acquire, lock
    lock.release()
    return item


@router.get("/with_lock/{item}")
async def by_with_lock(item: str) -> str:
    lock = threading.Lock()
    hold(lock)
    with Held("with_lock"):  # noqa: SIM117 -- the lock's `with` is to have a line of its own
        with lock:  # blocks with_lock: _thread.lock.__enter__, lock
            pass
    return item


@router.get("/queue/{item}")
async def by_queue(item: str) -> str:
    answers: queue.Queue[str] = queue.Queue()
    threading.Timer(BLOCK, answers.put, [item]).start()
    with Held("queue"):
        return answers.get(timeout=5)  # blocks queue: queue.Queue.get, lock


@router.get("/future/{item}")
async def by_future(item: str) -> str:
    future = executor.submit(time.sleep, BLOCK)
    with Held("future"):
        future.result()  # blocks future: concurrent.futures._base.Future.result, lock
    return item


@router.get("/loop/{item}")
async def by_loop(item: str) -> int:
    total = 0
    with Held("loop"):
        for number in range(ROUNDS):  # blocks loop: -, cpu
            total += number * number
    return total


@router.get("/helper/{item}")
async def by_helper(item: str) -> int:
    with Held("helper"):
        return squares(ROUNDS)


@router.get("/regex/{item}")
async def by_regex(item: str) -> str:
    with Held("regex"):
        PATTERN.search(TEXT)  # blocks regex: re.Pattern.search, gil_hold
    return item


@router.get("/sorted/{item}")
async def by_sorted(item: str) -> str:
    values = await run_in_threadpool(shuffled)
    await asyncio.sleep(0.05)  # the pool's thread is to have let go of the GIL for good
    with Held("sorted", resumed=True):
        kept["sorted"] = sorted(values)  # blocks sorted: builtins.sorted, gil_hold
    return item


@router.get("/json/{item}")
async def by_json(item: str) -> str:
    values = await run_in_threadpool(numbers)
    await asyncio.sleep(0.05)  # the pool's thread is to have let go of the GIL for good
    with Held("json", resumed=True):
        kept["json"] = json.dumps(values)  # blocks json: json.dumps, gil_hold
    return item


@router.get("/resumed/{item}")
async def after_an_await(item: str) -> str:
    await asyncio.sleep(0.05)
    with Held("resumed", resumed=True):
        time.sleep(BLOCK)  # blocks resumed: time.sleep, blocking_call
    return item


async def tenant_of(item: str) -> str:
    with Held("dependency"):
        time.sleep(BLOCK)  # blocks dependency: time.sleep, blocking_call
    return item


async def user_of(tenant: Annotated[str, Depends(tenant_of)]) -> str:
    return tenant


@router.get("/dependency/{item}")
async def with_dependency(user: Annotated[str, Depends(user_of)]) -> str:
    return user


class Store:
    async def load(self, item: str) -> str:
        with Held("method"):
            time.sleep(BLOCK)  # blocks method: time.sleep, blocking_call
        return item


@router.get("/method/{item}")
async def by_method(item: str) -> str:
    return await Store().load(item)


def apply(work: Callable[[], T]) -> T:
    return work()


@router.get("/lambda/{item}")
async def by_lambda(item: str) -> str:
    with Held("lambda"):
        apply(lambda: time.sleep(BLOCK))  # blocks lambda: time.sleep, blocking_call
    return item


@router.get("/comprehension/{item}")
async def by_comprehension(item: str) -> int:
    with Held("comprehension"):
        # blocks comprehension: time.sleep, blocking_call
        naps = [time.sleep(BLOCK / 3) for _ in range(3)]  # type: ignore[func-returns-value]
    return len(naps)


@router.get("/several_lines/{item}")
async def over_several_lines(item: str) -> str:
    with Held("several_lines"):
        # blocks several_lines: subprocess.run, blocking_call
        subprocess.run(
            ["sleep", str(BLOCK)],
            check=True,
        )
    return item


def logged(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    @functools.wraps(function)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        return await function(*args, **kwargs)

    return wrapper


@router.get("/decorated/{item}")
@logged
async def decorated(item: str) -> str:
    with Held("decorated"):
        time.sleep(BLOCK)  # blocks decorated: time.sleep, blocking_call
    return item


@router.get("/own_span/{item}")
async def in_a_span_of_its_own(item: str) -> str:
    with trace.get_tracer(__name__).start_as_current_span("work"), Held("own_span"):
        time.sleep(BLOCK)  # blocks own_span: time.sleep, blocking_call
    return item


@router.get("/child_task/{item}")
async def in_a_child_task(item: str) -> str:
    async def nap() -> str:
        with Held("child_task", resumed=True):
            time.sleep(BLOCK)  # blocks child_task: time.sleep, blocking_call
        return item

    return await asyncio.create_task(nap())


@router.get("/callback/{item}")
async def in_a_callback(item: str) -> str:
    done = asyncio.Event()

    def nap() -> None:
        with Held("callback", resumed=True):
            time.sleep(BLOCK)  # blocks callback: time.sleep, blocking_call
        done.set()

    asyncio.get_running_loop().call_later(0.02, nap)
    await done.wait()
    return item
