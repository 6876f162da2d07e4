"""What kept the GIL, told from where it was handed over at last."""

from __future__ import annotations

import dis
from contextlib import contextmanager
from types import CodeType
from typing import Any

import pytest

from loopguard.capture.handover import kept_at
from loopguard.evidence import RawFrame

pytestmark = pytest.mark.core


@contextmanager
def block() -> Any:
    yield


def function() -> None:
    pass


def after_a_power(n: int) -> None:
    with block():
        result = 7**n
    del result


def after_two(n: int, values: list[int]) -> None:
    result = 7**n + values[n]
    function()
    del result


def after_a_call(n: int) -> None:
    len([n])
    function()


def after_a_branch(n: int) -> None:
    if n:
        n = n**n
    function()


def head(code: CodeType) -> RawFrame:
    offset = next(each.offset for each in dis.get_instructions(code) if each.opname == "RESUME")
    return RawFrame(code, offset, "app")


def in_call(code: CodeType) -> RawFrame:
    """In its last call, which is the one of interest in all of these."""
    calls = [each for each in dis.get_instructions(code) if each.opname == "CALL"]
    return RawFrame(code, calls[-1].offset, "app")


def exiting(code: CodeType) -> RawFrame:
    """In the first call behind its power: that of the block's end."""
    power = line_of_power(code)
    later = (each for each in dis.get_instructions(code) if each.offset > power)
    return RawFrame(code, next(each.offset for each in later if each.opname == "CALL"), "app")


def line_of_power(code: CodeType) -> int:
    return next(each.offset for each in dis.get_instructions(code) if each.opname == "BINARY_OP")


HEAD = head(function.__code__)
OUTER = RawFrame(block.__code__, 0, "app")


def test_the_only_operation_before_a_call_is_what_took_the_time() -> None:
    caller = exiting(after_a_power.__code__)
    [told, outer] = kept_at([HEAD, caller, OUTER])
    assert (told.code, told.lasti) == (caller.code, line_of_power(caller.code))
    assert outer == OUTER


@pytest.mark.parametrize("work", [after_two, after_a_call, after_a_branch])
def test_where_there_are_more_or_none_the_stack_stays_as_it_is(work: Any) -> None:
    stack = [HEAD, in_call(work.__code__), OUTER]
    assert kept_at(stack) == stack


def test_a_thread_that_stands_within_a_function_stays_there() -> None:
    within = in_call(after_a_call.__code__)
    assert kept_at([within, OUTER]) == [within, OUTER]
    assert kept_at([HEAD]) == [HEAD]
    assert kept_at([]) == []
