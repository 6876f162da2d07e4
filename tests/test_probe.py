"""The probe: native code that keeps the GIL is shown at its line, and nobody is disturbed."""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import loopguard
from loopguard.capture.probe import Probe, SeenFrame, new_probe, parse
from loopguard.capture.resolve import instruction_on, only_call_on, resolve
from loopguard.record import Stall
from tests.holding import BUDGET, LOOPS, REST, changes_since, left_in_process, run, told
from tests.reliability import Say

ROOT = Path(__file__).parent.parent
HERE = new_probe()
if HERE is not None:
    HERE.close()
pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(HERE is None, reason="there is no probe on this platform"),
]

BIG = list(range(20_000_000))
TEXT = json.dumps([{"number": number, "text": str(number)} for number in range(200_000)])
CHAOS = [hash(str(number)) for number in range(600_000)]


# What native code does with the GIL, each on its own line. Those that are no calls are the probe's alone.


def searches() -> object:
    return -1 in BIG  # here


def powers() -> object:
    return 7**700_000  # here


def matches() -> object:
    return re.match(r"(a+)+$", "a" * 23 + "b")  # here


def loads() -> object:
    return json.loads(TEXT)  # here


def sorts() -> object:
    return sorted(CHAOS, key=None)  # here


CASES: dict[Callable[[], object], str | None] = {
    searches: None,
    powers: None,
    matches: "re.match",
    loads: "json.loads",
    sorts: "builtins.sorted",
}


def line_of(function: Callable[[], object]) -> int:
    """The line that is marked."""
    first = function.__code__.co_firstlineno
    lines = Path(__file__).read_text().splitlines()
    return next(n for n in range(first, first + 9) if lines[n - 1].endswith("# here"))


def until_long(function: Callable[[], object]) -> Callable[[], object]:
    """Repeated where this machine is too quick for one to be a stall: that would be many native calls."""
    began = time.monotonic()
    function()
    if time.monotonic() - began < 2.5 * BUDGET:
        pytest.skip("this machine is too quick")
    return function


async def hold(function: Callable[[], object]) -> None:
    await asyncio.sleep(REST)
    function()
    await asyncio.sleep(REST)


def stalls(guard: loopguard.Guard) -> list[Stall]:
    assert guard.flush(10)
    return [stall for stall in guard.stalls if stall.cause != "not_scheduled"]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("function", CASES, ids=lambda function: function.__name__)
def test_it_shows_the_line_that_keeps_the_gil(function: Callable[[], object], loop: str) -> None:
    until_long(function)
    guard = loopguard.install(budget=BUDGET, log=False)
    run(hold(function), loop)
    [stall] = stalls(guard)
    assert stall.culprit is not None
    assert (stall.culprit.function, stall.culprit.line) == (function.__name__, line_of(function))
    # On 3.11 our callback in gc.callbacks lets the GIL go inside native code that allocates.
    lets_go = function is loads and sys.version_info < (3, 12)
    assert stall.cause == "gil_hold" or (lets_go and stall.cause == "cpu")
    assert stall.call == CASES[function]


def test_it_shows_the_line_also_where_other_threads_are_quicker_to_get_the_gil() -> None:
    """Their threads wait for the GIL beside the watchdog, and the loop has moved on when that is served."""
    until_long(searches)
    done = threading.Event()

    def rush() -> None:
        while not done.is_set():
            sum(range(20_000))

    threads = [threading.Thread(target=rush) for _ in range(3)]
    guard = loopguard.install(budget=BUDGET, log=False)

    async def main() -> None:
        await asyncio.sleep(REST)
        for thread in threads:
            thread.start()  # waits for the GIL itself
        await asyncio.sleep(2 * REST)
        try:
            for _ in range(3):
                searches()
                await asyncio.sleep(2 * REST)
        finally:
            done.set()

    run(main())
    for thread in threads:
        thread.join()
    found = [stall for stall in stalls(guard) if stall.culprit is not None]
    lines = [stall.culprit.line for stall in found if stall.culprit is not None]
    assert lines.count(line_of(searches)) == 3, found


def test_code_that_can_be_interrupted_never_sets_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computing in Python, native code that lets the GIL go, and waits: the watchdog is served in time."""
    dumps: list[object] = []
    read = Probe.read

    def listen(probe: Probe) -> Any:
        found = read(probe)
        dumps.extend(found)
        return found

    monkeypatch.setattr(Probe, "read", listen)
    guard = loopguard.install(budget=BUDGET, log=False)
    seen_before = len(dumps)  # it tries itself at install

    def compute() -> None:
        until = time.monotonic() + 6 * BUDGET
        while time.monotonic() < until:
            sum(range(100))

    async def main() -> None:
        for work in (compute, lambda: time.sleep(6 * BUDGET)):
            await asyncio.sleep(REST)
            work()
        await asyncio.sleep(REST)

    run(main())
    assert len(told(guard)) == 2
    assert len(dumps) == seen_before


def test_it_is_off_by_option() -> None:
    before = left_in_process()
    guard = loopguard.install(budget=BUDGET, log=False, probe=False)
    assert dispositions() == DEFAULT
    run(hold(lambda: time.sleep(3 * BUDGET)))
    assert len(told(guard)) == 1
    loopguard.uninstall()
    assert not changes_since(before)


# Nobody is disturbed


def dispositions() -> dict[int, int]:
    """What the system does with each real-time signal, by the address of the handler."""
    action = ctypes.create_string_buffer(256)
    found = {}
    for number in range(int(signal.SIGRTMIN), int(signal.SIGRTMAX) + 1):
        ctypes.PyDLL(None).sigaction(number, None, action)
        found[number] = int.from_bytes(action.raw[:8], sys.byteorder)
    return found


DEFAULT = dispositions()


@pytest.fixture
def foreign() -> Iterator[int]:
    """A signal that the user handles: the very one that we would have taken."""
    number = int(signal.SIGRTMAX) - 1
    before = signal.signal(number, lambda *_: None)
    yield number
    signal.signal(number, before)


def test_uninstall_gives_the_signal_back_in_mid_stall_too() -> None:
    before = left_in_process()
    guard = loopguard.install(budget=BUDGET, log=False)
    taken = [number for number, handler in dispositions().items() if handler != DEFAULT[number]]
    assert len(taken) == 1

    def uninstall_inside() -> None:
        searches()
        guard.uninstall()
        searches()  # would kill the process, had a timer been left

    run(hold(uninstall_inside))
    assert dispositions() == DEFAULT
    assert not changes_since(before)


@pytest.mark.company(
    "another user of real-time signals", "a handler for the one that loopguard would take"
)
def test_a_signal_of_the_users_is_left_alone(foreign: int, row: Say) -> None:
    theirs = dispositions()
    loopguard.install(budget=BUDGET, log=False)
    assert dispositions()[foreign] == theirs[foreign]
    loopguard.uninstall()
    assert dispositions() == theirs
    row("another signal is taken, and given back at uninstall")


@pytest.mark.company(
    "the signal taken later",
    "a handler for loopguard's own real-time signal, set after the install",
)
def test_it_stays_silent_once_the_user_takes_the_signal(row: Say) -> None:
    loopguard.install(budget=BUDGET, log=False)
    [ours] = [number for number, handler in dispositions().items() if handler != DEFAULT[number]]
    received: list[int] = []
    before = signal.signal(ours, lambda number, _frame: received.append(number))
    run(hold(searches))
    loopguard.uninstall()
    assert received == []
    assert dispositions()[ours] != DEFAULT[ours]  # theirs, and not given back by us
    signal.signal(ours, before)
    row("their handler gets no signal of ours, and stays", "the probe, from then on")


def test_it_writes_into_nobodys_file_once_its_own_was_closed(tmp_path: Path) -> None:
    """As a daemon closes all descriptors: the number may be a stranger's by the next stall."""
    script = """
import asyncio, os, sys, time
import loopguard
big = list(range(20_000_000))
loopguard.install(budget=0.05, log=False)
async def main():
    await asyncio.sleep(0.1)
    for fd in os.listdir("/proc/self/fd"):
        link = f"/proc/self/fd/{fd}"
        if os.path.lexists(link) and "loopguard-probe" in os.readlink(link):
            global stranger
            stranger = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
            os.dup2(stranger, int(fd))
    await asyncio.sleep(0.1)
    -1 in big
    await asyncio.sleep(0.1)
asyncio.run(main())
loopguard.uninstall()
os.fstat(stranger)
"""
    stranger = tmp_path / "stranger"
    subprocess.run(
        [sys.executable, "-c", script, stranger],
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert stranger.read_bytes() == b""


@pytest.mark.company(
    "`faulthandler.register` and `signal.setitimer`", "SIGUSR1 and SIGALRM during a stall"
)
def test_other_users_of_faulthandler_and_timers_work_beside_it(tmp_path: Path, row: Say) -> None:
    with (tmp_path / "dump").open("w") as file:
        faulthandler.register(signal.SIGUSR1, file)
        loopguard.install(budget=BUDGET, log=False)
        alarms: list[int] = []
        before = signal.signal(signal.SIGALRM, lambda number, _frame: alarms.append(number))
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        os.kill(os.getpid(), signal.SIGUSR1)
        run(hold(lambda: time.sleep(3 * BUDGET)))
        loopguard.uninstall()
        os.kill(os.getpid(), signal.SIGUSR1)
        signal.signal(signal.SIGALRM, before)
        faulthandler.unregister(signal.SIGUSR1)
    assert alarms == [signal.SIGALRM]
    assert (tmp_path / "dump").read_text().count("most recent call first") >= 2
    row("both get their signals, before, during and after")


def test_a_forked_child_has_no_handler_of_ours() -> None:
    script = """
import os, signal, sys, ctypes, warnings
import loopguard
warnings.simplefilter("ignore")
def taken():
    action = ctypes.create_string_buffer(256)
    found = []
    for number in range(int(signal.SIGRTMIN), int(signal.SIGRTMAX) + 1):
        ctypes.PyDLL(None).sigaction(number, None, action)
        if int.from_bytes(action.raw[:8], sys.byteorder):
            found.append(number)
    return found
loopguard.install(log=False)
assert len(taken()) == 1
pid = os.fork()
if pid == 0:
    os._exit(len(taken()))
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert len(taken()) == 1
"""
    subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


# Reading what it wrote

DUMP = """Stack (most recent call first):
  File "/srv/caf\\xe9.py", line 3 in inner
  File "/srv/app.py", line 12 in <module>
"""


def test_a_dump_is_read_frame_by_frame() -> None:
    [dump] = parse(DUMP, 7)
    inner, outer = (
        SeenFrame("/srv/caf\\xe9.py", 3, "inner"),
        SeenFrame("/srv/app.py", 12, "<module>"),
    )
    assert dump == ((inner, outer), True, 7)


@pytest.mark.parametrize(
    "last",
    ['  File "/srv/app.py", line ??? in <module>', "  ...", "  <invalid frame>", "  plus 40 frames", "\xff", "  Fi",
     f'  File "/srv/app.py", line {"9" * 5000} in f', '  File "/srv/\0.py", line 1 in f'],
)  # fmt: skip
def test_what_follows_an_unreadable_frame_is_left_out(last: str) -> None:
    [dump] = parse(DUMP + last + "\n" + '  File "/x.py", line 1 in late\n', 0)
    assert [frame.function for frame in dump.frames] == ["inner", "<module>"]
    assert not dump.whole


@pytest.mark.parametrize("text", ["", "\n", "Fatal error", "Stack (most recent call first):\n"])
def test_what_is_no_dump_gives_none(text: str) -> None:
    assert parse(text, 0) == []


def test_a_frame_that_is_gone_is_found_by_its_name() -> None:
    seen = f'  File "{__file__}", line {line_of(searches)} in searches'
    [dump] = parse(f"Stack (most recent call first):\n{seen}\n", 0)
    [frame] = resolve(dump, []).stack
    assert frame.code is searches.__code__


def test_a_frame_that_nobody_knows_keeps_file_line_and_name() -> None:
    [dump] = parse('Stack (most recent call first):\n  File "/gone.py", line 40 in lost\n', 0)
    [frame] = resolve(dump, []).stack
    assert (frame.code.co_filename, frame.code.co_name) == ("/gone.py", "lost")
    assert {line for *_, line in frame.code.co_lines() if line} == {40}


def test_of_a_line_the_call_is_suspected_and_only_a_single_one_is_certain() -> None:
    line = line_of(matches)
    assert only_call_on(loads.__code__, line_of(loads))
    lasti = instruction_on(matches.__code__, line)
    columns = list(matches.__code__.co_positions())[lasti // 2]
    text = Path(__file__).read_text().splitlines()[line - 1]
    assert text[columns[2] : columns[3]].startswith("re.match(")
