"""What the culprit's line called: the naming rule for callees in Python and in C."""

from __future__ import annotations

import _thread
import functools
import io
import os
import re
import socket
import threading
import time
from types import MethodType
from typing import Any

import pytest

from loopguard.evidence import Callee, Through
from loopguard.explain.call import call_of, call_on_line, name_of
from tests.evidence import WORK, frame, look

pytestmark = pytest.mark.core

LOCK: Any = threading.Lock()
SOCKETS: list[Any] = list(socket.socketpair())


@pytest.fixture(scope="module", autouse=True)
def closed() -> Any:
    yield
    for end in SOCKETS:
        end.close()


class Job:
    def run(self) -> None: ...
    @classmethod
    def make(cls) -> None: ...


class Meta(type):
    pass


class Made(metaclass=Meta):
    pass


@pytest.mark.parametrize(
    "function, name",
    [
        (time.sleep, "time.sleep"),
        (os.read, "os.read"),
        (os.scandir, "os.scandir"),
        (open, "io.open"),
        (io.FileIO, "io.FileIO"),
        (sorted, "builtins.sorted"),
        (bytes.fromhex, "builtins.bytes.fromhex"),
        (LOCK.acquire, "_thread.lock.acquire"),
        ([].sort, "builtins.list.sort"),
        (re.compile("x").match, "re.Pattern.match"),
        (threading.Event, "threading.Event"),
        (Made, f"{__name__}.Made"),
        (Job().run, f"{__name__}.Job.run"),
        (Job.make, f"{__name__}.Job.make"),
        (MethodType(sorted, []), "builtins.sorted"),
    ],
    ids=lambda given: given if isinstance(given, str) else type(given).__name__,
)
def test_a_callee_is_named_by_its_module_and_qualified_name(function: object, name: str) -> None:
    """`posix` is given as `os`, and `_io` as `io`."""
    assert name_of(Callee(function, None, "alias")) == name


@pytest.mark.parametrize(
    "owner, method, name",
    [
        (_thread.LockType, "acquire", "_thread.lock.acquire"),
        (re.Pattern, "search", "re.Pattern.search"),
        (io.FileIO, "read", "io.FileIO.read"),
        (socket.socket, "recv", "socket.socket.recv"),
    ],
)
def test_a_method_in_c_is_named_by_the_type_of_its_object(
    owner: type, method: str, name: str
) -> None:
    assert name_of(Callee(getattr(owner, method), owner, method)) == name


def test_a_python_method_is_named_where_it_was_defined() -> None:
    class Child(Job):
        pass

    assert name_of(Callee(Child.run, Child, "run")) == f"{__name__}.Job.run"


def test_an_object_that_is_called_has_the_name_of_its_place_or_none() -> None:
    partial = functools.partial(time.sleep, 1)
    assert name_of(Callee(partial, Job, "later")) == f"{__name__}.Job.later"
    assert name_of(Callee(partial, None, "later")) is None


def test_a_lazy_object_is_not_asked_for_its_class() -> None:
    asked = []

    class Lazy:
        @property  # type: ignore[misc]
        def __class__(self) -> Any:
            asked.append(self)
            return type(lambda: None)

    assert name_of(Callee(Lazy(), None, "lazy")) is None
    assert asked == []


def test_a_callee_in_python_is_the_next_frame() -> None:
    """It is what runs, whatever the expression was."""
    inner = frame("get", "requests.api")
    assert call_of((inner, WORK), 1, Callee(time.sleep, None, "sleep")) == "requests.api.get"


def test_a_frame_of_posix_would_be_given_as_os() -> None:
    assert call_of((frame("walk", "posix"), WORK), 1, None) == "os.walk"


def test_a_next_frame_without_a_module_has_its_function_alone() -> None:
    assert call_of((frame("get")._replace(module=None), WORK), 1, None) == "get"


def test_the_innermost_frame_called_what_was_looked_up() -> None:
    assert call_of((WORK,), 0, Callee(time.sleep, None, "sleep")) == "time.sleep"
    assert call_of((WORK,), 0, None) is None


def test_what_is_written_in_c_and_calls_python_is_what_the_line_called() -> None:
    """One look that found it speaks for all at that instruction; the probe's never do."""
    inner = frame("readinto", "socket")
    found = look(
        1, stack=(inner, WORK), through=Through(1, Callee(io.BytesIO().readline, None, "readline"))
    )
    probed = look(2, stack=(inner, WORK))
    votes = [(found, 1, 0.1), (probed, 1, 0.9)]
    assert call_on_line(votes) == "io.BytesIO.readline"
    assert call_on_line(votes[1:]) == "socket.readinto"


def test_a_line_called_what_it_called_for_most_of_the_time() -> None:
    """Looks in which nothing is known do not vote."""
    sleep = look(1, callee=Callee(time.sleep, None, "sleep"))
    read = look(2, callee=Callee(os.read, None, "read"))
    nothing = look(3)
    assert call_on_line([(sleep, 0, 0.1), (read, 0, 0.2), (nothing, 0, 5.0)]) == "os.read"
    assert call_on_line([(nothing, 0, 5.0)]) is None
    assert call_on_line([]) is None
