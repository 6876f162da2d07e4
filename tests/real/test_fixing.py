"""docs/fixing.md is true: each of its blocks is run, and stalls where it says so and nowhere else.

A block's last function is called, and given the fixtures that its parameters name.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import importlib
import inspect
import json
import multiprocessing
import re
import sys
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import FunctionType, ModuleType
from typing import Any

import pytest

import loopguard
from loopguard import Stall
from loopguard.capture.threadpool import ThreadLimiters, Threadpool
from tests.holding import run
from tests.real.blockers import seconds, sized
from tests.real.cures import PAGE, Block, read_blocks

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="causes and waits are told in full on Linux"
)

BUDGET = 0.1
REST = 0.06  # a beat and more
ANSWER = json.dumps([0.5] * 10_000)  # takes a millisecond or so to parse
AGAIN = 2
OF_GROUP_ADVICE = ("orjson", "psycopg")
MADE_AT_STARTUP = {"client", "cursor", "connection", "pool"}

BLOCKS = read_blocks(PAGE.read_text())
SECTIONS: defaultdict[str, list[Block]] = defaultdict(list)
for _block in BLOCKS:
    SECTIONS[_block.section].append(_block)


# What the blocks are given


@dataclass(frozen=True)
class Opened:
    """To be opened on the loop before a block runs, and closed there afterwards."""

    open: Callable[[], AbstractAsyncContextManager[Any]]


@pytest.fixture
def url(peers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """An answer that takes 0.3 s."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return f"http://127.0.0.1:{peers['REAL_PEER']}/0.3"


@pytest.fixture
def client() -> Opened:
    httpx = pytest.importorskip("httpx")
    return Opened(lambda: httpx.AsyncClient(verify=False, trust_env=False))


@pytest.fixture
def cursor(postgres: str) -> Iterator[Any]:
    connection = pytest.importorskip("psycopg2").connect(postgres)
    yield connection.cursor()
    connection.close()


@pytest.fixture
def connection(postgres: str) -> Opened:
    psycopg = pytest.importorskip("psycopg")

    @asynccontextmanager
    async def connected() -> AsyncIterator[Any]:
        async with await psycopg.AsyncConnection.connect(postgres) as made:
            yield made

    return Opened(connected)


@pytest.fixture
def job() -> Callable[[], None]:
    return lambda: time.sleep(0.05)


@pytest.fixture(scope="module")
def pool(folder: Path) -> Iterator[ProcessPoolExecutor]:
    """As the page says: spawned, and at work before any loop runs."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as made:
        made.submit(int).result()
        yield made


@pytest.fixture(scope="module")
def terms() -> int:
    return int(sized(lambda n: sum((-1) ** k / (2 * k + 1) for k in range(n))))


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    row: dict[str, object] = {"id": 4711, "name": "kim", "tags": ["a", "b"], "score": 0.5}
    made: list[dict[str, object]] = sized(json.dumps, lambda n: [row] * n)
    return made


@pytest.fixture(scope="module")
def many_rows(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    dumps = pytest.importorskip("orjson").dumps
    made: list[dict[str, object]] = sized(dumps, lambda n: rows[:1] * n)
    return made


@pytest.fixture
def password() -> bytes:
    return b"correct horse"


@pytest.fixture
def salt() -> bytes:
    return b"battery staple"


@pytest.fixture(scope="module")
def rounds() -> int:
    return int(sized(lambda n: hashlib.pbkdf2_hmac("sha256", b"a password", b"salt", n)))


@pytest.fixture(scope="module")
def text() -> str:
    """The pattern takes the square of its length."""
    pattern = re.compile(r"\s+$")
    made: str = sized(lambda t: pattern.sub("", t), lambda n: " " * int(n**0.5) + "x", 1 << 16)
    return made


@pytest.fixture(scope="module")
def orders() -> list[tuple[str, int]]:
    def add_up(orders: list[tuple[str, int]]) -> None:
        found: dict[str, int] = {}
        for customer, amount in orders:
            found[customer] = found.get(customer, 0) + amount

    made: list[tuple[str, int]] = sized(add_up, lambda n: [("kim", 1), ("lee", 2)] * n)
    return made


@asynccontextmanager
async def service() -> AsyncIterator[Callable[[str], Awaitable[str]]]:
    """Answers all that have asked at one moment, soon after it is opened."""
    soon = asyncio.Event()
    asyncio.get_running_loop().call_later(0.3, soon.set)

    async def fetch(_: str) -> str:
        await soon.wait()
        return ANSWER

    yield fetch


@pytest.fixture
def fetch() -> Opened:
    return Opened(service)


@pytest.fixture
def names() -> list[str]:
    """So many that their answers take 0.6 s to parse: a crowd is told from twice the budget on."""

    def parse(answers: list[str]) -> None:
        for answer in answers:
            sum(json.loads(answer))

    made: list[str] = sized(parse, lambda n: [ANSWER] * n, 1)
    return 2 * made


@pytest.fixture(scope="module")
def addresses() -> list[str]:
    pattern = re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+")

    def match(addresses: list[str]) -> None:
        for address in addresses:
            pattern.fullmatch(address)

    made: list[str] = sized(match, lambda n: ["kim.lee+shop@mail.example.org"] * n)
    return made


# How they are run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Each block is a module in it, which the processes of a pool find too."""
    made = tmp_path_factory.mktemp("blocks")
    for block in BLOCKS:
        (made / f"{block.module}.py").write_text(block.code)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(made)
        yield made


def load(block: Block) -> ModuleType:
    """Its module; skips where that needs a library of the dependency group `advice`."""
    try:
        return importlib.import_module(block.module)
    except ModuleNotFoundError as missing:
        if missing.name not in OF_GROUP_ADVICE:
            raise
        pytest.skip(f"{missing.name} is not installed")


def functions(module: ModuleType) -> list[FunctionType]:
    """Those that it defines, in their order."""
    found = [value for value in vars(module).values() if inspect.isfunction(value)]
    return [function for function in found if function.__module__ == module.__name__]


def entry(block: Block) -> Callable[..., Any]:
    """What is to be called: the last function."""
    return functions(load(block))[-1]


def run_guarded(function: Callable[..., Any], given: list[Any]) -> tuple[Any, list[Stall]]:
    """What it returns, and the stalls that name somebody of it. The guard comes when all that is given is ready."""

    async def main() -> tuple[Any, loopguard.Guard]:
        async with AsyncExitStack() as stack:
            ready = [
                await stack.enter_async_context(each.open()) if isinstance(each, Opened) else each
                for each in given
            ]
            guard = loopguard.install(budget=BUDGET, log=False)
            await asyncio.sleep(BUDGET)  # some beats
            result = await finish(function(*ready))
            await asyncio.sleep(REST)
            return result, guard

    gc.collect()
    gc.freeze()  # what other tests keep would be walked on this loop
    try:
        result, guard = run(main())
    finally:
        gc.unfreeze()
    assert guard.flush(10)
    loopguard.uninstall()
    print(*guard.stalls, sep="\n")  # shown where a test fails
    told = [stall for stall in guard.stalls if stall.cause != "not_scheduled"]
    return result, [stall for stall in told if named(stall) is not None]


async def finish(started: Any) -> Any:
    """What a coroutine returns, or all that an asynchronous generator yields."""
    if inspect.isasyncgen(started):
        return [piece async for piece in started]
    return await started


def named(stall: Stall) -> object:
    """Whom it names: the culprit's or the holder's module and line; of a crowd the first coroutine.

    No library's line: on a busy machine a thread takes long to begin, and for that `threading` holds the loop.
    """
    if stall.contributors:
        return stall.contributors[0].name
    frame = stall.culprit or (stall.holder.culprit if stall.holder else None)
    return None if frame is None or frame.library else (frame.module, frame.line)


def claimed(block: Block) -> list[object]:
    """What the page says of the stalls of a block: cause, who, and call if it says one."""
    mark = block.mark
    if mark is None:
        return []
    if mark.cause != "congestion":
        return [(mark.cause, (block.module, mark.line), mark.call)]
    (name,) = (
        function.__name__
        for function in functions(load(block))
        if function.__code__.co_firstlineno == mark.line
    )
    return [(mark.cause, name, mark.call)]


def seen(block: Block, stalls: list[Stall]) -> list[object]:
    """The same of those that were found."""
    says_call = block.mark is not None and block.mark.call is not None
    return [(stall.cause, named(stall), stall.call if says_call else None) for stall in stalls]


def run_until_claimed(block: Block, given: list[Any]) -> Any:
    """What the block returns; up to twice more where it is not as claimed, for the machine may have been busy elsewhere."""
    result, stalls = run_guarded(entry(block), given)
    for _ in range(AGAIN):
        if seen(block, stalls) == claimed(block):
            break
        result, stalls = run_guarded(entry(block), given)
    assert seen(block, stalls) == claimed(block), block.code
    return result


@pytest.mark.parametrize("section", SECTIONS)
def test_each_block_stalls_where_the_page_says_so_and_nowhere_else(
    section: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    """And gives the same for the same input, before and after."""
    results: dict[object, Any] = {}
    for block in SECTIONS[section]:
        function = entry(block)
        names = list(inspect.signature(function).parameters)
        result = run_until_claimed(block, [request.getfixturevalue(name) for name in names])
        of_same_input = function.__name__, frozenset(names) - MADE_AT_STARTUP
        assert results.setdefault(of_same_input, result) == result, block.code


# What the page says beside the blocks


def test_each_section_shows_a_stall_and_its_cure() -> None:
    """Only the limit of threads makes no stall."""
    for section, blocks in SECTIONS.items():
        marked = {block.mark is not None for block in blocks}
        assert marked == ({False} if section == "The limit of 40" else {True, False}), section


@pytest.mark.parametrize("section", [name for name in SECTIONS if name != "The limit of 40"])
def test_the_record_that_a_section_describes_is_the_one_that_its_blocks_leave(section: str) -> None:
    page = PAGE.read_text()
    (prose,) = re.findall(
        rf"^#{{2,3}} {re.escape(section)}$.*?^(\*\*The record\*\*.*?)^```",
        page,
        re.MULTILINE | re.DOTALL,
    )
    marks = [block.mark for block in SECTIONS[section] if block.mark]
    assert f"`{marks[0].cause}`" in prose
    assert marks[0].call is None or f"`{marks[0].call}`" in prose


def test_each_row_of_the_first_table_leads_to_a_section() -> None:
    page = PAGE.read_text()
    table = page.partition("| --- |")[2].partition("\n\n")[0]
    links = re.findall(r"\]\(#([^)]+)\)", page)
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    }
    assert len(re.findall(r"\]\(#", table)) >= len(table.splitlines()) - 1
    assert set(links) <= anchors


class Crowd:
    """Jobs that stay until they are told to go."""

    def __init__(self) -> None:
        self.running = 0  # written by the jobs' threads, one at a time
        self.lock = threading.Lock()
        self.go = threading.Event()

    def job(self) -> None:
        with self.lock:
            self.running += 1
        self.go.wait(30)


async def at_once(
    export: Callable[..., Any], expected: int, meanwhile: Callable[[], Awaitable[Any]]
) -> tuple[int, Any]:
    """How many of its jobs run at a time, no more coming after as many as are expected; and what was seen meanwhile."""
    crowd = Crowd()
    exporting = asyncio.ensure_future(export(crowd.job))
    try:
        async with asyncio.timeout(30):
            while crowd.running < expected:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            seen = await meanwhile()
            return crowd.running, seen
    finally:
        crowd.go.set()
        await exporting


async def threadpool() -> object:
    """As the metrics see it."""
    limiters = ThreadLimiters()
    limiters.note(time.monotonic_ns())
    return limiters.read()


def test_the_41st_waits_until_the_limit_is_raised(folder: Path) -> None:
    """And the metrics say so."""
    export, startup, _ = (entry(block) for block in SECTIONS["The limit of 40"])

    async def main() -> None:
        assert await at_once(export, 40, threadpool) == (40, Threadpool(1, 1.0))
        await startup()
        assert await at_once(export, 41, threadpool) == (41, Threadpool(0, 0.41))

    run(main())


def test_a_limiter_of_its_own_leaves_the_threads_to_the_others(folder: Path) -> None:
    _, _, export = (entry(block) for block in SECTIONS["The limit of 40"])
    assert run(at_once(export, 10, threadpool)) == (10, Threadpool(0, 0.0))


def test_a_thread_that_computes_keeps_each_event_waiting_and_a_process_does_not(
    folder: Path, pool: ProcessPoolExecutor, terms: int
) -> None:
    """For as long as a thread may have the GIL after another has asked for it."""
    _, in_thread, in_process = (entry(block) for block in SECTIONS["A process pool for CPU"])

    async def lateness(computing: Coroutine[Any, Any, float]) -> float:
        task, late = asyncio.create_task(computing), []
        while not task.done():
            due = time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            late.append(time.perf_counter() - due)
        return median(late)

    beside_thread = run(lateness(in_thread(terms)))
    assert run(lateness(in_process(pool, terms))) < beside_thread


def test_orjson_takes_less_than_half_the_time_of_json(rows: list[dict[str, object]]) -> None:
    orjson = pytest.importorskip("orjson")
    some = rows[: len(rows) // 4]
    took = [min(seconds(dumps, some) for _ in range(3)) for dumps in (orjson.dumps, json.dumps)]
    assert 2 * took[0] < took[1]
