"""What the system takes away or refuses: each kind of evidence falls away alone, and nobody is harmed."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from loopguard.lasting import LastingThread
from tests.faults.script import PRELUDE, ROOT, ran
from tests.holding import LOOPS
from tests.reliability import Say

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of Linux")

CLOSED = """
loop, first, path = sys.argv[1:]
guard = loopguard.install(budget=0.1, jsonl=path, log=False)
if first == "running":
    run(hold(0.3), loop)
    assert calls(guard) == ["time.sleep"]
os.closerange(3, 256)
foreign = [os.pipe() for _ in range(20)]
for _ in range(2):
    run(hold(0.3), loop)
say(calls=calls(guard), stats=guard.stats())
loopguard.uninstall()
for reader, writer in foreign:
    os.write(writer, b"x")
    assert os.read(reader, 10) == b"x"
"""


@pytest.mark.fault(
    "all files closed under us",
    "`os.closerange(3, 256)` after the install; their numbers go to 20 pipes of the application",
)
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("first", ["never", "running"])
def test_after_all_files_were_closed_under_us_loops_are_watched_with_new_ones(
    loop: str, first: str, tmp_path: Path, row: Say
) -> None:
    """It says so; and it neither uses nor closes what got the numbers."""
    path = tmp_path / "stalls.jsonl"
    [said] = ran(CLOSED, loop, first, path).said
    before = 1 if first == "running" else 0
    assert said["calls"] == ["time.sleep"] * (2 + before)
    assert path.read_text().count('"function":"hold","code":"time.sleep(seconds)"') >= 2 + before
    stats = said["stats"]
    # Twice where the watchdog was not yet asleep when they were closed.
    assert 1 <= stats["watchdog_restarts"] == stats["troubles"] <= 2
    assert stats["sink_errors"] == 0
    row(
        "the next loop that runs is watched with new files, and it is said in the log; the pipes are not touched",
        "nothing of later loops; the probe",
    )


DAEMON = """
path = sys.argv[1]
guard = loopguard.install(budget=0.1, jsonl=path, log=False)
run(hold(0.3))
assert guard.flush(10)
reader, writer = os.pipe()
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
os.closerange(3, 256)
run(hold(0.3))
assert guard.flush(10)
loopguard.uninstall()
os.rename(path, path + ".done")
"""


@pytest.mark.fault(
    "a process that becomes a daemon",
    "two forks, `setsid`, and all files closed, after the install",
)
def test_a_daemon_is_guarded(tmp_path: Path, row: Say) -> None:
    path, done = tmp_path / "stalls.jsonl", tmp_path / "stalls.jsonl.done"
    ran(DAEMON, path, options=["-W", "ignore"])
    deadline = time.monotonic() + 30
    while not done.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    records = [json.loads(line) for line in done.read_text().splitlines()]
    told = [record for record in records if record["culprit"]]
    assert [record["call"] for record in told] == ["time.sleep"] * 2
    assert len({record["pid"] for record in told}) == 2
    row("guarded anew as soon as it runs a loop, under its own pid")


# What a sandbox refuses

REFUSED = """
import ctypes, errno, struct, warnings
import uvloop
warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads
NUMBERS = json.loads(sys.argv[1])

def refuse(number):
    '''Have the kernel answer EPERM to a system call (seccomp(2)).'''
    program = [(0x20, 0, 0, 0), (0x15, 1, 0, number), (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x50000 | errno.EPERM)]
    text = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
    filters = Program(len(program), ctypes.addressof(text))
    library = ctypes.CDLL(None)
    assert library.prctl(38, 1, 0, 0, 0) == 0
    return library.prctl(22, 2, ctypes.byref(filters), 0, 0) == 0

def child(name):
    signal.alarm(60)
    if not refuse(NUMBERS[name]):
        say(refused=name, missing=None)
        return
    guard = loopguard.install(budget=0.1, log=False)
    run(hold(0.3))
    missing = sorted(kind for kind, here in guard._engine._evidence.items() if not here)
    assert guard.flush(20)
    stalls = [stall.to_dict() for stall in guard.stalls]
    say(refused=name, missing=missing, stalls=stalls, stats=guard.stats())
    loopguard.uninstall()

for name in NUMBERS:
    if os.fork() == 0:
        code = 1
        try:
            child(name)
            code = 0
        finally:
            os._exit(code)
for _ in NUMBERS:
    code = os.waitstatus_to_exitcode(os.wait()[1])
    assert code == 0, code
"""

# The number of each call on x86-64, and the evidence that falls away with it.
CALLS: dict[str, tuple[int, set[str]]] = {
    "timerfd_create": (283, {"kernel_timer"}),
    "timerfd_settime": (286, {"kernel_timer"}),
    "timer_create": (222, {"probe"}),
    "memfd_create": (319, {"probe"}),
    "clock_gettime": (228, {"thread_cpu"}),
    "pread64": (17, {"probe", "run_delay"}),
    "getrusage": (98, set()),
    "readlink": (89, set()),
}


@pytest.mark.fault(
    "system calls refused",
    "seccomp answers EPERM, in a process each, to `timerfd_create`, `timerfd_settime`, `timer_create`, `memfd_create`, "
    "`clock_gettime`, `pread64`, `getrusage`, `readlink`",
)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86-64")
def test_what_a_sandbox_refuses_falls_away_alone(row: Say) -> None:
    pytest.importorskip("uvloop")
    numbers = {name: number for name, (number, _) in CALLS.items()}
    said = ran(REFUSED, json.dumps(numbers)).said
    assert {each["refused"] for each in said} == CALLS.keys()
    if any(each["missing"] is None for each in said):
        pytest.skip("this system lets nobody set a filter")
    for each in said:
        assert set(each["missing"]) == CALLS[each["refused"]][1], each["refused"]
        told = [stall for stall in each["stalls"] if stall["culprit"]]
        assert [(stall["call"], stall["culprit"]["function"]) for stall in told] == [
            ("time.sleep", "hold")
        ]
        assert each["stats"]["troubles"] == each["stats"]["watchdog_restarts"] == 0
        clock = "thread_cpu" not in each["missing"]
        assert told[0]["cause"] == ("blocking_call" if clock else "unknown")
        assert (told[0]["cpu_time"] is not None) is clock
    row(
        "each kind of evidence falls away alone, to null, and `event_loop.guard` names it; the line is told in all eight",
        "`thread_cpu` with `clock_gettime`, `kernel_timer` with the timers of files, `probe` with `timer_create` and "
        "`memfd_create`, `run_delay` with `pread64`",
    )


HIDDEN = """
import uvloop
if sys.argv[1] == "rights":
    import ctypes
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    assert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0  # PR_SET_DUMPABLE
    assert not os.access("/proc/self/mem", os.R_OK)
else:
    assert not os.path.exists("/proc/self")
guard = loopguard.install(budget=0.1, log=False)
for loop in ("asyncio", "uvloop"):
    run(hold(0.3), loop)
missing = sorted(kind for kind, here in guard._engine._evidence.items() if not here)
assert guard.flush(10)
stalls = [stall.to_dict() for stall in guard.stalls if stall.culprit]
say(missing=missing, stalls=stalls, stats=guard.stats())
loopguard.uninstall()
"""


def check_hidden(said: dict[str, Any], missing: set[str]) -> None:
    assert missing <= set(said["missing"]) <= {"system_calls", "run_delay"}
    told = [(stall["call"], stall["cause"], stall["waited_on"]) for stall in said["stalls"]]
    assert told == [("time.sleep", "blocking_call", None)] * 2
    assert said["stats"]["troubles"] == said["stats"]["watchdog_restarts"] == 0


@pytest.mark.fault("/proc missing", "an empty file system in its place, in a namespace of its own")
def test_without_proc_a_stall_is_told_without_what_it_waited_on(row: Say) -> None:
    unshare = shutil.which("unshare")
    hide = ["--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = "mount -t tmpfs none /proc"
    if not unshare or subprocess.run([unshare, *hide, mount], capture_output=True).returncode != 0:
        pytest.skip("this system lets nobody mount in a namespace")
    done = subprocess.run(
        [
            unshare,
            *hide,
            f'{mount} && exec "$@"',
            "sh",
            sys.executable,
            "-c",
            PRELUDE + HIDDEN,
            "proc",
        ],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    check_hidden(json.loads(done.stdout), {"system_calls", "run_delay"})
    row("line, call and cause are told as ever", "what a wait waits on: null")


@pytest.mark.fault(
    "rights given up",
    "as nobody, where the tests run as root; made non-dumpable, so that `/proc/self` is root's",
)
def test_a_process_that_may_not_look_at_itself_is_guarded(row: Say) -> None:
    """And which cannot import anything any more."""
    [said] = ran(HIDDEN, "rights").said
    check_hidden(said, {"system_calls"})
    row("line, call and cause are told as ever", "what a wait waits on: null")


MEMORY = """
import resource

def size():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

def monster():
    time.sleep(0.3)

async def main():
    await asyncio.sleep(0.15)
    monster()
    await asyncio.sleep(0.15)

guard = loopguard.install(budget=0.1, jsonl=sys.argv[1], log=False)
run(hold(0.3))
monster.__code__ = monster.__code__.replace(co_qualname="m" * 60_000_000)
resource.setrlimit(resource.RLIMIT_AS, (size() + 30_000_000, -1))
for _ in range(2):
    run(main())
assert guard.flush(20)
dropped = guard.stats()["dropped"]
monster.__code__ = monster.__code__.replace(co_qualname="monster")
run(hold(0.3))
say(calls=calls(guard), stats=guard.stats(), dropped=dropped)
"""


@pytest.mark.fault(
    "no memory for the reporter",
    "a limit of the address space (`RLIMIT_AS`), and twice a culprit whose name takes 60 MB",
)
def test_a_record_for_which_there_is_no_memory_is_counted_and_the_next_is_told(
    tmp_path: Path, row: Say
) -> None:
    path = tmp_path / "stalls.jsonl"
    [said] = ran(MEMORY, path).said
    assert said["dropped"] == 2
    assert said["calls"] == ["time.sleep"] * 2
    stats = said["stats"]
    assert stats["troubles"] == 2
    assert stats["stalls"] == stats["logged"] + stats["suppressed"] + stats["dropped"]
    row(
        "`MemoryError` in the reporter: contained, said once; the stall after it is told",
        "2 records, counted as `dropped`",
    )


def test_a_thread_of_ours_whose_work_fails_at_once_burns_no_cpu() -> None:
    over = threading.Event()

    def work() -> None:
        if not over.is_set():
            raise MemoryError

    thread = LastingThread("failing", work, lambda _error: None)
    before = time.process_time()
    thread.start()
    time.sleep(0.5)
    spent = time.process_time() - before
    over.set()
    thread.end(10)
    assert spent < 0.25
