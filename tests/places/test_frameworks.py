"""Other frameworks behind `loopguard.wrap`: right line, method and trace; the route where they tell its template."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache

import httpx
import pytest
from websockets.sync.client import connect

from tests.places.servers import serve
from tests.real.conftest import NEEDS_UVLOOP
from tests.real.marks import Mark, read_marks
from tests.real.server import ROOT, Row, Server, read_rows, wait_until
from tests.real.told import expected, find_record, server_span, told

SERVERS = {"asyncio": "uvicorn-h11-asyncio", "uvloop": "uvicorn-httptools-uvloop"}
# How each writes the template; a handler that blocks does so on every path `/v1/acme/CASE/7`.
TEMPLATES = {
    "litestar": "/v1/{tenant}/CASE/{item}",
    "quart": "/v1/<tenant>/CASE/<int:item>",
    "django": None,  # nothing of it is in the scope or in the context of the code that runs
}
# Quart streams when it has left the request's context already.
ROUTELESS = {("quart", "stream"), *((framework, "not_found") for framework in TEMPLATES)}
CASES = {
    "litestar": ("handler", "dependency", "background", "stream", "child", "socket", "not_found"),
    "quart": ("handler", "before", "stream", "child", "socket", "not_found"),
    "django": ("handler", "before", "stream", "child", "not_found"),
}


@dataclass
class World:
    server: Server
    client: httpx.Client
    stack: ExitStack
    marks: dict[str, Mark]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], World]]:
    """Each server starts when first asked for, and serves until the last test."""
    with ExitStack() as all_of_them:

        @cache
        def world(framework: str, loop: str) -> World:
            stack = all_of_them.enter_context(ExitStack())
            module = f"tests.places.{framework}_app"
            directory = tmp_path_factory.mktemp(framework)
            server = stack.enter_context(serve(directory, f"{module}:app", SERVERS[loop]))
            client = stack.enter_context(
                httpx.Client(base_url=server.url, timeout=30, trust_env=False)
            )
            assert client.get("/ready").text == "ready"
            return World(server, client, stack, read_marks(module, ROOT))

        yield world


def ask(world: World, case: str) -> None:
    path = "/nothing/7" if case == "not_found" else f"/v1/acme/{case}/7"
    headers = {"traceparent": f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"}
    if case == "socket":
        url = world.server.url.replace("http://", "ws://") + path
        with connect(url, additional_headers=headers, proxy=None) as socket:
            socket.send("hello")
            assert socket.recv(timeout=30) == "hello"
        return
    response = world.client.get(path, headers=headers)
    assert response.status_code == (404 if case == "not_found" else 200), world.server.child.read()


def look_up(world: World, case: str) -> tuple[Row, Row | None]:
    def truths() -> list[Row]:
        return [row for row in read_rows(world.server.truth) if row["case"] == case]

    assert wait_until(lambda: bool(truths()), 5), world.server.child.read()
    truth = truths()[-1]
    return truth, find_record(world.server.jsonl, truth)


@pytest.mark.parametrize("loop", ["asyncio", pytest.param("uvloop", marks=NEEDS_UVLOOP)])
@pytest.mark.parametrize(
    "framework, case", [(framework, case) for framework in CASES for case in CASES[framework]]
)
def test_the_record_says_what_blocked_and_for_whom(
    worlds: Callable[[str, str], World], framework: str, case: str, loop: str
) -> None:
    """The route is the whole template or null, and never the path that was asked for."""
    world, template = worlds(framework, loop), TEMPLATES[framework]
    ask(world, case)
    truth, record = look_up(world, case)
    own = None

    def ended() -> bool:
        nonlocal own
        own = server_span(world.server.spans, truth["trace_id"])
        return own is not None

    assert wait_until(ended, 5)
    mark = world.marks[case]
    routeless = template is None or (framework, case) in ROUTELESS
    route = None if routeless else (template or "").replace("CASE", case)
    assert told(record, mark) == expected(mark) | {
        "route": route,
        "method": "WEBSOCKET" if case == "socket" else "GET",
        "background": case == "background",
        "request.trace_id": truth["trace_id"],
        "request.span_id": own,
        "trace_id": truth["trace_id"],
        "span_id": truth["span_id"],
        "phase": "serving",
        "pid": world.server.child.process.pid,
        "uvloop": loop == "uvloop",
    }


@pytest.mark.parametrize("framework", ["litestar", "quart"])
def test_both_ends_of_the_lifespan_are_told(
    worlds: Callable[[str, str], World], framework: str
) -> None:
    """The phase is that of the lifespan, and there is no request."""
    world = worlds(framework, "asyncio")
    world.client.close()
    world.stack.close()
    for phase in ("startup", "shutdown"):
        _, record = look_up(world, phase)
        found = told(record, world.marks[phase])
        wanted = expected(world.marks[phase]) | {"phase": phase, "route": None, "method": None}
        assert {key: found.get(key) for key in wanted} == wanted
        assert record is not None
        assert record["request"] is None
        assert record["trace_id"] is None
