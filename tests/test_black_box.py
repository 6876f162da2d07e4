"""A process that dies in mid-stall is told of by the next start; one that lives is left alone; nothing stays behind."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import loopguard
from loopguard.black_box import files
from loopguard.black_box.box import BlackBox
from loopguard.black_box.search import MOST_KEPT, collect, records_in
from loopguard.tell.jsonl import json_line
from tests.holding import BUDGET, LONG, LOOPS, REST, changes_since, left_in_process, run, told
from tests.real.server import Child, read_rows, wait_until
from tests.records import make_stall
from tests.test_remains import HEAD

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 60.0  # of patience: the machine may be busy

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs flock")

# Ends in mid-stall, each in its own way; `next` only tells what others left.
SCRIPT = """
import asyncio, os, re, sys, time
from pathlib import Path
import loopguard
WHAT, LOOP, BOX, JSONL = sys.argv[1:5]
guard = loopguard.install(budget=0.1, black_box=BOX, jsonl=JSONL)

def wedge():
    re.match(r"(a+)+$", "a" * 60 + "b")

def waits():
    time.sleep(600)

def wedges():
    wedge()

def waits_and_wedges():
    [file] = Path(BOX).glob(f"*-{os.getpid()}-*.stalls")
    while '"stall"' not in file.read_text():  # a busy machine takes its time
        time.sleep(0.05)
    wedge()

def loses_its_files():
    for fd in os.listdir("/proc/self/fd"):
        link = f"/proc/self/fd/{fd}"
        if os.path.lexists(link) and BOX in os.readlink(link):
            os.close(int(fd))
    time.sleep(600)

def may_block():
    with loopguard.allow_blocking("on purpose"):
        time.sleep(600)

async def main():
    await asyncio.sleep(0.25)
    print("stalls", flush=True)
    globals()[WHAT]()

if WHAT == "next":
    until = time.monotonic() + 60
    while len(list(Path(BOX).glob("*.stalls"))) > int(sys.argv[5]) and time.monotonic() < until:
        time.sleep(0.02)
    assert guard.flush(20)
    assert guard.stats()["stalls"] == guard.stats()["troubles"] == 0
elif LOOP == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""

WEDGE = 're.match(r"(a+)+$", "a" * 60 + "b")'
DEATHS = ["waits", "wedges", "waits_and_wedges", "loses_its_files", "may_block"]


class Box:
    """A black box, and the processes that use it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "box"
        self.path.mkdir()
        self.jsonl = directory / "stalls.jsonl"
        self.script = directory / "script.py"
        self.script.write_text(SCRIPT)
        self.children: list[subprocess.Popen[str]] = []

    def start(self, what: str, loop: str = "asyncio", *more: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, str(self.script), what, loop, str(self.path), str(self.jsonl), *more],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.children.append(child)
        return child

    def next_start(self, alive: int) -> list[dict[str, Any]]:
        """What the next start logs; it waits until all files are gone but those of so many that live, and its own."""
        child = self.start("next", "asyncio", str(alive + 1))
        _, said = child.communicate(timeout=SECONDS)
        assert child.returncode == 0, said
        events = [json.loads(line) for line in said.splitlines()]
        return [event for event in events if event["event"] == "event_loop.stall.fatal"]

    def fatal(self) -> list[dict[str, Any]]:
        return [row for row in read_rows(self.jsonl) if row.get("fatal")]

    def holds(self, pid: int) -> bool:
        """Whether something stands in the files of a process."""
        stalls = [
            line
            for file in self.path.glob(f"*-{pid}-*.stalls")
            for line in file.read_text().split("\n")
        ]
        dumps = [file.stat().st_size for file in self.path.glob(f"*-{pid}-*.probe")]
        return any('"stall"' in line for line in stalls) or any(dumps)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    yield made
    for child in made.children:
        child.kill()
        child.communicate()


@pytest.mark.core
@pytest.mark.skipif(sys.platform != "linux", reason="needs the probe and /proc")
@pytest.mark.parametrize("loop", LOOPS)
def test_what_a_process_died_in_is_told_once_and_only_when_it_is_dead(loop: str, box: Box) -> None:
    children = {what: box.start(what, loop) for what in DEATHS}
    for what, child in children.items():
        assert child.stdout is not None
        assert child.stdout.readline() == "stalls\n"
        if what != "may_block":
            assert wait_until(lambda pid=child.pid: box.holds(pid), SECONDS), what  # type: ignore[misc]
    modes = {stat.S_IMODE(file.stat().st_mode) for file in box.path.iterdir()}
    assert modes == {0o600}
    # While they live nobody tells, however they are held: not a start, not who reads the directory.
    assert box.next_start(alive=len(DEATHS)) == []
    assert list(records_in(box.path)) == []
    time.sleep(0.5)  # the early record of 5 budgets
    for child in children.values():
        child.send_signal(signal.SIGKILL)
        child.wait()

    known = {record["pid"]: record for record in records_in(box.path)}
    both = [box.start("next", "asyncio", "2") for _ in range(2)]  # at once: each is told by one
    said = [child.communicate(timeout=SECONDS)[1] for child in both]
    assert [child.returncode for child in both] == [0, 0], said
    assert list(box.path.iterdir()) == []
    events = [json.loads(line) for text in said for line in text.splitlines()]
    logged = {event["pid"]: event for event in events if event["event"] == "event_loop.stall.fatal"}
    told_of = {row["pid"]: row for row in box.fatal()}
    assert len(box.fatal()) == len(logged) == len(told_of) == len(DEATHS) - 1
    assert known == told_of

    rows = {what: told_of.get(child.pid) for what, child in children.items()}
    assert rows["may_block"] is None
    seen = {
        what: (row["culprit"]["function"], row["culprit"]["code"], row["call"], row["cause"])
        for what, row in rows.items()
        if row is not None
    }
    # A frame of a dump has no module, so a callee in Python has no dotted name; its code is the whole line.
    assert seen == {
        "waits": ("waits", "time.sleep(600)", "time.sleep", "blocking_call"),
        "wedges": ("wedge", WEDGE, None, "gil_hold"),
        "waits_and_wedges": ("wedge", WEDGE, None, "gil_hold"),
        "loses_its_files": ("loses_its_files", "time.sleep(600)", "time.sleep", "blocking_call"),
    }
    for what, row in rows.items():
        if row is not None:
            assert (row["severity"], row["ongoing"], row["fatal"]) == ("error", False, True)
            assert logged[row["pid"]]["level"] == "error"
            assert logged[row["pid"]]["stall_id"] == row["id"]
            assert what in [frame["function"] for frame in row["stack"]]
            assert row["stack"][0]["function"] not in ("<module>", "run_watched")
            assert (row["task"] is None) is (what == "wedges")
            assert loop in row["loop"]
    early = [row["id"] for row in read_rows(box.jsonl) if row["ongoing"]]
    assert rows["waits"] is not None
    assert rows["waits"]["id"] in early


@pytest.mark.parametrize("loop", LOOPS)
def test_what_is_survived_leaves_nothing(loop: str, tmp_path: Path) -> None:
    """While it lasts it stands in the file; then that is empty but for who the process is; then it is gone."""
    with loopguard.install(log=False):
        run(asyncio.sleep(0), loop)
    before = left_in_process()
    guard = loopguard.install(budget=BUDGET, black_box=tmp_path, log=False)
    [file] = tmp_path.glob("*.stalls")
    seen: list[str] = []

    async def main() -> None:
        await asyncio.sleep(REST)
        written = file.stat().st_mtime_ns
        await asyncio.sleep(4 * REST)
        assert "stall" not in file.read_text()
        assert file.stat().st_mtime_ns == written  # nothing is written while all is well
        until = time.monotonic() + 20
        while '"stall"' not in (text := file.read_text()) and time.monotonic() < until:
            time.sleep(BUDGET / 10)
        time.sleep(LONG)
        seen.append(text)
        await asyncio.sleep(REST)

    run(main(), loop)
    [stall] = told(guard)
    assert f'"id":"{stall.id}"' in seen[0]
    assert wait_until(lambda: '"stall"' not in file.read_text(), 5)
    [head] = filter(None, file.read_text().split("\n"))
    assert json.loads(head)["loops"] == [{"loop": stall.loop, "thread": "MainThread"}]
    assert guard.stats()["sink_errors"] == guard.stats()["troubles"] == 0
    loopguard.uninstall()
    assert list(tmp_path.iterdir()) == []
    assert changes_since(before) == {}


def test_of_two_loops_that_are_held_the_one_that_goes_on_is_kept(tmp_path: Path) -> None:
    loopguard.install(budget=BUDGET, black_box=tmp_path, log=False)
    [file] = tmp_path.glob("*.stalls")
    go_on = threading.Event()

    def open_ids() -> set[str]:
        lines = [json.loads(line) for line in file.read_text().split("\n") if line]
        opened = {line["stall"]["id"]: line["stall"]["thread"] for line in lines if "stall" in line}
        ended = {line["ended"] for line in lines if "ended" in line}
        return {thread for id, thread in opened.items() if id not in ended}  # noqa: A001

    async def hold(until: threading.Event) -> None:
        await asyncio.sleep(REST)
        assert until.wait(20)
        await asyncio.sleep(REST)

    other = threading.Event()
    threads = [
        threading.Thread(target=lambda: run(hold(go_on)), name="short"),
        threading.Thread(target=lambda: run(hold(other)), name="long"),
    ]
    for thread in threads:
        thread.start()
    assert wait_until(lambda: open_ids() == {"short", "long"}, 20)
    go_on.set()
    assert wait_until(lambda: open_ids() == {"long"}, 20)
    other.set()
    for thread in threads:
        thread.join()
    assert wait_until(lambda: '"stall"' not in file.read_text(), 20)


FORKS = """
import asyncio, os, sys, time
import loopguard
guard = loopguard.install(budget=0.1, black_box=sys.argv[1], log=False)
pid = os.fork()
if pid == 0:
    os.close(1)
    time.sleep(600)
async def main():
    await asyncio.sleep(0.25)
    print(pid, flush=True)
    time.sleep(600)
asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_a_child_that_lives_on_does_not_keep_its_parent_from_being_told(box: Box) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FORKS, str(box.path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    box.children.append(parent)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        assert wait_until(lambda: box.holds(parent.pid), SECONDS)
        parent.kill()
        parent.wait()
        os.kill(child, 0)  # it lives
        assert [event["pid"] for event in box.next_start(alive=0)] == [parent.pid]
    finally:
        os.kill(child, signal.SIGKILL)


APP = """
import os, time
from fastapi import APIRouter, FastAPI
import loopguard

app = FastAPI()
router = APIRouter(prefix="/v1")

@router.get("/hold/{item}")
async def hold(item: str):
    time.sleep(600)

@router.get("/ready")
async def ready():
    return os.getpid()

app.include_router(router)
loopguard.install(app, budget=0.1, jsonl=os.environ["SHOP_JSONL"], black_box=os.environ["SHOP_BOX"])
"""


@contextmanager
def shop(box: Box, directory: Path) -> Iterator[tuple[str, Child]]:
    """Two forked workers under a supervisor that replaces what has not answered for 2 s."""
    (directory / "shop.py").write_text(APP)
    child = Child(
        [
            *("-m", "gunicorn", "--bind", "127.0.0.1:0", "-k", "uvicorn_worker.UvicornWorker"),
            *("-w", "2", "--preload", "--timeout", "2", "--pythonpath", str(directory), "shop:app"),
        ],
        directory / "log",
        {"SHOP_JSONL": str(box.jsonl), "SHOP_BOX": str(box.path)},
    )
    try:
        yield child.wait_for(r"(http://127\.0\.0\.1:\d+)"), child
    finally:
        child.stop()


@pytest.mark.skipif(
    importlib.util.find_spec("uvicorn_worker") is None, reason="gunicorn is not installed"
)
def test_a_worker_that_its_supervisor_kills_is_told_of_by_the_one_that_takes_its_place(
    box: Box, tmp_path: Path
) -> None:
    """With its request; and the workers beside it, which began or ran meanwhile, told nothing while it lived."""
    box.jsonl.touch()
    with shop(box, tmp_path) as (url, child):
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/v1/hold/4711", timeout=SECONDS, trust_env=False)
        assert wait_until(lambda: bool(box.fatal()), SECONDS), child.read()
        [row] = box.fatal()
        assert (row["request"]["method"], row["request"]["route"]) == ("GET", "/v1/hold/{item}")
        assert (row["culprit"]["code"], row["call"]) == ("time.sleep(600)", "time.sleep")
        assert row["phase"] == "serving"
        assert row["duration"] > 0.5
        early = [other["id"] for other in read_rows(box.jsonl) if other["ongoing"]]
        assert set(early) == {row["id"]}
        assert not Path(f"/proc/{row['pid']}").exists() or sys.platform != "linux"
    # uvicorn ends its process by the signal that it got, but only when the lifespan has ended.
    assert list(box.path.iterdir()) == []


# Where there is no telling, or what is found is none of ours


def test_without_locks_the_guard_runs_without_it_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "fcntl", None)  # as on Windows
    guard = loopguard.install(budget=BUDGET, black_box=tmp_path, log=False)
    run(hold_once())
    assert len(told(guard)) == 1
    assert wait_until(lambda: guard.stats()["troubles"] == 1, 5)
    assert list(tmp_path.iterdir()) == []


async def hold_once() -> None:
    await asyncio.sleep(REST)
    time.sleep(LONG)
    await asyncio.sleep(REST)


def test_a_file_that_is_taken_away_is_made_anew(tmp_path: Path) -> None:
    guard = loopguard.install(budget=BUDGET, black_box=tmp_path, log=False)

    async def main() -> None:
        for file in tmp_path.iterdir():
            file.unlink()
        await hold_once()
        [file] = tmp_path.glob("*.stalls")
        assert not files.lock(os.open(file, os.O_RDONLY))

    run(main())
    assert len(told(guard)) == 1
    loopguard.uninstall()
    assert list(tmp_path.iterdir()) == []


def test_when_the_application_has_ended_its_files_go_and_a_late_stall_has_them_made_anew(
    tmp_path: Path,
) -> None:
    box = BlackBox(tmp_path, HEAD, failed=raise_it)
    box.start()
    box.set_aside()
    assert wait_until(lambda: not list(tmp_path.iterdir()), 5)
    box.opened("late")
    box.keep(make_stall(id="late"))
    assert wait_until(lambda: len(list(tmp_path.iterdir())) == 2, 5)
    assert wait_until(lambda: any("late" in file.read_text() for file in tmp_path.iterdir()), 5)
    box.set_aside()
    box.ended("late")
    box.close(5)
    assert list(tmp_path.iterdir()) == []
    assert box.lost == 0


def raise_it(error: BaseException) -> None:
    raise error


def test_what_is_no_file_of_this_user_is_neither_read_nor_removed(tmp_path: Path) -> None:
    head = "loopguard-1-aa"
    (tmp_path / "elsewhere").write_text('{"ended":"x"}\n')
    (tmp_path / f"{head}1.stalls").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / f"{head}2.stalls")
    (tmp_path / f"{head}3.stalls").mkdir()
    (tmp_path / "notes.stalls").write_text("mine")
    if os.geteuid() == 0:
        (tmp_path / f"{head}4.stalls").write_text('{"ended":"x"}\n')
        os.chown(tmp_path / f"{head}4.stalls", 65534, 65534)
    before = sorted(tmp_path.iterdir())
    assert list(records_in(tmp_path)) == []
    guard = loopguard.install(black_box=tmp_path)
    assert wait_until(
        lambda: "loopguard-black-box-search" not in [t.name for t in threading.enumerate()], 5
    )
    assert guard.stats()["troubles"] == 0
    loopguard.uninstall()
    assert sorted(tmp_path.iterdir()) == before


def test_nobodys_remains_do_not_pile_up(box: Box) -> None:
    """With nobody to tell, the newest stay for `report`."""
    for number in range(MOST_KEPT + 3):
        path = box.path / f"loopguard-1-{number:04}.stalls"
        path.write_text(json_line({"stall": make_stall(id=str(number)).to_dict()}) + "\n")
        os.utime(path, (number, number))
    collect(box.path, lambda _stalls: False)
    left = sorted(file.name for file in box.path.iterdir())
    assert left == [f"loopguard-1-{number:04}.stalls" for number in range(3, MOST_KEPT + 3)]
    told: list[str] = []

    def tell(stalls: tuple[loopguard.Stall, ...]) -> bool:
        told.extend(stall.id for stall in stalls)
        return True

    collect(box.path, tell)
    assert told == [str(number) for number in range(3, MOST_KEPT + 3)]
    assert list(box.path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_who_forks_while_it_looks_does_not_keep_the_remains_from_others(box: Box) -> None:
    """As gunicorn does right after it has loaded the application: the child has the lock too, and lives on."""
    path = box.path / "loopguard-1-a.stalls"
    path.write_text(json_line({"stall": make_stall().to_dict()}) + "\n")
    script = (
        "import os, sys, time\nfrom pathlib import Path\nfrom loopguard.black_box.search import collect\n"
        "def tell(stalls):\n    if os.fork() == 0: os.close(1); time.sleep(600)\n    return False\n"
        "collect(Path(sys.argv[1]), tell)\nprint('looked', flush=True)\ntime.sleep(600)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(box.path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "looked\n"
        assert len(list(records_in(box.path))) == 1
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells")
def test_the_probe_writes_where_nobody_waits_for_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "file").open("w") as file, open("/proc/self/stat", "rb") as other:
        assert files.is_local(file.fileno())
        assert not files.is_local(other.fileno())
    monkeypatch.setattr(files, "_LOCAL", set())  # as on NFS
    with loopguard.install(budget=BUDGET, black_box=tmp_path, log=False):
        links = [
            str(file.readlink()) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()
        ]
    assert any("loopguard-probe" in link for link in links)


def test_a_directory_that_is_not_there_is_an_error_for_who_reads_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(records_in(tmp_path / "nowhere"))
