"""What the culprit's line called, by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from loopguard.evidence import Callee, Look, RawFrame

# Modules written in C that everybody knows by the name of their front.
_KNOWN_AS = {"posix": "os", "nt": "os", "_io": "io"}


def call_on_line(on_line: Iterable[tuple[Look, int, float]]) -> str | None:
    """What the culprit's line called for most of the time, of what is known; each look with its frame and seconds.

    Of what is written in C and calls Python there is no frame: what one look found, holds for all at that instruction.
    """
    votes = tuple(on_line)
    in_c = {
        look.stack[culprit][:2]: name_of(look.through.callee)
        for look, culprit, _ in votes
        if look.through is not None and look.through.place == culprit
    }
    seconds: defaultdict[str, float] = defaultdict(float)
    for look, culprit, weight in votes:
        name = None if culprit == 0 else in_c.get(look.stack[culprit][:2])
        name = name or call_of(look.stack, culprit, look.callee)
        if name is not None:
            seconds[name] += weight
    return max(seconds, key=lambda name: seconds[name], default=None)


def call_of(stack: tuple[RawFrame, ...], culprit: int, callee: Callee | None) -> str | None:
    """The dotted name of what the frame at index `culprit` (innermost first) called; None where unknown.

    A callee in Python has the next frame; one in C has none, and was looked up as the stack was taken.
    """
    if culprit > 0:
        inner = stack[culprit - 1]
        return _dotted(inner.module, inner.code.co_qualname)
    return None if callee is None else name_of(callee)


def name_of(callee: Callee) -> str | None:
    """Module and qualified name of a callee: of the function, or of the type and the method's name."""
    function: Any = callee.function
    # By type(): isinstance() would ask a lazy object for its class.
    if type(function) is MethodType:
        function = function.__func__
    if type(function) is FunctionType or issubclass(type(function), type):
        return _dotted(function.__module__, function.__qualname__)
    if issubclass(type(function), BuiltinFunctionType):
        return _builtin(function)
    if callee.owner is not None:
        return _dotted(callee.owner.__module__, f"{callee.owner.__qualname__}.{callee.name}")
    return None


def _builtin(function: Any) -> str:
    owner = function.__self__
    if owner is None or issubclass(type(owner), ModuleType):
        return _dotted(function.__module__, function.__qualname__)
    kind = owner if issubclass(type(owner), type) else type(owner)
    return _dotted(kind.__module__, f"{kind.__qualname__}.{function.__name__}")


def _dotted(module: object, name: str) -> str:
    if not isinstance(module, str) or not module:
        return name
    return f"{_KNOWN_AS.get(module, module)}.{name}"
