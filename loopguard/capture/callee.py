"""What the innermost frame is calling, where the callee is written in C and so has no frame of its own.

The expression is read from the bytecode at the instruction pointer, and its names are looked up in the frame without
running any of the user's code: no property, no `__getattr__`, no descriptor written in Python.
"""

from __future__ import annotations

import dis
import inspect
from functools import lru_cache
from types import CodeType, FrameType, GetSetDescriptorType, MemberDescriptorType, ModuleType
from typing import Any, NamedTuple

from loopguard.capture.variables import UNKNOWN, local
from loopguard.evidence import Callee

_LONGEST = 64_000  # bytes of code: taking a longer function apart would hold the GIL too long
_CALLS = {"CALL", "CALL_KW", "CALL_FUNCTION_EX", "PRECALL"}
_ENTERS = {"BEFORE_WITH", "LOAD_SPECIAL"}
_PLUMBING = {"CACHE", "PUSH_NULL", "NOP", "EXTENDED_ARG", "KW_NAMES", "COPY", "RESUME"}
_ROOTS = {
    "LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW", "LOAD_NAME", "LOAD_GLOBAL", "LOAD_DEREF", "LOAD_CLASSDEREF",
    "LOAD_CONST",
}  # fmt: skip
_ATTRIBUTES = {"LOAD_ATTR", "LOAD_METHOD"}


class _Path(NamedTuple):
    """Where the callee is found: a name or constant, then attributes of it."""

    root: str
    value: Any
    attributes: tuple[str, ...]


def callee_of(frame: FrameType) -> Callee | None:
    """What `frame` is calling at this moment; None where it calls nothing, or where that cannot be known."""
    path = _path_at(frame.f_code, frame.f_lasti)
    if path is None:
        return None
    value = _look_up(frame, path)
    owner: type | None = None
    for name in path.attributes:
        if value is not UNKNOWN:
            value, owner = _attribute(value, name)
    if value is UNKNOWN:
        return None
    return Callee(value, owner, path.attributes[-1] if path.attributes else str(path.value))


@lru_cache(maxsize=512)
def _path_at(code: CodeType, lasti: int) -> _Path | None:
    """The chain of loads that produced the callee of the call at `lasti`.

    By PEP 657 they begin in the column where the call begins, and each is longer than the one before it.
    """
    if len(code.co_code) > _LONGEST or dis.opname[code.co_code[lasti]] not in _CALLS | _ENTERS:
        return None
    instructions = [item for item in dis.get_instructions(code) if item.offset <= lasti]
    if instructions[-1].opname in _ENTERS:
        # Its own position is the statement's: the one before it made the context manager.
        path = (
            _chain(instructions[:-1], instructions[-2], whole=True)
            if len(instructions) > 1
            else None
        )
        return path and path._replace(attributes=(*path.attributes, "__enter__"))
    # Before CALL_KW stands the tuple of the keywords, which bears the position of the callee.
    names = 1 if instructions[-1].opname == "CALL_KW" else 0
    return _chain(instructions[: -1 - names], instructions[-1], whole=False)


def _chain(before: list[dis.Instruction], of: dis.Instruction, whole: bool) -> _Path | None:
    """The loads that begin where `of` begins: up to its end if `whole`, else short of it."""
    start, end = _start(of), _end(of)
    if start is None or end is None:
        return None
    root: _Path | None = None
    previous: dis.Instruction | None = None
    for item in before:
        item_end = _end(item)
        if _start(item) == start and item_end is not None and item.opname not in _PLUMBING:
            if item_end == end and not whole and item.opname not in ("LOAD_CONST", "PRECALL"):
                root = None  # the implicit call of __exit__, which has the position of the context manager
            elif item_end < end or whole:
                root = _extend(root, item, previous)
        previous = item
    return root


def _extend(
    path: _Path | None, item: dis.Instruction, previous: dis.Instruction | None
) -> _Path | None:
    if item.opname in _ATTRIBUTES:
        if path is None and previous is not None and previous.opname.endswith("LOAD_FAST"):
            # Two instructions made one (CPython 3.13) stand at the place of the first.
            path = _Path("LOAD_FAST", previous.argval[-1], ())
        return path and path._replace(attributes=(*path.attributes, item.argval))
    return _Path(item.opname, item.argval, ()) if item.opname in _ROOTS else None


def _start(item: dis.Instruction) -> tuple[int, int] | None:
    positions = item.positions
    if positions is None or positions.lineno is None or positions.col_offset is None:
        return None
    return positions.lineno, positions.col_offset


def _end(item: dis.Instruction) -> tuple[int, int] | None:
    positions = item.positions
    if positions is None or positions.end_lineno is None or positions.end_col_offset is None:
        return None
    return positions.end_lineno, positions.end_col_offset


def _look_up(frame: FrameType, path: _Path) -> Any:
    if path.root == "LOAD_CONST":
        return path.value
    if path.root in ("LOAD_GLOBAL", "LOAD_NAME"):
        scopes = [frame.f_globals, frame.f_builtins]
        if path.root == "LOAD_NAME":  # module or class level: f_locals is the namespace itself
            scopes = [frame.f_locals, *scopes]
        return next((scope[path.value] for scope in scopes if path.value in scope), UNKNOWN)
    return local(frame, path.value)


def _attribute(value: Any, name: str) -> tuple[Any, type | None]:
    """The attribute as it lies in the object, and the type to name it by where it is a method."""
    if isinstance(value, ModuleType):
        return vars(value).get(name, UNKNOWN), None
    found = inspect.getattr_static(value, name, UNKNOWN)
    if isinstance(found, (MemberDescriptorType, GetSetDescriptorType)) and not isinstance(
        value, type
    ):
        # A slot, or an attribute of a type written in C: reading it runs no Python.
        found = (
            found.__get__(value, type(value))
            if isinstance(found, MemberDescriptorType)
            else UNKNOWN
        )
        return found, None
    if isinstance(found, property):
        return UNKNOWN, None
    if isinstance(found, (staticmethod, classmethod)):
        found = found.__func__
    return found, value if isinstance(value, type) else type(value)
