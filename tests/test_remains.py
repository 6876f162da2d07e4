"""What is made of the bytes that a dead process left: which stall it was, and where that stood at last."""

from __future__ import annotations

import sysconfig
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import loopguard
from loopguard.black_box.remains import Head, Watched, fatal_record, remains
from loopguard.record import Frame, Stall
from loopguard.tell.jsonl import json_line
from tests.records import CULPRIT, PROCESS, make_stall

DUMPED_NS = 1_700_000_001_000_000_000  # a second after the stall of `make_stall` began
STANDARD = sysconfig.get_path("stdlib")
PACKAGES = sysconfig.get_path("purelib")
OURS = Frame("app/users.py", 42, "app.users", "Users.list", "rows()", library=False)
LOWER = Frame("app/rows.py", 7, "app.rows", "rows", "wait()", library=False)
HEAD = Head(
    pid=4711,
    budget=0.1,
    root="/srv",
    source=True,
    in_app=("shop",),
    loops=(Watched("uvloop.Loop", "MainThread"),),
    process=PROCESS,
)


def lines(*items: Any) -> bytes:
    return "\n".join(["", json_line(asdict(HEAD)), *map(json_line, items), ""]).encode()


def dump(*frames: tuple[str, int, str]) -> bytes:
    """As faulthandler writes them, innermost first."""
    text = "".join(f'  File "{file}", line {line} in {name}\n' for file, line, name in frames)
    return f"Stack (most recent call first):\n{text}".encode()


def held(stall: Stall) -> dict[str, Any]:
    return {"stall": replace(stall, ongoing=True).to_dict()}


def told(text: bytes, dumped: bytes = b"") -> Stall:
    [stall] = remains(text, dumped, DUMPED_NS, lambda file, line, _: f"  {file}:{line}  ").stalls
    return stall


def test_of_each_stall_that_lasted_the_latest_word_is_told() -> None:
    first, later = make_stall(duration=0.1), make_stall(duration=0.9)
    other = make_stall(id="other")
    found = remains(lines(held(first), held(other), held(later), {"ended": "other"}))
    assert [stall.duration for stall in found.stalls] == [0.9]
    assert fatal_record(found.stalls[0])["fatal"] is True


def test_a_line_that_was_cut_costs_itself_alone() -> None:
    text = lines(held(make_stall(duration=0.1)))
    found = remains(text + json_line(held(make_stall(duration=0.9))).encode()[:500])
    assert ([stall.duration for stall in found.stalls], found.broken) == ([0.1], 1)


@pytest.mark.parametrize(
    "phase, severity", [("serving", "error"), (None, "error"), ("startup", "warning"), ("shutdown", "warning")]
)  # fmt: skip
def test_it_is_an_error_unless_the_application_was_starting_or_ending(
    phase: Any, severity: str
) -> None:
    stall = told(lines(held(make_stall(phase=phase, severity="warning"))))
    assert (stall.severity, stall.ongoing) == (severity, False)


# With a dump


CALLBACK = (
    ("/srv/app/rows.py", 9, "rows"),
    ("/srv/app/users.py", 42, "list"),
)
BASE = (
    (f"{STANDARD}/asyncio/events.py", 84, "_run"),
    (f"{STANDARD}/asyncio/base_events.py", 1900, "_run_once"),
    ("/srv/main.py", 3, "<module>"),
)


def test_a_dump_of_the_same_callback_is_where_the_stall_stood_at_last() -> None:
    """It keeps what is known of it: request, trace, task; and of the frames that still stand on their line."""
    stall = make_stall(stack=(OURS, LOWER), culprit=LOWER, call="app.wait")
    last = told(lines(held(stall)), dump(*CALLBACK, *BASE))
    assert (last.id, last.request, last.trace_id, last.task) == (
        *(stall.id, stall.request, stall.trace_id, stall.task),
    )
    assert last.stack == (OURS, replace(LOWER, line=9, code="/srv/app/rows.py:9"))
    assert last.culprit == last.stack[1]
    assert (last.cause, last.call, last.waited_on, last.advice) == ("gil_hold", None, None, None)
    assert last.duration == pytest.approx(1.0)
    assert last.fingerprint != stall.fingerprint


def test_where_it_stood_on_the_same_line_what_that_called_is_still_known() -> None:
    culprit = replace(LOWER, line=9)
    stall = make_stall(stack=(OURS, culprit), culprit=culprit, call="app.wait", advice="do not")
    last = told(lines(held(stall)), dump(*CALLBACK, *BASE))
    assert (last.culprit, last.call, last.advice) == (culprit, "app.wait", "do not")
    assert last.fingerprint == stall.fingerprint


@pytest.mark.parametrize(
    "other", [CULPRIT, replace(OURS, function="Users.get"), replace(OURS, file="app/x.py")]
)
def test_a_dump_of_another_callback_is_a_stall_of_its_own(other: Frame) -> None:
    """The first may have ended without a word: neither is put down to the other's request."""
    stall = make_stall(stack=(other, LOWER), culprit=other)
    first, second = remains(lines(held(stall)), dump(*CALLBACK, *BASE), DUMPED_NS).stalls
    assert (first.id, first.culprit) == (stall.id, other)
    assert (second.request, second.task, second.trace_id) == (None, None, None)
    assert second.id != first.id


def test_a_dump_alone_tells_stack_and_loop_and_nothing_that_nobody_saw() -> None:
    last = told(lines(), dump(*CALLBACK, *BASE))
    assert [str(frame) for frame in last.stack] == [
        *("app/users.py:42 in list", "app/rows.py:9 in rows"),
    ]
    assert last.culprit == Frame(
        "app/rows.py", 9, None, "rows", "/srv/app/rows.py:9", library=False
    )
    assert (last.cause, last.severity, last.budget, last.pid) == ("gil_hold", "error", 0.1, 4711)
    assert (last.loop, last.thread, last.process) == ("uvloop.Loop", "MainThread", PROCESS)
    assert last.started_at + last.duration == pytest.approx(DUMPED_NS / 1e9)
    assert last.duration > last.budget
    absent = ("call", "request", "trace_id", "task", "phase", "cpu_time", "waited_on", "in_flight")
    assert [getattr(last, name) for name in absent] == [None] * len(absent)


def test_of_several_loops_a_dump_does_not_tell_which() -> None:
    both = replace(HEAD, loops=(*HEAD.loops, Watched("asyncio.Loop", "other")))
    last = told(json_line(asdict(both)).encode(), dump(*CALLBACK))
    assert (last.loop, last.thread) == ("unknown", "unknown")


def test_whose_code_it_is_is_told_by_where_its_file_lies() -> None:
    installed = (
        (f"{STANDARD}/re/__init__.py", 167, "match"),
        ("/opt/other/lib/python3.99/json/decoder.py", 9, "decode"),
        (f"{PACKAGES}/six.py", 1, "one"),
        (f"{PACKAGES}/shop/views.py", 1, "two"),
        ("/srv/.venv/lib/python3.12/site-packages/requests/api.py", 1, "three"),
        ("/srv/app/users.py", 42, "four"),
    )
    last = told(lines(), dump(*installed))
    assert {frame.function: frame.library for frame in last.stack} == {
        "match": True, "decode": True, "one": True, "two": False, "three": True, "four": False,
    }  # fmt: skip
    assert last.culprit is not None
    assert last.culprit.function == "two"  # the option in_app


def test_where_no_source_is_to_be_shown_there_is_none() -> None:
    silent = json_line(asdict(replace(HEAD, source=False))).encode()
    assert {frame.code for frame in told(silent, dump(*CALLBACK)).stack} == {None}


def test_a_dump_of_nobody_is_none() -> None:
    """Without a word of which process it was."""
    assert remains(b"", dump(*CALLBACK), DUMPED_NS).stalls == ()
    assert remains(lines(), b"Stack (most recent call first):\n  <no Python frame>\n").stalls == ()


def test_uvloop_has_one_frame_of_ours_below_a_callback() -> None:
    loops = str(Path(loopguard.__file__).parent / "watch" / "loops.py")
    last = told(
        lines(), dump(*CALLBACK, (loops, 59, "LoopHook._wrap.<locals>.run_watched"), *BASE[2:])
    )
    assert [frame.function for frame in last.stack] == ["list", "rows"]
