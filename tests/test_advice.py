"""What to use instead: the table, and the choice among its rows."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from loopguard.evidence import Callee, Look, RawFrame
from loopguard.explain.advice import ASYNCHRONOUS, LONGEST, TABLE, Row, advise
from loopguard.explain.consensus import Verdict
from loopguard.record import Cause
from tests.evidence import frame, look

PAGE = Path(__file__).resolve().parents[1] / "docs" / "advice.md"

HANDLER = frame("handler", "app.users")
IMPORTLIB = frame("_find_and_load", "importlib._bootstrap", "<frozen importlib._bootstrap>")


def blamed(
    *inside: str, callee: Callee | None = None, looks: Sequence[tuple[Look, int, float]] = ()
) -> Verdict:
    """The handler is blamed; inside it run functions of these modules, from the outermost inwards."""
    stack = (*(frame("work", module) for module in reversed(inside)), HANDLER)
    seen = look(300, stack=stack, callee=callee)
    return Verdict(seen, len(inside), 1.0, tuple(looks) or ((seen, len(inside), 0.4),))


def row_of(name: str) -> Row:
    (row,) = [row for row in TABLE if name in row.matches]
    return row


def of_cause(cause: Cause) -> str:
    (row,) = [row for row in TABLE if not row.matches and cause in row.causes]
    return row.advice


def module_frame(name: str) -> RawFrame:
    """The frame of a module that is being executed."""
    return RawFrame(compile("call()", f"/srv/{name}.py", "exec"), 0, name)


pure = pytest.mark.core


@pure
@pytest.mark.parametrize(
    "call, cause, name",
    [
        ("psycopg2.extensions.cursor.execute", "blocking_call", "psycopg2"),
        ("psycopg.connection.Connection.execute", "blocking_call", "psycopg"),
        ("requests.sessions.Session.get", "blocking_call", "requests"),
        ("json.decoder.JSONDecoder.decode", "gil_hold", "json"),
        ("concurrent.futures._base.Future.result", "lock", "concurrent.futures._base"),
        ("concurrent.futures._base.Executor.__exit__", "lock", "concurrent.futures._base.Executor"),
        ("socket.socket.recv", "blocking_call", "socket"),
        ("zlib.compress", "unknown", "zlib"),
    ],
)
def test_the_call_finds_its_row(call: str, cause: Cause, name: str) -> None:
    """The longest of the names with which it begins, part by part."""
    assert advise(cause, call, None) == row_of(name).advice


@pure
def test_a_name_is_matched_in_whole_parts() -> None:
    assert advise("blocking_call", "requests_cache.get", None) == of_cause("blocking_call")
    assert advise("blocking_call", "time.sleeper", None) == of_cause("blocking_call")


@pure
def test_the_call_comes_before_what_runs_inside_it() -> None:
    inside = blamed("sqlalchemy.orm", "psycopg2.extras")
    call = "sqlalchemy.orm.session.Session.execute"
    assert advise("blocking_call", call, inside) == row_of("sqlalchemy").advice


@pure
def test_what_runs_inside_an_unknown_call_is_searched_from_the_culprit_inwards() -> None:
    inside = blamed("some_client.api", "requests.api", "urllib3.connection", "http.client")
    assert advise("blocking_call", "some_client.api.work", inside) == row_of("requests").advice


@pure
def test_native_code_that_the_innermost_frame_called_counts_too() -> None:
    inside = blamed("some_orm.query", callee=Callee(json.dumps, None, "dumps"))
    assert advise("gil_hold", "some_orm.query.work", inside) == row_of("json").advice


@pure
def test_a_library_that_is_blamed_itself_is_searched_from_its_own_frame() -> None:
    seen = look(
        300, stack=(frame("encode", "json.encoder"), frame("render", "starlette.responses"))
    )
    alone = Verdict(seen, 0, 1.0, ((seen, 0, 0.4),))
    assert advise("gil_hold", None, alone) == row_of("json").advice


@pure
@pytest.mark.parametrize("module", ["threading.Condition", "socket", "subprocess", "io"])
def test_what_a_library_builds_upon_is_not_the_users_to_replace(module: str) -> None:
    assert advise("lock", "some_client.api.work", blamed("some_client.api", module)) == of_cause(
        "lock"
    )


@pure
def test_a_sleep_inside_a_library_is_not_the_users_to_replace() -> None:
    inside = blamed("some_client.retry", callee=Callee(time.sleep, None, "sleep"))
    assert advise("blocking_call", "some_client.retry.work", inside) == of_cause("blocking_call")


@pure
@pytest.mark.parametrize("json_seconds, advice", [(0.3, "json"), (0.1, None)])
def test_most_of_the_time_decides_what_ran_inside(json_seconds: float, advice: str | None) -> None:
    """A function that now and then calls json is not slow for json's sake."""
    within = look(300, stack=(frame("work", "json"), frame("work", "lib"), HANDLER))
    without = look(200, stack=(frame("work", "lib"), HANDLER))
    seen = [(within, 2, json_seconds), (without, 1, 0.4 - json_seconds)]
    told = advise("cpu", "lib.work", blamed("lib", looks=seen))
    assert told == (of_cause("cpu") if advice is None else row_of(advice).advice)


@pure
@pytest.mark.parametrize(
    "cause, call",
    [
        ("gc", "json.loads"),
        ("import", "time.sleep"),
        ("cpu", "requests.api.get"),
        ("blocking_call", "pandas.io.sql.read_sql"),
        ("gil_wait", None),
    ],
)
def test_a_row_is_for_its_causes_only(cause: Cause, call: str | None) -> None:
    assert advise(cause, call, None) == of_cause(cause).format(module="the module")


@pure
@pytest.mark.parametrize("cause", ["unknown", "congestion"])
def test_where_nothing_is_known_nothing_is_said(cause: Cause) -> None:
    assert advise(cause, "some_client.api.work", blamed("some_client.api")) is None


@pure
@pytest.mark.parametrize("module", ASYNCHRONOUS)
def test_who_uses_the_asynchronous_half_of_a_library_is_not_told_to_use_it(module: str) -> None:
    assert advise("unknown", f"{module}.Client.get", blamed(module)) is None
    assert advise("blocking_call", "my_client.work", blamed("my_client", module)) == of_cause(
        "blocking_call"
    )


@pure
def test_the_outermost_module_that_was_being_imported_is_named() -> None:
    stack = (module_frame("pandas"), IMPORTLIB, module_frame("app.reports"), IMPORTLIB, HANDLER)
    seen = look(300, stack=stack)
    verdict = Verdict(seen, 2, 1.0, ((seen, 2, 0.4),))
    assert advise("import", "importlib._bootstrap._find_and_load", verdict) == of_cause(
        "import"
    ).format(module="app.reports")


@pure
def test_a_module_that_no_frame_shows_is_not_named() -> None:
    """Its file is only being read, or it is native code."""
    seen = look(300, stack=(IMPORTLIB, HANDLER))
    verdict = Verdict(seen, 1, 1.0, ((seen, 1, 0.4),))
    told = advise("import", None, verdict)
    assert told == of_cause("import").format(module="the module")


@pure
def test_the_rule_is_named_for_the_calls_that_it_finds_only() -> None:
    found = advise("blocking_call", "requests.api.get", None)
    assert found == f"{row_of('requests').advice} (ruff: ASYNC210)"
    assert advise("blocking_call", "pathlib.Path.open", None) == (
        f"{row_of('pathlib').advice} (ruff: ASYNC230)"
    )
    assert "ruff" not in (advise("blocking_call", "requests.sessions.Session.get", None) or "")


@pure
def test_each_name_and_cause_has_one_row() -> None:
    names = [name for row in TABLE for name in row.matches]
    causes = [cause for row in TABLE if not row.matches for cause in row.causes]
    assert len(names) == len(set(names))
    assert sorted(causes) == sorted(
        set(get_args(Cause)) - {"unknown", "congestion", "not_scheduled"}
    )


@pure
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.advice[:40])
def test_each_sentence_is_short_and_one(row: Row) -> None:
    longest = max([row.advice, *(f"{row.advice} (ruff: {rule})" for rule in row.ruff.values())])
    assert len(longest) <= LONGEST
    assert "\n" not in longest
    assert not longest.endswith(".")


OF_OTHER_VERSIONS = {"pathlib._local.Path.open", "_thread.lock"}
NAMED = {name for row in TABLE for name in (*row.matches, *row.ruff)} | {*ASYNCHRONOUS}
STANDARD = sys.stdlib_module_names


@pytest.mark.parametrize(
    "name", sorted(n for n in NAMED - OF_OTHER_VERSIONS if n.partition(".")[0] in STANDARD)
)
def test_each_name_is_that_of_something_in_the_standard_library(name: str) -> None:
    assert resolve(name) is not None


def resolve(name: str) -> Any:
    """The module of that name, or what the longest module of it has under the rest."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        outer, _, last = name.rpartition(".")
        return getattr(resolve(outer), last)


@pytest.mark.parametrize("name", sorted(n for n in NAMED if n.partition(".")[0] not in STANDARD))
def test_each_name_is_that_of_something_in_its_library(name: str) -> None:
    """Read, not imported: some of them import for long, or warn."""
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        pytest.skip(f"{top} is not installed")
    path = Path(spec.origin).parent
    while rest and ((path / rest[0]).is_dir() or (path / f"{rest[0]}.py").is_file()):
        path /= rest.pop(0)
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = source.read_text()
    assert [part for part in rest if not re.search(rf"\b(class|def) {part}\b", text)] == []


# What somebody writes that is reported as a call of this name.
WRITTEN = {
    "requests.api": "requests.get(url)",
    "urllib.request.urlopen": "urllib.request.urlopen(url)",
    "httpx._api": "httpx.get(url)",
    "httpx._client.Client": "client = httpx.Client(); client.get(url)",
    "time.sleep": "time.sleep(1)",
    "subprocess.run": "subprocess.run(url)",
    "subprocess.call": "subprocess.call(url)",
    "subprocess.check_call": "subprocess.check_call(url)",
    "subprocess.check_output": "subprocess.check_output(url)",
    "subprocess.getoutput": "subprocess.getoutput(url)",
    "subprocess.Popen.__init__": "subprocess.Popen(url)",
    "os.system": "os.system(url)",
    "os.popen": "os.popen(url)",
    "os.wait": "os.wait()",
    "os.wait3": "os.wait3(0)",
    "os.wait4": "os.wait4(1, 0)",
    "os.waitid": "os.waitid(os.P_PID, 1, 0)",
    "os.waitpid": "os.waitpid(1, 0)",
    "io.open": "open(url)",
    "pathlib": "pathlib.Path(url).read_text()",
    "pathlib.Path.open": "pathlib.Path(url).open()",
    "pathlib._local.Path.open": "pathlib.Path(url).open()",
    "genericpath.exists": "os.path.exists(url)",
    "genericpath.getsize": "os.path.getsize(url)",
    "genericpath.isfile": "os.path.isfile(url)",
    "builtins.input": "input()",
}


def test_ruff_finds_each_call_by_the_rule_that_is_claimed(tmp_path: Path) -> None:
    claimed = {name: rule for row in TABLE for name, rule in row.ruff.items()}
    imports = "import httpx, os, pathlib, requests, subprocess, time, urllib.request\n"
    calls = [f"async def call(url): {WRITTEN[name]}\n" for name in claimed]
    (tmp_path / "calls.py").write_text(imports + "".join(calls))
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select=ASYNC"]
    done = subprocess.run(
        [*ruff, "--output-format=json", "calls.py"], cwd=tmp_path, capture_output=True, text=True
    )
    found = {(each["location"]["row"] - 2, each["code"]) for each in json.loads(done.stdout)}
    assert found == set(enumerate(claimed.values()))


def page_row(row: Row) -> str:
    """The row as docs/advice.md has it."""
    names = ", ".join(f"`{name}`" for name in row.matches) or "anything else"
    causes = ", ".join(f"`{cause}`" for cause in row.causes)
    rules = ", ".join(sorted(set(row.ruff.values())))
    advice = row.advice.replace("{module}", "*the module*")
    return f"| {names} | {causes} | {advice} | {row.pool or '—'} | {rules or '—'} |"


@pure
def test_the_page_has_the_table() -> None:
    rows = re.findall(r"^\| (?!-|called).*\|$", PAGE.read_text(), re.MULTILINE)
    assert rows == [page_row(row) for row in TABLE]
