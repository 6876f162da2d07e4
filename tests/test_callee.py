"""What the innermost frame is calling is told from outside, and none of the user's code is run for it."""

from __future__ import annotations

import functools
import io
import os
import queue
import select
import socket
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from loopguard.capture.callee import callee_of
from loopguard.evidence import Callee
from loopguard.explain.call import name_of
from tests.threads import blocked

pytestmark = pytest.mark.core

_read = os.read


def callee_now(frame: FrameType) -> Callee | None:
    return callee_of(frame, frame.f_lasti)


class Slotted:
    __slots__ = ("lock", "sock")

    def __init__(self, sock: socket.socket, lock: threading.Lock) -> None:
        self.sock = sock
        self.lock = lock


class Mine(socket.socket):
    pass


@dataclass
class Peers:
    """All that a case may block on; `release` lets each of them go."""

    folder: Path
    reader: int
    writer: int
    ours: socket.socket
    theirs: socket.socket
    lock: Any
    rlock: Any
    queue: queue.SimpleQueue[int]
    fifo: str
    ran: list[str] = field(default_factory=list)

    def release(self) -> None:
        os.write(self.writer, b"xx")
        self.theirs.send(b"xx")
        self.queue.put(1)
        self.lock.release()
        self.rlock.release()
        with suppress(OSError):  # nobody reads it
            os.close(os.open(self.fifo, os.O_WRONLY | os.O_NONBLOCK))


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Peers]:
    reader, writer = os.pipe()
    ours, theirs = socket.socketpair()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    lock, rlock = threading.Lock(), threading.RLock()
    lock.acquire()
    rlock.acquire()
    yield Peers(tmp_path, reader, writer, ours, theirs, lock, rlock, queue.SimpleQueue(), str(fifo))
    for end in (reader, writer):
        os.close(end)
    ours.close()
    theirs.close()


def of_module(p: Peers) -> None:
    os.read(p.reader, 1)


def by_alias(p: Peers) -> None:
    _read(p.reader, 1)


def by_local_alias(p: Peers) -> None:
    receive = p.ours.recv
    receive(1)


def of_builtins(p: Peers) -> None:
    open(p.fifo).close()


def in_with(p: Peers) -> None:
    with open(p.fifo):
        pass


def a_class(p: Peers) -> None:
    io.FileIO(p.fifo).close()


def method(p: Peers) -> None:
    sock = p.ours
    sock.recv(1)


def method_of_attribute(p: Peers) -> None:
    p.ours.recv(1)


def method_of_subclass(p: Peers) -> None:
    with Mine(fileno=os.dup(p.ours.fileno())) as mine:
        mine.recv(1)


def nested_attributes(p: Peers) -> None:
    box = SimpleNamespace(inner=SimpleNamespace(sock=p.ours))
    box.inner.sock.recv(1)


def slot(p: Peers) -> None:
    box = Slotted(p.ours, p.lock)
    box.sock.recv(1)


def with_lock(p: Peers) -> None:
    lock = p.lock
    with lock:
        pass
    lock.acquire()


def with_lock_of_attribute(p: Peers) -> None:
    with p.lock:
        pass
    p.lock.acquire()


def with_lock_of_slot(p: Peers) -> None:
    box = Slotted(p.ours, p.lock)
    with box.lock:
        pass
    p.lock.acquire()


def with_second_manager(p: Peers) -> None:
    with suppress(OSError), p.rlock:
        pass


def acquire(p: Peers) -> None:
    p.lock.acquire()


def keywords(p: Peers) -> None:
    p.lock.acquire(blocking=True, timeout=60)


def keywords_after_positional(p: Peers) -> None:
    p.queue.get(True, timeout=60)


def star(p: Peers) -> None:
    arguments = (p.reader, 1)
    os.read(*arguments)


def double_star(p: Peers) -> None:
    options = {"block": True}
    p.queue.get(**options)


def over_several_lines(p: Peers) -> None:
    (
        p
        .ours
        .recv(
            1,
        )
    )  # fmt: skip


def local_over_several_lines(p: Peers) -> None:
    ours, k = p.ours, os.getpid
    (
        ours
        .recv(1)
    )  # fmt: skip
    k()


def as_an_argument(p: Peers) -> None:
    len(p.ours.recv(1))


def in_a_comprehension(p: Peers) -> None:
    [os.read(fd, 1) for fd in (p.reader,)]


def in_a_closure(p: Peers) -> None:
    sock = p.ours

    def receive() -> None:
        sock.recv(1)

    receive()


def in_a_class_body(p: Peers) -> None:
    class Body:
        reader = p.reader
        first = os.read(reader, 1)


def kept_on_an_object(p: Peers) -> None:
    box = SimpleNamespace(receive=p.ours.recv)
    box.receive(1)


def method_kept_on_an_object(p: Peers) -> None:
    box = SimpleNamespace(get=p.queue.get)
    box.get()


def function_kept_on_a_class(p: Peers) -> None:
    class Kept:
        read: Any = os.read

    kept = Kept()
    kept.read(p.reader, 1)


def polled(p: Peers) -> None:
    poller = select.poll()
    poller.register(p.reader, select.POLLIN)
    poller.poll()


def of_cached_property(p: Peers) -> None:
    class Cached:
        @functools.cached_property
        def sock(self) -> socket.socket:
            return p.ours

    cached = Cached()
    cached.sock.recv(1)


CALLS: dict[Callable[[Peers], None], str] = {
    of_module: "os.read",
    by_alias: "os.read",
    by_local_alias: "socket.socket.recv",
    of_builtins: "io.open",
    in_with: "io.open",
    a_class: "io.FileIO",
    method: "socket.socket.recv",
    method_of_attribute: "socket.socket.recv",
    method_of_subclass: f"{__name__}.Mine.recv",
    nested_attributes: "socket.socket.recv",
    slot: "socket.socket.recv",
    with_lock: "_thread.lock.__enter__",
    with_lock_of_attribute: "_thread.lock.__enter__",
    with_lock_of_slot: "_thread.lock.__enter__",
    with_second_manager: "_thread.RLock.__enter__",
    acquire: "_thread.lock.acquire",
    keywords: "_thread.lock.acquire",
    keywords_after_positional: "_queue.SimpleQueue.get",
    star: "os.read",
    double_star: "_queue.SimpleQueue.get",
    over_several_lines: "socket.socket.recv",
    local_over_several_lines: "socket.socket.recv",
    as_an_argument: "socket.socket.recv",
    in_a_comprehension: "os.read",
    in_a_closure: "socket.socket.recv",
    in_a_class_body: "os.read",
    kept_on_an_object: "socket.socket.recv",
    method_kept_on_an_object: "_queue.SimpleQueue.get",
    function_kept_on_a_class: "os.read",
    polled: "select.poll.poll",
    of_cached_property: "socket.socket.recv",
}


@pytest.mark.parametrize("case", CALLS, ids=lambda case: case.__name__)
def test_the_c_function_that_a_blocked_thread_is_in_has_its_name(
    case: Callable[[Peers], None], peers: Peers
) -> None:
    """Module and qualified name of the function or of the type, as the contract has it."""
    with blocked(lambda: case(peers), peers.release) as thread:
        callee = callee_now(thread.frame)
        assert callee is not None
        assert name_of(callee) == CALLS[case]


def a_call_result(p: Peers) -> None:
    def pick() -> Any:
        return os.read

    pick()(p.reader, 1)


def a_method_of_a_call_result(p: Peers) -> None:
    def pick() -> socket.socket:
        return p.ours

    pick().recv(1)


def an_item(p: Peers) -> None:
    peers = [p.ours]
    peers[0].recv(1)


def an_item_that_is_called(p: Peers) -> None:
    functions = {"read": os.read}
    functions["read"](p.reader, 1)


def an_alternative(p: Peers) -> None:
    absent: Any = None
    (absent or p.ours).recv(1)


def an_alternative_over_several_lines(p: Peers) -> None:
    absent: Any = None
    (
        absent
        or p.ours
    ).recv(1)  # fmt: skip


def an_assignment(p: Peers) -> None:
    (sock := p.ours).recv(1)
    sock.fileno()


def with_a_call_result(p: Peers) -> None:
    def pick() -> Any:
        return p.lock

    with pick():
        pass
    p.lock.acquire()


def with_an_item(p: Peers) -> None:
    locks = [p.lock]
    with locks[0]:
        pass
    p.lock.acquire()


def of_super(p: Peers) -> None:
    class Child(socket.socket):
        def recv(self, *arguments: int) -> bytes:
            return super().recv(*arguments)

    with Child(fileno=os.dup(p.ours.fileno())) as child:
        child.recv(1)


def an_iteration(p: Peers) -> None:
    for _ in iter(functools.partial(os.read, p.reader, 1), b"x"):
        pass


def a_property(p: Peers) -> None:
    class Owner:
        @property
        def sock(self) -> socket.socket:
            p.ran.append("property")
            return p.ours

    Owner().sock.recv(1)


def a_property_that_is_called(p: Peers) -> None:
    class Owner:
        @property
        def receive(self) -> Any:
            p.ran.append("property")
            return p.ours.recv

    owner = Owner()
    owner.receive(1)


def a_missing_attribute(p: Peers) -> None:
    class Proxy:
        def __getattr__(self, name: str) -> Any:
            p.ran.append("__getattr__")
            return getattr(p.ours, name)

    proxy = Proxy()
    proxy.recv(1)


def a_missing_attribute_on_the_way(p: Peers) -> None:
    class Proxy:
        def __getattr__(self, name: str) -> Any:
            p.ran.append("__getattr__")
            return p.ours

    proxy = Proxy()
    proxy.sock.recv(1)


def every_attribute(p: Peers) -> None:
    class Proxy:
        def __getattribute__(self, name: str) -> Any:
            p.ran.append("__getattribute__")
            return getattr(p.ours, name)

    proxy = Proxy()
    proxy.recv(1)


def a_descriptor(p: Peers) -> None:
    class Descriptor:
        recv = "what the descriptor has is not what it gives"

        def __get__(self, instance: object, owner: type | None = None) -> socket.socket:
            p.ran.append("__get__")
            return p.ours

    class Owner:
        sock = Descriptor()

    owner = Owner()
    owner.sock.recv(1)


def a_property_of_the_class(p: Peers) -> None:
    class Meta(type):
        @property
        def sock(cls) -> socket.socket:
            p.ran.append("property of the metaclass")
            return p.ours

    class Owner(metaclass=Meta):
        pass

    Owner.sock.recv(1)


def a_lazy_object(p: Peers) -> None:
    class Lazy:
        @property  # type: ignore[misc]
        def __class__(self) -> Any:
            p.ran.append("__class__")
            return socket.socket

        def __getattr__(self, name: str) -> Any:
            p.ran.append("__getattr__")
            return getattr(p.ours, name)

    lazy = Lazy()
    lazy.recv(1)


def a_module_with_getattr(p: Peers) -> None:
    def get(name: str) -> Any:
        p.ran.append("__getattr__ of the module")
        return p.ours

    module: Any = types.ModuleType("lazy")
    module.__getattr__ = get
    module.sock.recv(1)


UNKNOWN = [
    a_call_result, a_method_of_a_call_result, an_item, an_item_that_is_called, an_alternative,
    an_alternative_over_several_lines, an_assignment, with_a_call_result, with_an_item, of_super, an_iteration, a_property, a_property_that_is_called, a_missing_attribute,
    a_missing_attribute_on_the_way, every_attribute, a_descriptor, a_property_of_the_class, a_lazy_object,
    a_module_with_getattr,
]  # fmt: skip


@pytest.mark.parametrize("case", UNKNOWN, ids=lambda case: case.__name__)
def test_what_could_only_be_found_by_running_code_is_unknown(
    case: Callable[[Peers], None], peers: Peers
) -> None:
    """No name is invented, and neither property nor `__getattr__` runs a second time."""
    with blocked(lambda: case(peers), peers.release) as thread:
        ran = list(peers.ran)
        assert callee_now(thread.frame) is None
        assert peers.ran == ran


SEEN: list[Callee | None] = []


def _see(*_arguments: object, **_options: object) -> Any:
    SEEN.append(callee_now(sys._getframe(1)))
    return see


see: Any = functools.partial(_see)
"""Asks what its caller calls, in mid-call. As a partial it is a callee in C."""


class Seer:
    see = staticmethod(see)
    member = SimpleNamespace(see=see)

    def __enter__(self) -> None:
        SEEN.append(callee_now(sys._getframe(1)))

    def __exit__(self, *_error: object) -> None:
        SEEN.append(callee_now(sys._getframe(1)))


SHAPES = {
    "see()": "see",
    "see(1, a=2, *[3], **{'b': 4})": "see",
    "seer.see()": "see",
    "seer.member.see(1)": "see",
    "Seer.see()": "see",
    "Seer.member.see(key=1)": "see",
    "x = y = see()": "see",
    "[see() for _ in 'x']": "see",
    "(lambda: see())()": "see",
    "(lambda f: f(1))(see)": "see",
    "f'{see()}'": "see",
    "'é' + str(see())": "see",
    "é = 'ü'; see('ö', seer.see and é)": "see",
    "assert see()": "see",
    "seer.see(seer.member, seer)": "see",
    "not see(1 if seer else 2)": "see",
    "see() is see": "see",
    "see()()": None,
    "seer.see().see": "see",
    "[see][0]()": None,
    "(None or see)()": None,
    "(s := see)()": None,
    "{'f': see}['f'](1)": None,
    "@see\ndef function(): pass": None,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("where", ["module", "function", "class"])
def test_the_callee_is_known_in_every_shape_of_a_call(shape: str, where: str) -> None:
    """The last of the calls on the line: its callee, or None where only running the code again could tell."""
    SEEN.clear()
    code = shape
    if where != "module":
        head = "def f():" if where == "function" else "class C:"
        code = "\n ".join([head, *shape.split("\n")]) + ("\nf()" if where == "function" else "")
    with suppress(AttributeError):  # a result has no attribute: by then it has been seen
        exec(code, {"see": see, "seer": Seer(), "Seer": Seer, "str": str})
    expected = SHAPES[shape]
    assert SEEN
    if expected is None:
        assert SEEN[-1] is None
    else:
        assert SEEN[-1] is not None
        assert SEEN[-1].function is see


def test_a_with_statement_calls_enter_and_its_end_is_unknown() -> None:
    SEEN.clear()
    seer = Seer()
    with seer:
        pass
    entered, left = SEEN
    assert entered is not None
    assert name_of(entered) == f"{__name__}.Seer.__enter__"
    assert left is None


def test_a_frame_that_calls_nothing_has_no_callee() -> None:
    """A generator that waits to be resumed stands at its `yield`."""

    def generator() -> Iterator[int]:
        yield 1

    waiting = generator()
    next(waiting)
    frame = getattr(waiting, "gi_frame")  # noqa: B009
    assert callee_now(frame) is None


def test_a_very_long_function_is_not_taken_apart() -> None:
    """That would hold the GIL for too long."""
    SEEN.clear()
    exec("x = 1\n" * 20_000 + "see()", {"see": see})
    assert SEEN == [None]


def test_a_namespace_of_a_metaclass_is_not_asked() -> None:
    SEEN.clear()

    class Asked(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            return see if name == "given" else super().__getitem__(name)

    class Meta(type):
        @classmethod
        def __prepare__(cls, name: str, bases: tuple[type, ...], /, **_: Any) -> Asked:
            return Asked()

    exec("class C(metaclass=Meta):\n given()\n see()", {"Meta": Meta, "see": see})
    assert SEEN[0] is None
    assert SEEN[1] is not None


def test_a_name_that_is_gone_by_now_is_unknown() -> None:
    SEEN.clear()
    namespace: dict[str, Any] = {"see": see}
    exec("see(vars_of_module().pop('see'))", namespace | {"vars_of_module": lambda: {"see": 1}})
    exec("see(globals().pop('see'))", namespace)
    assert SEEN[0] is not None
    assert SEEN[1] is None
