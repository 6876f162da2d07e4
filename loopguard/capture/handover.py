"""Where code was that kept the GIL until the next place at which the interpreter hands it over."""

from __future__ import annotations

import dis

from loopguard.capture.callee import CALLS
from loopguard.capture.resolve import OTHERS
from loopguard.evidence import RawFrame

_LONGEST = 16_000  # bytes of code: a longer function takes a tenth of a second to take apart
# Not PRECALL, which on CPython 3.11 is the first half of a call.
_HANDS_OVER = CALLS - {"PRECALL"} | {"RESUME", "JUMP_BACKWARD", "SEND", "YIELD_VALUE"}


def kept_at(stack: list[RawFrame]) -> list[RawFrame]:
    """The stack, innermost first, of a thread that was made to hand the GIL over, as it was while it kept it.

    At the head of a function it has not done anything yet: what took the time lies before the call, behind the last
    place at which it would have been made to hand over. That is told if it is one operation of all on the way.
    """
    if len(stack) < 2 or not at_head(stack[0]):
        return stack
    caller = stack[1]
    operation = _only_operation_before(caller)
    if operation is None:
        return stack
    return [caller._replace(lasti=operation), *stack[2:]]


def at_head(frame: RawFrame) -> bool:
    """Whether the function was just called."""
    code, at = frame.code.co_code, max(frame.lasti, 0)
    return dis.opname[code[at]] == "RESUME" and code[at + 1] == 0


def _only_operation_before(frame: RawFrame) -> int | None:
    """The instruction that may run native code for long, since the last that hands the GIL over; None for more or none."""
    if len(frame.code.co_code) > _LONGEST:
        return None
    found = []
    before = [each for each in dis.get_instructions(frame.code) if each.offset < frame.lasti]
    for instruction in reversed(before):
        if instruction.opname in _HANDS_OVER:
            break
        if instruction.opname in OTHERS:
            found.append(instruction.offset)
        if instruction.is_jump_target:
            break
    return found[0] if len(found) == 1 else None
