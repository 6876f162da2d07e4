"""Code of every odd kind, and hostile names: each stall is told, and nothing is forged or broken by it."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import logging
import os
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

import pytest

import loopguard
from loopguard.record import Stall
from tests.faults.script import ran
from tests.holding import BUDGET, LONG, REST, run, told
from tests.reliability import Say

SOURCE = f"import time\ndef work(then=None):\n    (then or time.sleep)({LONG})\n"


def stall_of(work: Callable[[], object], **options: Any) -> Stall:
    """The one stall that there is while it runs."""
    guard = loopguard.install(budget=BUDGET, **{"log": False, **options})

    async def main() -> None:
        await asyncio.sleep(REST)
        work()
        await asyncio.sleep(REST)

    run(main())
    [stall] = told(guard)
    assert guard.stats()["troubles"] == guard.stats()["sink_errors"] == 0
    loopguard.uninstall()
    return stall


@pytest.mark.fault("deep recursion", "a stall 900 frames deep")
def test_a_stall_in_deep_recursion_is_told_with_a_bounded_stack(tmp_path: Path, row: Say) -> None:
    path = tmp_path / "stalls.jsonl"

    def dive(depth: int) -> None:
        if depth:
            dive(depth - 1)
        else:
            time.sleep(LONG)

    stall = stall_of(lambda: dive(900), jsonl=path)
    assert stall.culprit is not None
    assert (stall.culprit.function.rpartition(".")[2], stall.call) == ("dive", "time.sleep")
    size = path.stat().st_size
    assert len(stall.stack) <= 120
    assert size < 60_000
    row(
        f"the innermost line is told; {len(stall.stack)} frames in the record, {size // 1000} kB",
        "the frames between",
    )


def module_from(code: str, path: str) -> ModuleType:
    module = ModuleType("odd")
    exec(compile(code, path, "exec"), vars(module))
    return module


@pytest.fixture
def zipped(tmp_path: Path) -> Iterator[ModuleType]:
    archive = tmp_path / "packages.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("zipped_away.py", SOURCE)
    sys.path.insert(0, str(archive))
    try:
        yield __import__("zipped_away")
    finally:
        sys.path.remove(str(archive))
        del sys.modules["zipped_away"]


@pytest.mark.fault(
    "a file name that is no UTF-8", "code in `caf\\xe9.py`, and a control character in the path"
)
def test_code_in_a_file_whose_name_is_no_text_is_told(tmp_path: Path, row: Say) -> None:
    path = tmp_path / "stalls.jsonl"
    name = os.fsdecode(b"/srv/caf\xe9\x1b[31m.py")
    stall = stall_of(module_from(SOURCE, name).work, jsonl=path)
    assert stall.culprit is not None
    assert (stall.culprit.file, stall.culprit.line, stall.culprit.code) == (name, 3, None)
    [line] = path.read_text("ascii").splitlines()
    assert json.loads(line)["culprit"]["file"] == name
    row(
        "the line is told; escaped in the log, and plain ASCII in the JSONL file",
        "the source text: null",
    )


@pytest.mark.fault("code without a source", "a function from `exec`, its file `<generated>`")
def test_code_that_was_made_by_exec_is_told_without_source(row: Say) -> None:
    """It is nobody's line to mend; whoever called it is to blame."""
    work = module_from(SOURCE, "<generated>").work

    def calls_it() -> None:
        work()

    stall = stall_of(calls_it)
    assert stall.culprit is not None
    assert stall.culprit.function.rpartition(".")[2] == "calls_it"
    inner = stall.stack[-1]
    assert (inner.file, inner.line, inner.function, inner.code) == ("<generated>", 3, "work", None)
    row("its caller is blamed; its own line is in the stack", "its source text: null")


@pytest.mark.fault("a zipped package", "a module imported from a zip file")
def test_code_in_a_zipped_package_is_told_with_its_source(zipped: Any, row: Say) -> None:
    stall = stall_of(zipped.work)
    assert stall.culprit is not None
    assert stall.culprit.file.endswith("packages.zip/zipped_away.py")
    assert (stall.culprit.line, stall.culprit.code) == (3, f"(then or time.sleep)({LONG})")
    row("told with file, line and source text")


@pytest.mark.fault(
    "frames of Cython", "a callback that httptools, written in Cython, calls from its parser"
)
def test_a_callback_below_cython_is_told(row: Say) -> None:
    httptools = pytest.importorskip("httptools")

    class Protocol:
        def on_message_complete(self) -> None:
            time.sleep(LONG)

    parser = httptools.HttpRequestParser(Protocol())
    stall = stall_of(lambda: parser.feed_data(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
    assert stall.culprit is not None
    assert stall.culprit.function.endswith("Protocol.on_message_complete")
    assert stall.call == "time.sleep"
    row("the callback's line is told", "Cython's own frames, which are none of Python's")


HOSTILE = 'a\nERROR root: forged\r\x1b]0;owned\x07\x1b[2J\u202e{"event": "forged"}'


@pytest.mark.fault(
    "hostile names", "line breaks, terminal escapes and JSON in a route, a task and a function"
)
@pytest.mark.parametrize("where", ["stderr", "logging"])
def test_hostile_names_forge_nothing_in_the_log(
    where: str, row: Say, capsys: pytest.CaptureFixture[str]
) -> None:
    fastapi, httpx = pytest.importorskip("fastapi"), pytest.importorskip("httpx")
    app = fastapi.FastAPI()

    async def work() -> None:
        asyncio.current_task().set_name(HOSTILE)  # type: ignore[union-attr]
        time.sleep(LONG)

    work.__code__ = work.__code__.replace(co_name=HOSTILE, co_qualname=HOSTILE)
    app.get("/" + HOSTILE.replace("{", "").replace("}", ""))(work)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        logging.Formatter("%(levelname)s %(name)s %(message)s %(culprit)s %(route)s %(task)s")
    )
    logger = logging.getLogger("loopguard")
    logger.propagate = False  # pytest's own handlers would be used
    if where == "logging":
        logger.addHandler(handler)
    guard = loopguard.install(app, budget=BUDGET)

    async def main() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
            await asyncio.sleep(REST)
            assert (await client.get(quote(app.routes[-1].path))).status_code == 200
            await asyncio.sleep(REST)

    try:
        run(main())
        [stall] = told(guard)
        assert guard.stats()["troubles"] == guard.stats()["sink_errors"] == 0
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
    text = stream.getvalue() if where == "logging" else capsys.readouterr().err
    about = [line for line in text.split("\n") if "forged" in line]
    assert len(about) == 1
    assert "event_loop.stall" in about[0]
    assert text.replace("\n", "").isprintable()
    assert stall.task == HOSTILE
    row("one line in the log for one stall; each of these characters is escaped")


# Sub-interpreters

BESIDE = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
run_in = getattr(interpreters, "exec", None) or interpreters.run_string
guard = loopguard.install(budget=0.05, log=False)
ids = [interpreters.create() for _ in range(2)]
code = '''
import time
def recurse(depth):
    return depth and recurse(depth - 1)
until = time.monotonic() + 2.5
while time.monotonic() < until:
    recurse(40)
'''
threads = [threading.Thread(target=run_in, args=(each, code)) for each in ids]
for thread in threads:
    thread.start()
run(hold(0.2, times=8), sys.argv[1])
for thread in threads:
    thread.join()
assert guard.flush(10)
told = [stall for stall in guard.stalls if stall.cause != "not_scheduled" and stall.culprit]
say(functions=sorted({stall.culprit.function for stall in told}), told=len(told), troubles=guard.stats()["troubles"])
loopguard.uninstall()
os._exit(0)
"""

INSIDE = """
import _xxsubinterpreters as interpreters
inner = interpreters.create(isolated=False)
interpreters.run_string(inner, '''
import os, threading
import loopguard
with loopguard.install() as guard:
    assert threading.active_count() == 1
    assert set(guard.stats().values()) == {0}
os.write(1, b"{}")
''')
os._exit(0)
"""

interpreters = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="up to 3.11 they share the GIL, and no module gives it up"
)


@interpreters
@pytest.mark.fault(
    "sub-interpreters with a GIL of their own",
    "two that recurse without a pause, in threads, beside eight stalls",
)
def test_a_loop_beside_sub_interpreters_is_guarded(row: Say) -> None:
    """CPython's own way to ask for the frames of threads crashes there."""
    [said] = ran(BESIDE, "asyncio").said
    assert said["functions"] == ["hold"]
    assert said["told"] >= 6
    assert said["troubles"] == 0
    row(
        "told as ever, by asking for the loop's own thread alone",
        "who held a lock or the GIL: null",
    )


@interpreters
@pytest.mark.skipif(
    importlib.util.find_spec("_xxsubinterpreters") is None, reason="written for the module of 3.12"
)
@pytest.mark.fault("an install in a sub-interpreter", "in one that shares the GIL")
def test_in_a_sub_interpreter_the_guard_is_inert(row: Say) -> None:
    done = ran(INSIDE)
    assert done.said == [{}]
    assert '"off":"sub-interpreters are not watched"' in done.stderr
    row("nothing is started, said once in the log", "nothing is watched there")
