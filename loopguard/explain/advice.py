"""What to use instead: a table of advice, and the choice among it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from loopguard.explain.call import call_of
from loopguard.explain.cause import imports
from loopguard.explain.consensus import Verdict
from loopguard.record import Cause

LONGEST = 160

WAITS: tuple[Cause, ...] = ("blocking_call", "lock", "unknown")
COMPUTES: tuple[Cause, ...] = ("cpu", "gil_hold", "unknown")
EITHER: tuple[Cause, ...] = ("blocking_call", "lock", "cpu", "unknown")


@dataclass(frozen=True, slots=True)
class Row:
    """One piece of advice.

    It is for stalls of these `causes`, and where it `matches` anything, for those whose `call`, or another that was
    running inside it, begins with one of these dotted names. What is `primitive` counts as the culprit's own call
    only: inside a library it is not the user's to replace.
    `pool` is the kind of pool in which the same code leaves the loop free; None where that is no way to go.
    `ruff` names the rule that finds such a call in a coroutine, by the call's dotted prefix.
    """

    advice: str
    matches: tuple[str, ...] = ()
    causes: tuple[Cause, ...] = WAITS
    pool: Literal["thread", "process"] | None = "thread"
    primitive: bool = False
    ruff: Mapping[str, str] = field(default_factory=dict)


TABLE = (
    # The network
    Row(
        "use httpx.AsyncClient or aiohttp, or await asyncio.to_thread(requests.get, …)",
        matches=("requests",),
        ruff={"requests.api": "ASYNC210"},
    ),
    Row(
        "use httpx.AsyncClient or aiohttp, or await asyncio.to_thread(pool.request, …)",
        matches=("urllib3",),
    ),
    Row(
        "use httpx.AsyncClient or aiohttp, or await asyncio.to_thread(urlopen, …)",
        matches=("urllib.request", "http.client"),
        ruff={"urllib.request.urlopen": "ASYNC210"},
    ),
    Row(
        "use httpx.AsyncClient: it has the same methods, to be awaited",
        matches=("httpx._api", "httpx._client.Client", "httpx._models.Response"),
        ruff={"httpx._api": "ASYNC210", "httpx._client.Client": "ASYNC212"},
    ),
    Row(
        "use aioboto3 or aiobotocore, or await asyncio.to_thread(client.get_object, …)",
        matches=("boto3", "botocore", "s3transfer"),
    ),
    Row(
        "use elasticsearch.AsyncElasticsearch: it has the same methods, to be awaited",
        matches=("elasticsearch", "elastic_transport"),
    ),
    Row(
        "use aiokafka.AIOKafkaProducer and AIOKafkaConsumer, or await asyncio.to_thread(producer.flush)",
        matches=("kafka",),
    ),
    Row(
        "use aiosmtplib.send(…), or await asyncio.to_thread(…) around the whole conversation",
        matches=("smtplib",),
    ),
    Row(
        "use asyncssh.connect(…), or await asyncio.to_thread(client.exec_command, …)",
        matches=("paramiko",),
    ),
    Row(
        "use await loop.getaddrinfo(…) or await loop.getnameinfo(…): they resolve names on a thread",
        matches=(
            *("socket.getaddrinfo", "socket.getfqdn", "_socket.getaddrinfo", "_socket.getnameinfo"),
            *("_socket.gethostbyname", "_socket.gethostbyname_ex", "_socket.gethostbyaddr"),
        ),
        primitive=True,
    ),
    Row(
        "use asyncio.open_connection(…), or await loop.sock_recv(…) on a non-blocking socket",
        matches=("socket", "_socket", "ssl", "_ssl"),
        primitive=True,
    ),
    # Databases
    Row(
        "use psycopg.AsyncConnection (psycopg 3) or asyncpg, or await asyncio.to_thread(cursor.execute, …)",
        matches=("psycopg2",),
    ),
    Row(
        "use psycopg.AsyncConnection: it has the same methods, to be awaited",
        matches=("psycopg",),
    ),
    Row(
        "use aiomysql or asyncmy, or await asyncio.to_thread(cursor.execute, …)",
        matches=("pymysql",),
    ),
    Row(
        "use aiosqlite, or loop.run_in_executor with a ThreadPoolExecutor(1) that owns the connection",
        matches=("sqlite3",),
        causes=EITHER,
    ),
    Row(
        "use sqlalchemy.ext.asyncio.create_async_engine(…), or await asyncio.to_thread(…) around the whole session",
        matches=("sqlalchemy",),
    ),
    Row(
        "use pymongo.AsyncMongoClient: it has the same methods, to be awaited",
        matches=("pymongo",),
    ),
    Row(
        "use redis.asyncio.Redis: it has the same methods, to be awaited",
        matches=("redis",),
    ),
    # The system
    Row(
        "await asyncio.sleep(…)",
        matches=("time.sleep",),
        primitive=True,
        ruff={"time.sleep": "ASYNC251"},
    ),
    Row(
        "use await asyncio.create_subprocess_exec(…) and await process.communicate()",
        matches=("subprocess",),
        causes=EITHER,
        primitive=True,
        ruff={
            "subprocess.run": "ASYNC221",
            "subprocess.call": "ASYNC221",
            "subprocess.check_call": "ASYNC221",
            "subprocess.check_output": "ASYNC221",
            "subprocess.getoutput": "ASYNC221",
            "subprocess.Popen.__init__": "ASYNC220",
        },
    ),
    Row(
        "use await asyncio.create_subprocess_shell(…) and await process.communicate()",
        matches=("os.system", "os.popen", "os._wrap_close"),
        primitive=True,
        ruff={"os.system": "ASYNC221", "os.popen": "ASYNC220"},
    ),
    Row(
        "use asyncio.create_subprocess_exec(…) and await process.wait(), or await asyncio.to_thread(os.waitpid, …)",
        matches=("os.wait", "os.wait3", "os.wait4", "os.waitid", "os.waitpid"),
        primitive=True,
        ruff={
            "os.wait": "ASYNC222",
            "os.wait3": "ASYNC222",
            "os.wait4": "ASYNC222",
            "os.waitid": "ASYNC222",
            "os.waitpid": "ASYNC222",
        },
    ),
    Row(
        "await asyncio.to_thread(…) around the whole of the file work, or use aiofiles or anyio.Path",
        matches=(
            *("io", "pathlib", "shutil", "posixpath", "ntpath", "genericpath"),
            *("os.open", "os.read", "os.write", "os.fsync", "os.fdatasync", "os.sync"),
            *("os.stat", "os.listdir", "os.scandir", "os.walk", "os.rename", "os.replace"),
            *("os.unlink", "os.remove", "os.truncate", "os.ftruncate"),
        ),
        causes=EITHER,
        primitive=True,
        ruff={
            "io.open": "ASYNC230",
            "pathlib": "ASYNC240",
            "pathlib.Path.open": "ASYNC230",
            "pathlib._local.Path.open": "ASYNC230",
            "genericpath.exists": "ASYNC240",
            "genericpath.getsize": "ASYNC240",
            "genericpath.isfile": "ASYNC240",
        },
    ),
    Row(
        "await asyncio.to_thread(input)",
        matches=("builtins.input",),
        primitive=True,
        ruff={"builtins.input": "ASYNC250"},
    ),
    Row(
        "log instead, through a logging.handlers.QueueHandler, or await asyncio.to_thread(print, …)",
        matches=("builtins.print",),
        primitive=True,
    ),
    Row(
        "log to a logging.handlers.QueueHandler, and let a QueueListener write to the slow sink on a thread",
        matches=("logging",),
    ),
    # Other threads and processes
    Row(
        "use asyncio.Lock, Event or Condition among tasks; a wait for another thread belongs in asyncio.to_thread(…)",
        matches=(
            *("_thread.lock", "_thread.RLock", "threading.Condition", "threading.Event"),
            *("threading.Semaphore", "threading.BoundedSemaphore", "threading.Barrier"),
        ),
        primitive=True,
    ),
    Row(
        "use asyncio.Queue (from a thread: loop.call_soon_threadsafe), or await asyncio.to_thread(queue.get)",
        matches=("queue", "_queue"),
        primitive=True,
    ),
    Row(
        "await asyncio.to_thread(thread.join), or run the thread's function by asyncio.to_thread(…) from the start",
        matches=("threading.Thread",),
        primitive=True,
    ),
    Row(
        "await asyncio.wrap_future(future); from run_coroutine_threadsafe on this same loop it would never finish",
        matches=("concurrent.futures._base",),
        primitive=True,
    ),
    Row(
        "await loop.run_in_executor(…) for each job, so that none is left to wait for when the executor shuts down",
        matches=(
            *("concurrent.futures._base.Executor", "concurrent.futures.thread"),
            "concurrent.futures.process",
        ),
        primitive=True,
    ),
    Row(
        "use await loop.run_in_executor(ProcessPoolExecutor(…), …), or await asyncio.to_thread(process.join)",
        matches=("multiprocessing", "_multiprocessing"),
        primitive=True,
    ),
    # Computing
    Row(
        "orjson is several times faster; for large documents a process pool, since json keeps the GIL (a thread does not help)",
        matches=("json",),
        causes=COMPUTES,
        pool="process",
    ),
    Row(
        "rid the pattern of nested repeats, or use google-re2; re keeps the GIL, so a process pool helps, a thread does not",
        matches=("re",),
        causes=COMPUTES,
        pool="process",
    ),
    Row(
        "run it in a ProcessPoolExecutor: most of pandas keeps the GIL, so a thread helps little",
        matches=("pandas",),
        causes=COMPUTES,
        pool="process",
    ),
    Row(
        "await asyncio.to_thread(…): numpy lets the GIL go while it works on large arrays",
        matches=("numpy",),
        causes=COMPUTES,
    ),
    Row(
        "await asyncio.to_thread(image.resize, …): Pillow lets the GIL go while it resizes, decodes and encodes",
        matches=("PIL",),
        causes=EITHER,
    ),
    Row(
        "await asyncio.to_thread(bcrypt.checkpw, …): it lets the GIL go, so a thread helps",
        matches=("bcrypt",),
        causes=COMPUTES,
    ),
    Row(
        "await asyncio.to_thread(hashlib.scrypt, …): hashlib lets the GIL go, so a thread helps",
        matches=("hashlib", "_hashlib", "_blake2"),
        causes=COMPUTES,
    ),
    Row(
        "await asyncio.to_thread(zlib.compress, …): compression lets the GIL go, so a thread helps",
        matches=("zlib", "gzip", "bz2", "_bz2", "lzma", "_lzma"),
        causes=EITHER,
    ),
    Row(
        "validate smaller pieces with await asyncio.sleep(0) between, or in a process pool: pydantic keeps the GIL",
        matches=("pydantic", "pydantic_core"),
        causes=COMPUTES,
        pool="process",
    ),
    Row(
        "iterate over template.generate(…) with await asyncio.sleep(0) in between, or render in a process pool",
        matches=("jinja2",),
        causes=COMPUTES,
        pool="process",
    ),
    Row(
        "yaml.load(…, Loader=yaml.CSafeLoader) is several times faster; large files belong in a process pool",
        matches=("yaml",),
        causes=COMPUTES,
        pool="process",
    ),
    Row(
        "pickle smaller pieces, or in the process that owns the data: pickle keeps the GIL, a thread does not help",
        matches=("pickle", "_pickle"),
        causes=COMPUTES,
        pool="process",
    ),
    Row(
        "read in batches with await asyncio.sleep(0) in between, or in a process pool: csv keeps the GIL",
        matches=("csv", "_csv"),
        causes=COMPUTES,
        pool="process",
    ),
    Row(
        "feed xml.etree.ElementTree.XMLPullParser in pieces, or parse in a process pool: the parser keeps the GIL",
        matches=("xml", "pyexpat"),
        causes=COMPUTES,
        pool="process",
    ),
    # Whatever was called
    Row(
        "await asyncio.to_thread(…) for this call, or use an asynchronous library in its place",
        causes=("blocking_call",),
    ),
    Row(
        "it waits for another thread: await asyncio.to_thread(…) for this call, or use asyncio's own Lock, Queue or Event",
        causes=("lock",),
    ),
    Row(
        "run it in a ProcessPoolExecutor by loop.run_in_executor(…), or break it up with await asyncio.sleep(0)",
        causes=("cpu",),
        pool="process",
    ),
    Row(
        "run it in a ProcessPoolExecutor, or on smaller pieces: this native code keeps the GIL, so a thread does not help",
        causes=("gil_hold",),
        pool="process",
    ),
    Row(
        "another thread kept the GIL: move the work of that thread to a process",
        causes=("gil_wait",),
        pool="process",
    ),
    Row(
        "call gc.freeze() after start-up and raise gc.set_threshold(…), so that less is walked, less often",
        causes=("gc",),
        pool=None,
    ),
    Row(
        "import {module} before the loop runs, at the top of a file",
        causes=("import",),
        pool=None,
    ),
)

# The asynchronous halves of libraries that are in the table: who calls these has followed its advice.
ASYNCHRONOUS = (
    "elastic_transport._async_transport",
    "elasticsearch._async",
    "psycopg.connection_async",
    "psycopg.cursor_async",
    "pymongo.asynchronous",
    "redis.asyncio",
    "sqlalchemy.ext.asyncio",
)

_BY_NAME: dict[str, Row | None] = {name: row for row in TABLE for name in row.matches}
_BY_NAME.update(dict.fromkeys(ASYNCHRONOUS))
_BY_CAUSE = {cause: row for row in TABLE if not row.matches for cause in row.causes}


def advise(cause: Cause, call: str | None, blamed: Verdict | None) -> str | None:
    """What to use instead, in a sentence; None where nothing is known to help.

    By what the culprit's line called, or the Python code that C code called there; else by what was running inside
    that, from the culprit inwards; else by cause.
    """
    row = (
        _by_call(_next_frame(blamed), cause)
        or _by_call(call, cause)
        or _by_stack(blamed, cause)
        or _BY_CAUSE.get(cause)
    )
    if row is None:
        return None
    advice = row.advice.replace("{module}", _imported(blamed) or "the module")
    rule = None if call is None else _longest(call, row.ruff)
    return advice if rule is None else f"{advice} (ruff: {row.ruff[rule]})"


def _next_frame(blamed: Verdict | None) -> str | None:
    """The Python function that the culprit called, be it through C code."""
    return call_of(blamed.look.stack, blamed.place, None) if blamed and blamed.place else None


def _by_call(call: str | None, cause: Cause) -> Row | None:
    fitting = _fitting(cause, primitive=True)
    name = None if call is None else _longest(call, fitting)
    return None if name is None else fitting[name]


def _by_stack(blamed: Verdict | None, cause: Cause) -> Row | None:
    """The row for what was inside the call for most of the time; None where most of it is in no row."""
    fitting = _fitting(cause, primitive=False)
    seconds: defaultdict[str | None, float] = defaultdict(float)
    for look, culprit, weight in () if blamed is None else blamed.on_line:
        # One step out is the culprit itself, which may be a library's; the last is what its innermost frame called.
        running = (call_of(look.stack, i, look.callee) for i in range(culprit + 1, -1, -1))
        names = (_longest(name, fitting) for name in running if name is not None)
        seconds[next((name for name in names if name is not None), None)] += weight
    most = max(seconds, key=lambda name: seconds[name], default=None)
    return None if most is None else fitting[most]


def _fitting(cause: Cause, primitive: bool) -> dict[str, Row | None]:
    """The rows for that cause, by name; those that are primitive only if these are asked for too."""
    return {
        name: row
        for name, row in _BY_NAME.items()
        if row is None or (cause in row.causes and (primitive or not row.primitive))
    }


def _longest(name: str, prefixes: Mapping[str, object]) -> str | None:
    """The longest of the dotted prefixes that the name begins with."""
    parts = name.split(".")
    tried = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((prefix for prefix in tried if prefix in prefixes), None)


def _imported(blamed: Verdict | None) -> str | None:
    """The module that was being imported: the outermost, for it brings in the others."""
    within = False
    for frame in () if blamed is None else reversed(blamed.look.stack):
        if within and frame.code.co_name == "<module>":
            return frame.module
        within = within or imports(frame)
    return None
