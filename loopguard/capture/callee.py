"""What the innermost frame is calling, where the callee is written in C and so has no frame of its own.

The expression is read from the bytecode at the instruction pointer, and its names are looked up in the frame without
running any of the user's code: no property, no `__getattr__`, no descriptor written in Python.
"""

from __future__ import annotations

import builtins
import dis
import inspect
import sys
from functools import lru_cache
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    CodeType,
    FrameType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodWrapperType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any, NamedTuple

from loopguard.capture.variables import UNKNOWN, local
from loopguard.evidence import Callee

_LONGEST = 16_000  # bytes of code: a longer function takes a tenth of a second to take apart
CALLS = {"CALL", "CALL_KW", "CALL_FUNCTION_EX", "PRECALL"}
_ENTERS = {"BEFORE_WITH", "LOAD_SPECIAL"}
_PLUMBING = {"CACHE", "PUSH_NULL", "NOP", "EXTENDED_ARG", "KW_NAMES", "COPY", "RESUME"}
_ROOTS = {
    "LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW", "LOAD_NAME", "LOAD_GLOBAL", "LOAD_DEREF", "LOAD_CLASSDEREF",
    "LOAD_CONST",
}  # fmt: skip
_ATTRIBUTES = {"LOAD_ATTR", "LOAD_METHOD"}
# These bear the position of the whole call before it is made: they gather its arguments.
_GATHERING = {
    "BUILD_CONST_KEY_MAP", "BUILD_LIST", "BUILD_MAP", "BUILD_TUPLE", "CALL_INTRINSIC_1", "DICT_MERGE", "LIST_APPEND",
    "LIST_EXTEND", "LIST_TO_TUPLE", "LOAD_CONST", "PRECALL",
}  # fmt: skip


_IN_C = (
    BuiltinFunctionType, ClassMethodDescriptorType, MethodDescriptorType, MethodWrapperType, WrapperDescriptorType,
)  # fmt: skip

# From CPython 3.13 a view. In a comprehension of a module it shows that one's variables only.
_FUNCTION_LOCALS: type = (lambda: type(sys._getframe().f_locals))()
_MODULE_NAMES: Any = vars(ModuleType)["__dict__"].__get__


class _Path(NamedTuple):
    """Where the callee is found: a name or constant, then attributes of it."""

    root: str
    value: Any
    attributes: tuple[str, ...]


def callee_of(frame: FrameType, lasti: int) -> Callee | None:
    """What `frame` calls at the instruction `lasti`; None where it calls nothing, or where that cannot be known."""
    path = _path_at(frame.f_code, lasti)
    return None if path is None else _follow(path, _look_up(frame, path))


def callee_in_c(frame: FrameType, lasti: int, inner: str) -> Callee | None:
    """The same of a frame that is not the innermost, if what it calls is written in C and called `inner`.

    What has the name of the function inside is that function, and is not looked up.
    """
    path = _path_at(frame.f_code, lasti)
    if path is None or inner == (path.attributes[-1] if path.attributes else path.value):
        return None
    callee = _follow(path, _look_up(frame, path))
    return callee if callee is not None and _is_in_c(callee.function) else None


def _is_in_c(function: object) -> bool:
    if type(function) is not type:
        return issubclass(type(function), _IN_C)
    made = (inspect.getattr_static(function, name, None) for name in ("__new__", "__init__"))
    return not any(type(maker) in (FunctionType, staticmethod) for maker in made)


def receiver_of(frame: FrameType, lasti: int) -> Any:
    """The object whose method `frame` calls at the instruction `lasti`; UNKNOWN where that is none."""
    path = _path_at(frame.f_code, lasti)
    if path is None or not path.attributes:
        return UNKNOWN
    value = _look_up(frame, path)
    for name in path.attributes[:-1]:
        if value is not UNKNOWN:
            value, _ = _attribute(value, name)
    return value


def callee_among(names: dict[str, Any], code: CodeType, lasti: int) -> Callee | None:
    """The same of code whose frame is gone: by the names of its module only."""
    path = _path_at(code, lasti)
    if path is None or path.root not in ("LOAD_GLOBAL", "LOAD_NAME"):
        return None
    return _follow(path, _in_scopes([names, vars(builtins)], path.value))


def _follow(path: _Path, value: Any) -> Callee | None:
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
    if len(code.co_code) > _LONGEST or dis.opname[code.co_code[lasti]] not in CALLS | _ENTERS:
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
    path: _Path | None = None
    for index, item in enumerate(before):
        item_end = _end(item)
        if _start(item) == start and item_end is not None and item.opname not in _PLUMBING:
            if item_end == end and not whole and item.opname not in _GATHERING:
                path = None  # the implicit call of __exit__, which has the position of the context manager
            elif item_end < end or whole:
                path = _extend(path, before, index)
    return path


def _extend(path: _Path | None, before: list[dis.Instruction], index: int) -> _Path | None:
    """The path as it is after the instruction at `index`."""
    item = before[index]
    if item.opname in _ATTRIBUTES:
        path = _just_before(before, index) if path is None else path
        return path and path._replace(attributes=(*path.attributes, item.argval))
    return _Path(item.opname, item.argval, ()) if item.opname in _ROOTS else None


def _just_before(before: list[dis.Instruction], index: int) -> _Path | None:
    """What the instruction at `index` takes the attribute of, where that has a position of its own.

    In a call over several lines each attribute has that of its own name; and two loads made one (CPython 3.13) have
    that of the first.
    """
    index -= 1
    while index >= 0 and before[index].opname in _PLUMBING:
        index -= 1
    if index < 0 or before[index + 1].is_jump_target:
        return None
    item = before[index]
    if isinstance(item.argval, tuple) and item.opname.endswith(("LOAD_FAST", "LOAD_FAST_BORROW")):
        return _Path("LOAD_FAST", item.argval[-1], ())
    return _extend(None, before, index)


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
        return _in_scopes(scopes, path.value)
    return local(frame, path.value)


def _in_scopes(scopes: list[Any], name: str) -> Any:
    for scope in scopes:
        if issubclass(type(scope), dict):
            if dict.__contains__(scope, name):
                return dict.__getitem__(scope, name)
        elif type(scope) is not _FUNCTION_LOCALS:
            return UNKNOWN  # a mapping of a metaclass's own
    return UNKNOWN


def _attribute(value: Any, name: str) -> tuple[Any, type | None]:
    """The attribute as it lies in the object, and the type to name it by where it is a method.

    Types are compared by `type()`: isinstance() asks an object for its `__class__`, and a proxy for a lazy object
    then makes that object.
    """
    kind = type(value)
    if issubclass(kind, ModuleType):
        return _MODULE_NAMES(value).get(name, UNKNOWN), None
    found = inspect.getattr_static(value, name, UNKNOWN)
    if type(found) is MemberDescriptorType and not issubclass(kind, type):
        return found.__get__(value, kind), None  # a slot: reading it runs no Python
    if issubclass(type(found), BuiltinFunctionType):
        return found, None  # it knows its own home
    if type(found) in (staticmethod, classmethod):
        found = found.__func__
    elif _computes(type(found)):
        return UNKNOWN, None
    return found, value if issubclass(kind, type) else kind


def _computes(kind: type) -> bool:
    """Whether objects of this kind give something else when they are got as attributes."""
    if issubclass(kind, (property, GetSetDescriptorType)):
        return True
    return type(inspect.getattr_static(kind, "__get__", None)) is FunctionType
