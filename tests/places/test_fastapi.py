"""A blocking line in every place of a FastAPI application: the right line, request and trace under each server."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from tests.places.servers import HYPERCORN, UVICORN, serve
from tests.real.conftest import NEEDS_UVLOOP
from tests.real.marks import Mark, read_marks
from tests.real.server import ROOT, Row, Server, read_rows, wait_until
from tests.real.told import belongs, expected, find_record, told

MARKS = read_marks("tests.places.fastapi_app", ROOT)
V1 = "/api/v1/places/{tenant}"
UPLOAD = b"x" * 3_000_000


@dataclass(frozen=True)
class Place:
    """Where a line blocks, and what its stall is to say of the request. No `method`: outside of any."""

    route: str | None
    method: str | None = "GET"
    path: str | None = None
    mark: str | None = None
    status: int = 200
    background: bool = False
    traced: bool = True
    phase: str = "serving"


PLACES = {
    "startup": Place(None, None, phase="startup"),
    "dependency": Place(V1 + "/dependency/{item}"),
    "closing": Place(V1 + "/closing/{item}"),
    "validator": Place(V1 + "/validator/{item}", "POST"),
    "before": Place(V1 + "/behind/{item}", path=V1 + "/behind/before"),
    "after": Place(V1 + "/behind/{item}", path=V1 + "/behind/after"),
    "behind": Place(V1 + "/behind/{item}", path=V1 + "/behind/handler"),
    "behind_background": Place(
        V1 + "/behind/{item}/background", mark="afterwards", background=True
    ),
    "exception": Place(V1 + "/exception/{item}"),
    "unexpected": Place(V1 + "/unexpected/{item}", status=500),
    "not_found": Place(None, path="/api/v1/nothing/4711", status=404),
    "lost": Place(None, path="/wp/lost.php", status=404),
    "stream": Place(V1 + "/stream/{item}"),
    "background": Place(V1 + "/background/{item}", mark="afterwards", background=True),
    "response_background": Place(
        V1 + "/response_background/{item}", mark="afterwards", background=True
    ),
    "child_background": Place(V1 + "/child_background/{item}", mark="afterwards", background=True),
    "socket": Place(V1 + "/socket/{item}", "WEBSOCKET"),
    "gather": Place(V1 + "/gather/{item}", mark="child"),
    "group": Place(V1 + "/group/{item}", mark="child"),
    "soon": Place(V1 + "/soon/{item}"),
    "later": Place(V1 + "/later/{item}"),
    "mounted": Place("/tenants/{tenant}/years/{year}/reports/{item}"),
    "uploaded": Place(V1 + "/uploaded/{item}", "POST"),
    "next": Place(V1 + "/next/{item}"),
    "untraced": Place(V1 + "/untraced/{item}", traced=False),
    "outside": Place(None, None, path=V1 + "/ring/{item}"),
}
# What servers and loops have a part in; the rest is the same on all.
EVERYWHERE = {
    *("startup", "behind", "stream", "background", "socket", "soon", "later", "uploaded"),
    *("next", "untraced", "outside"),
}
WHOLLY = {"uvicorn-h11-asyncio", "uvicorn-httptools-uvloop"}


@dataclass
class World:
    """A server and its client. Each place is asked for once, and its visit kept."""

    name: str
    server: Server
    client: httpx.Client
    stack: ExitStack
    pid: int = 0
    visits: dict[str, tuple[Row, Row | None]] = field(default_factory=dict)

    def visit(self, case: str) -> tuple[Row, Row | None]:
        """The truth about a place, and the record of it; asked for again as often as you like."""
        if case not in self.visits:
            place = PLACES[case]
            if place.phase == "serving":
                self._ask(case, place)
            self.visits[case] = self.told(case)
        return self.visits[case]

    def told(self, case: str) -> tuple[Row, Row | None]:
        def truths() -> list[Row]:
            return [row for row in read_rows(self.server.truth) if row["case"] == case]

        assert wait_until(lambda: bool(truths()), 5), self.server.child.read()
        (truth,) = truths()
        return truth, find_record(self.server.jsonl, truth)

    def _ask(self, case: str, place: Place) -> None:
        path = (place.path or place.route or "").format(tenant="acme", item="4711", year=2024)
        headers = {"traceparent": f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"}
        if place.method == "WEBSOCKET":
            url = self.server.url.replace("http://", "ws://") + path
            with connect(url, additional_headers=headers, proxy=None) as socket:
                socket.send("hello")
                assert socket.recv(timeout=30) == "hello"
            return
        if case in ("next", "untraced"):
            # Both on the connection of the upload, on which there is no other since.
            self.client.post(V1.format(tenant="acme") + "/upload/1", content=UPLOAD)
        response = self.client.request(
            "GET" if place.method is None else place.method,
            path,
            headers=headers,
            content=UPLOAD if case == "uploaded" else None,
            json={"word": "secret"} if case == "validator" else None,
        )
        assert response.status_code == place.status, f"{response.text}\n{self.server.child.read()}"

    def own_span(self, truth: Row, place: Place) -> str | None:
        """The request's own span, from what was exported: that of its name, else the server's.

        Behind an upload on asyncio uvicorn serves requests in a context that is not theirs
        (python/cpython#140947), and the instrumentor takes the upload's span for their parent.
        """
        name = f"{place.method} {place.route}"

        def found() -> list[Row]:
            rows = (r for r in read_rows(self.server.spans) if r["trace_id"] == truth["trace_id"])
            return [row for row in rows if row["name"] == name or row["kind"] == "SERVER"]

        wait_until(lambda: bool(found()), 5)
        rows = sorted(found(), key=lambda row: row["name"] != name)
        return rows[0]["span_id"] if rows else None


@contextmanager
def begin(name: str, directory: Path, telemetry: str = "before") -> Iterator[World]:
    with ExitStack() as stack:
        application = "tests.places.fastapi_app:app"
        server = stack.enter_context(serve(directory, application, name, telemetry=telemetry))
        client = stack.enter_context(httpx.Client(base_url=server.url, timeout=30, trust_env=False))
        # The first request of all is slow before it gets anywhere.
        pid = client.get(V1.format(tenant="acme") + "/ready/1").json()
        yield World(name, server, client, stack, pid)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], World]]:
    """Each server starts when first asked for, and serves until the last test."""
    with ExitStack() as stack:

        @cache
        def world(name: str) -> World:
            return stack.enter_context(begin(name, tmp_path_factory.mktemp(name)))

        yield world


@pytest.fixture
def world(worlds: Callable[[str], World], name: str) -> World:
    return worlds(name)


CASES = [
    pytest.param(
        name,
        case,
        marks=[
            *([NEEDS_UVLOOP] if "uvloop" in name else []),
            *([pytest.mark.core] if name in WHOLLY and case in EVERYWHERE else []),
        ],
    )
    for name in (*UVICORN, *HYPERCORN)
    for case in PLACES
    if name in WHOLLY or case in EVERYWHERE
]
SERVERS = [
    pytest.param(name, marks=[NEEDS_UVLOOP] if "uvloop" in name else [])
    for name in (*UVICORN, *HYPERCORN)
]


def what_is_told(world: World, case: str, place: Place) -> tuple[Row, Row]:
    """What the record says, and what it is to say."""
    truth, record = world.visit(case)
    mark: Mark = MARKS[place.mark or case]
    traced = place.traced and place.method is not None and truth["trace_id"] is not None
    return told(record, mark), expected(mark) | {
        "route": place.route,
        "method": place.method,
        "background": None if place.method is None else place.background,
        "request.trace_id": truth["trace_id"] if traced else None,
        "request.span_id": world.own_span(truth, place) if traced else None,
        "trace_id": truth["trace_id"] if traced else None,
        "span_id": truth["span_id"] if traced else None,
        "phase": place.phase,
        "pid": world.pid,
        "uvloop": "uvloop" in world.name,
    }


@pytest.mark.parametrize("name, case", CASES)
def test_the_record_says_what_blocked_and_for_whom(world: World, case: str) -> None:
    """Line, function, route, method, trace and span are those of the truth, wherever the line stands."""
    place = PLACES[case]
    record, truth = what_is_told(world, case, place)
    assert record == truth
    if place.traced and place.method is not None:
        assert record["request.span_id"] is not None


@pytest.mark.parametrize("name", SERVERS)
def test_each_place_is_told_once_and_nothing_else(world: World) -> None:
    """Every record belongs to a place that blocked, and none has two."""
    world.visit("later")
    time.sleep(0.3)  # a second record of the last place would be out by now
    truths = read_rows(world.server.truth)
    records = [
        row
        for row in read_rows(world.server.jsonl)
        if not (row["ongoing"] or row["cause"] == "not_scheduled")
    ]
    owners = Counter(
        next((truth["case"] for truth in truths if belongs(record, truth)), "nobody")
        for record in records
    )
    assert owners == Counter(truth["case"] for truth in truths)


@pytest.mark.parametrize("telemetry", ["after", "fastapi"])
def test_an_error_handler_runs_for_its_request_whoever_traces_it(
    telemetry: str, tmp_path: Path
) -> None:
    """Also the one for all errors, which runs outside of all middleware; also in the application's first lifespan."""
    with begin("uvicorn-h11-asyncio", tmp_path, telemetry) as world:
        record, wanted = what_is_told(world, "unexpected", PLACES["unexpected"])
        assert record == wanted
        record, wanted = what_is_told(world, "startup", PLACES["startup"])
        assert record == wanted


# Last of all: it ends the server.
@pytest.mark.parametrize("name", SERVERS)
def test_the_end_of_the_lifespan_is_told_before_the_process_ends(world: World) -> None:
    """Although uvicorn ends by a signal, which lets no exit handler run."""
    world.client.close()
    world.stack.close()
    truth, record = world.told("shutdown")
    assert truth["trace_id"] is None
    place = Place(None, None, phase="shutdown")
    world.visits["shutdown"] = truth, record
    found, wanted = what_is_told(world, "shutdown", place)
    assert found == wanted
