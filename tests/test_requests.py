"""The requests in flight, and which of them a context belongs to."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any

import pytest

from loopguard.capture.requests import RequestTable

pytestmark = pytest.mark.core


async def serve() -> None:
    pass


def begin(
    table: RequestTable, scope: dict[str, Any], context: Context
) -> Coroutine[Any, Any, None]:
    """A request begins in its own context, as each does."""
    coroutine = serve()
    context.run(table.follower(), scope, coroutine)
    return coroutine


def test_a_request_is_found_by_its_context_while_it_is_in_flight() -> None:
    table, context, scope = RequestTable(), Context(), {"path": "/a"}
    coroutine = begin(table, scope, context)
    request = table.of(context)
    assert request is not None
    assert request.scope is scope
    assert len(table) == 1
    coroutine.close()


def test_it_is_found_in_contexts_that_were_copied_from_its_own() -> None:
    """Its tasks and callbacks run in those."""
    table, context = RequestTable(), Context()
    coroutine = begin(table, {}, context)
    assert table.of(context.run(copy_context)) is not None
    coroutine.close()


def test_a_request_that_has_ended_is_found_no_more() -> None:
    """A context may outlive it: that of a task that it has left behind."""
    table, context = RequestTable(), Context()
    coroutine = begin(table, {}, context)
    coroutine.close()
    del coroutine
    assert table.of(context) is None
    assert len(table) == 0


def test_a_context_without_a_request_belongs_to_none() -> None:
    assert RequestTable().of(Context()) is None


def test_a_stale_context_gives_the_request_that_began_last_in_it() -> None:
    """uvicorn on asyncio runs later requests of a connection in the context of a large upload."""
    table, context = RequestTable(), Context()
    first = begin(table, {"path": "/upload"}, context)
    stale = context.run(copy_context)
    first.close()
    del first
    assert table.of(stale) is None
    second = begin(table, {"path": "/next"}, stale)
    found = table.of(stale)
    assert found is not None
    assert found.scope == {"path": "/next"}
    assert table.of(context) is None
    second.close()


def test_two_tables_do_not_see_each_others_requests() -> None:
    context, table, other = Context(), RequestTable(), RequestTable()
    coroutine = begin(table, {}, context)
    assert other.of(context) is None
    coroutine.close()


def test_the_context_that_is_kept_is_that_of_the_beginning() -> None:
    """The span of the request itself is in there, not those that its code has opened since."""
    table, context, span = RequestTable(), Context(), ContextVar("span", default="none")
    context.run(span.set, "server")
    coroutine = begin(table, {}, context)
    context.run(span.set, "child")
    request = table.of(context)
    assert request is not None
    assert request.context.get(span) == "server"
    coroutine.close()


def test_ten_thousand_requests_leave_nothing_behind() -> None:
    """Run to their end, closed, failed or cancelled."""
    table = RequestTable()

    async def fail() -> None:
        raise LookupError

    async def wait() -> None:
        await asyncio.Event().wait()

    async def run(kind: Any) -> None:
        coroutine = kind()
        table.follower()({"type": "http"}, coroutine)
        await coroutine

    async def main() -> None:
        for _ in range(100):
            kinds = (serve, fail, wait, serve) * 25
            tasks = [asyncio.create_task(run(kind)) for kind in kinds]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    gc.collect()
    assert len(table) == 0
    assert table.served == 10_000


def test_requests_that_begin_in_each_others_context_leave_nothing_behind() -> None:
    """As on a connection that is kept alive: no chain of contexts keeps the earlier ones."""

    class Body:
        pass

    async def serve() -> None:
        pass

    table, bodies = RequestTable(), []
    for _ in range(50):
        body, coroutine = Body(), serve()
        bodies.append(weakref.ref(body))
        table.follower()({"body": body}, coroutine)
        coroutine.close()
        del body, coroutine
    assert [body() for body in bodies] == [None] * 50
    assert len(table) == 0
