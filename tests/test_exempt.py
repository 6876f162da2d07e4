"""What may block says so itself, or is named by the options."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Iterator
from contextvars import Context, copy_context

import pytest

from loopguard.exempt import allow_blocking, matches, reason_in


def reason() -> str | None:
    return reason_in(copy_context())


def test_code_inside_is_allowed_to_block_and_code_after_is_not() -> None:
    with allow_blocking("a migration"):
        assert reason() == "a migration"
    assert reason() is None


def test_the_inner_reason_holds_and_then_the_outer_one_again() -> None:
    with allow_blocking("outer"):
        with allow_blocking("inner"):
            assert reason() == "inner"
        assert reason() == "outer"


def test_an_error_ends_it_too() -> None:
    with pytest.raises(LookupError), allow_blocking("reason"):
        raise LookupError
    assert reason() is None


def test_a_decorated_function_is_allowed_to_block_each_time() -> None:
    @allow_blocking("warm up")
    def load(size: int, *, name: str = "x") -> tuple[int, str, str | None]:
        """Load it."""
        return size, name, reason()

    assert load(1, name="y") == (1, "y", "warm up")
    assert load(2) == (2, "x", "warm up")
    assert reason() is None
    assert (load.__name__, load.__doc__) == ("load", "Load it.")


def test_a_decorated_coroutine_function_stays_one() -> None:
    @allow_blocking("warm up")
    async def load(size: int) -> tuple[int, str | None]:
        await asyncio.sleep(0)
        return size, reason()

    assert inspect.iscoroutinefunction(load)
    assert asyncio.run(load(3)) == (3, "warm up")


def test_a_decorated_method_gets_its_self() -> None:
    class Job:
        @allow_blocking("job")
        def run(self) -> tuple[Job, str | None]:
            return self, reason()

    job = Job()
    assert job.run() == (job, "job")


def test_a_recursive_function_is_allowed_until_its_outermost_call_ends() -> None:
    @allow_blocking("deep")
    def walk(depth: int) -> list[str | None]:
        return [reason()] if depth == 0 else [*walk(depth - 1), reason()]

    assert walk(2) == ["deep"] * 3
    assert reason() is None


def test_one_object_serves_two_tasks_at_once() -> None:
    """Each leaves with its own token, in whatever order."""
    allowed = allow_blocking("shared")

    async def first(inside: asyncio.Event, leave: asyncio.Event) -> None:
        with allowed:
            inside.set()
            await leave.wait()
        assert reason() is None

    async def main() -> None:
        inside, leave = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(first(inside, leave))
        await inside.wait()
        with allowed:
            leave.set()
            await task
            assert reason() == "shared"
        assert reason() is None

    asyncio.run(main())


def test_other_tasks_are_not_allowed_and_children_are() -> None:
    """The permission is in the context."""

    async def ask() -> str | None:
        await asyncio.sleep(0)
        return reason()

    async def main() -> None:
        before = asyncio.create_task(ask())
        with allow_blocking("mine"):
            child = asyncio.create_task(ask())
            assert await before is None
            assert await child == "mine"

    asyncio.run(main())


def test_generators_cannot_be_decorated() -> None:
    """Their body runs elsewhere: it would be allowed nothing, or for too long."""

    def generator() -> Iterator[int]:
        yield 1

    async def asynchronous() -> AsyncIterator[int]:
        yield 1

    for function in (generator, asynchronous):
        with pytest.raises(TypeError, match="not generators"):
            allow_blocking("reason")(function)


@pytest.mark.parametrize("reason", ["", "  "])
def test_a_reason_is_needed(reason: str) -> None:
    with pytest.raises(ValueError, match="reason in words"):
        allow_blocking(reason)


def test_a_function_in_place_of_the_reason_is_refused() -> None:
    """As by `@allow_blocking` without parentheses."""
    with pytest.raises(TypeError, match="reason in words"):
        allow_blocking(int)  # type: ignore[arg-type]


def test_an_empty_context_allows_nothing() -> None:
    assert reason_in(Context()) is None


@pytest.mark.parametrize(
    "patterns, names, found",
    [
        (["app.legacy.*"], ["app.legacy.orders.load"], "app.legacy.*"),
        (["app.legacy.*"], ["app.legacy"], None),
        (["app.legacy.*"], ["myapp.legacy.orders"], None),
        (["/health"], ["app.api.check", "/health", "serving"], "/health"),
        (["/health"], ["app.api.check", "/health/deep", "serving"], None),
        (["/health*"], ["/health/deep"], "/health*"),
        (["startup"], ["app.boot", None, "startup"], "startup"),
        (["APP.*"], ["app.x"], None),
        (["a", "b"], ["b", "a"], "a"),
        (["*"], [None, None], None),
        ([], ["app.x"], None),
        (["/v1/users/{id}"], ["/v1/users/{id}"], "/v1/users/{id}"),
    ],
)
def test_a_pattern_matches_a_whole_name_with_its_case(
    patterns: list[str], names: list[str | None], found: str | None
) -> None:
    assert matches(patterns, names) == found


def test_a_task_started_in_a_block_may_not_block_after_the_block_was_left() -> None:
    """It carries the context on; what it does within the block's time is still allowed."""
    with allow_blocking("starts a worker"):
        inherited = copy_context()
        entered = time.monotonic_ns()
    assert reason_in(inherited, since_ns=entered) == "starts a worker"
    assert reason_in(inherited, since_ns=time.monotonic_ns() + 1) is None
