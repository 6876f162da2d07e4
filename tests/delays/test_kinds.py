"""Who is named, whatever kind of request it is, however it was served, and whatever telemetry there is."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

pytest.importorskip("fastapi", reason="needs the extra `fastapi`")
pytest.importorskip("opentelemetry.sdk", reason="needs the extra `otlp`")

from tests.delays.client import Asked, Connection, ask_after, close_all, connections
from tests.delays.scenes import (
    HELD,
    SETTLED,
    Scene,
    play,
    record_of,
    rows_of,
    spans_of,
    truth_of,
    warm,
)
from tests.places.servers import HYPERCORN, serve
from tests.real.conftest import NEEDS_UVLOOP
from tests.real.server import Child, Row, Server, read_rows, wait_until

pytest.importorskip("uvicorn", reason="needs the extra `demo`")

APP = "tests.delays.app:app"
READY = {
    "middleware": "/tick/2000",
    "mounted": "/tenants/acme/tick/2000",
    "stream": "/stream/2000",
    "fails": "/fails/2000",
    "gather": "/gather/2000",
    "thread": "/thread/900",
}
ROUTES = {
    "middleware": "/tick/{milliseconds}",
    "mounted": "/tenants/{tenant}/tick/{milliseconds}",
    "stream": "/stream/{milliseconds}",
    "fails": "/fails/{milliseconds}",
    "gather": "/gather/{milliseconds}",
    "thread": "/thread/{milliseconds}",
}
CULPRIT = f"/hold/{HELD * 1000:.0f}?after=400&rest=300"


def scene_on(server: Server, joined: bool) -> Scene:
    """One of each kind, two WebSockets, a client that goes away, two that are pipelined, and some unsampled.

    `joined`: the second of pipelined requests runs in the context of the first, whose trace it continues.
    """
    flying = {kind: Asked(path) for kind, path in READY.items()}
    flying["unsampled"] = Asked("/tick/2000", sampled=False)
    innocent = [Asked("/wait/2500"), Asked("/wait/2500", sampled=False)]
    queued = {
        "get": Asked("/quick/1"),
        "post": Asked("/quick/2", "POST", b"x" * 500),
        "upload": Asked("/quick/3", "POST", b"x" * 100_000),
        "unsampled in queue": Asked("/quick/4", sampled=False),
        "not found": Asked("/nothing/4711"),
    }
    pipelined = Asked("/quick/5"), Asked("/quick/6")
    gone = Asked("/tick/5000")
    culprit = Asked(CULPRIT)

    async def ask() -> None:
        await warm(server.url)
        address = server.url.replace("http://", "ws://") + "/socket"
        async with connect(address, proxy=None), connect(address, proxy=None):
            going = asyncio.create_task(go_away(server, gone))
            two = asyncio.create_task(pipeline(server, pipelined))
            await play(server, culprit, [*flying.values(), *innocent], list(queued.values()))
            await going
            await two

    asyncio.run(ask())
    truth = truth_of(server)
    record = record_of(server, truth)
    spans = spans_of(server, record)
    if joined:
        pipelined[1].trace_id = pipelined[0].trace_id
    waited = {kind: [each] for kind, each in (flying | queued).items()}
    waited["pipelined"] = list(pipelined)
    waited["gone"] = [gone]
    return Scene(culprit, waited, {"wait": innocent}, truth, record, spans, [])


async def go_away(server: Server, gone: Asked) -> None:
    """In flight as the loop is held, and by then there is no client any more."""
    connection = await Connection(server.url).open()
    asking = asyncio.create_task(connection.ask(gone))
    await begun(server)
    asking.cancel()
    connection.close()


async def pipeline(server: Server, pipelined: tuple[Asked, ...]) -> None:
    """Both in one piece: the second waits for the first too, and both for the loop."""
    connection = await Connection(server.url).open()
    await begun(server)
    await asyncio.sleep(0.4 * HELD)
    await connection.ask(*pipelined)
    connection.close()


async def begun(server: Server) -> None:
    while not rows_of(server.starts, "begins"):
        await asyncio.sleep(0.005)


@pytest.fixture(
    scope="module",
    params=[
        ("uvicorn-h11-asyncio", "fastapi"),
        pytest.param(("uvicorn-httptools-uvloop", "contrib"), marks=NEEDS_UVLOOP),
    ],
    ids="-".join,
)
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    name, telemetry = request.param
    with serve(tmp_path_factory.mktemp(name), APP, name, telemetry=telemetry) as server:
        return scene_on(server, joined="httptools" in name and telemetry == "contrib")


def listed(scene: Scene) -> dict[str, Row]:
    return {each["trace_id"]: each for each in scene.record["delayed"]}


def test_each_kind_is_named_and_no_other(scene: Scene) -> None:
    found = listed(scene)
    for kind, those in scene.waited.items():
        for asked in those:
            assert asked.trace_id in found, kind
    waited = [asked.trace_id for those in scene.waited.values() for asked in those]
    assert sorted(each["trace_id"] for each in scene.record["delayed"]) == sorted(waited)
    assert scene.record["delayed_requests"] == len(waited)


def test_each_is_told_with_its_route_and_as_what_it_was(scene: Scene) -> None:
    found = listed(scene)
    for kind, route in ROUTES.items():
        [asked] = scene.waited[kind]
        told = found[asked.trace_id]
        assert (told["route"], told["method"]) == (route, "GET"), kind
        assert (told["ready"], told["queued"], told["exact"]) == (True, False, False)
    for kind in ("get", "post", "upload"):
        [asked] = scene.waited[kind]
        told = found[asked.trace_id]
        assert (told["route"], told["method"]) == ("/quick/{item}", asked.method)
        assert (told["ready"], told["queued"]) == (None, True)
    assert found[scene.waited["not found"][0].trace_id]["route"] is None


def test_of_a_long_upload_it_is_not_known_since_when_it_waited(scene: Scene) -> None:
    found = listed(scene)
    assert found[scene.waited["get"][0].trace_id]["exact"]
    assert found[scene.waited["post"][0].trace_id]["exact"]
    upload = found[scene.waited["upload"][0].trace_id]
    assert (upload["exact"], upload["delay"]) == (False, scene.record["duration"])


def test_websockets_are_counted_apart(scene: Scene) -> None:
    assert scene.record["open_connections"] == 2
    in_flight = len(READY) + 1 + 2 + 1  # those that tick, two that wait, and the one that has gone
    assert scene.record["in_flight"] == in_flight


def test_every_sampled_one_has_a_span_and_no_other(scene: Scene) -> None:
    sampled = [a for those in scene.waited.values() for a in those if a.sampled]
    assert sorted(span["trace_id"] for span in scene.delays) == sorted(a.trace_id for a in sampled)


def test_links_lead_to_sampled_spans_only(scene: Scene) -> None:
    sent = {span["span_id"] for span in scene.spans}
    linked = [link["span_id"] for span in scene.spans for link in span["links"]]
    assert linked
    assert set(linked) <= sent


def test_no_span_of_a_request_is_left_open(scene: Scene) -> None:
    """Each that was begun has been sent; of a failed request too."""
    own = [span["trace_id"] for span in scene.spans if span["kind"] == "SERVER"]
    for kind in ("fails", "stream", "pipelined", "upload"):
        for asked in scene.waited[kind]:
            assert asked.trace_id in own


@pytest.fixture(
    scope="module",
    params=["hypercorn-asyncio", pytest.param("hypercorn-uvloop", marks=NEEDS_UVLOOP)],
)
def hypercorn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Row:
    pytest.importorskip("hypercorn", reason="not installed")
    assert request.param in HYPERCORN
    with serve(
        tmp_path_factory.mktemp(request.param), APP, request.param, telemetry="none"
    ) as server:

        async def ask() -> None:
            await warm(server.url)
            queued = [Asked(f"/quick/{number}") for number in range(5)]
            await play(server, Asked(CULPRIT), [Asked("/tick/2000"), Asked("/wait/2000")], queued)

        asyncio.run(ask())
        return record_of(server, truth_of(server))


def test_where_connections_cannot_be_asked_the_record_says_so(hypercorn: Row) -> None:
    """And names those in flight all the same, but nobody whose wait would be a guess."""
    assert [each["route"] for each in hypercorn["delayed"]] == ["/tick/{milliseconds}"]
    assert hypercorn["delayed_complete"] is None
    assert hypercorn["in_flight"] == 2


def test_behind_a_unix_socket_it_is_the_same(tmp_path: Path) -> None:
    """As where a proxy on the same machine hands on the requests."""
    path = tmp_path / "socket"
    variables = {f"REAL_{name}": str(tmp_path / name) for name in ("JSONL", "TRUTH", "STARTS")}
    for file in variables.values():
        Path(file).touch()
    child = Child(
        ["-m", "uvicorn", APP, "--uds", str(path), "--no-access-log"],
        tmp_path / "log",
        {**variables, "REAL_TELEMETRY": "none", "REAL_SPANS": os.devnull},
    )
    try:
        child.wait_for("(running on unix)")

        async def ask() -> None:
            transport = httpx.AsyncHTTPTransport(uds=str(path))
            async with httpx.AsyncClient(transport=transport, timeout=30) as client:
                asking = asyncio.create_task(client.get("http://test/hold/400?after=100&rest=300"))
                await asyncio.sleep(0.2)
                await client.get("http://test/quick/1")
                await asking

        asyncio.run(ask())

        def final() -> list[Row]:
            return [row for row in read_rows(tmp_path / "JSONL") if row["call"] == "time.sleep"]

        assert wait_until(lambda: bool(final()), SETTLED), child.read()
        assert final()[-1]["delayed"] == []
        assert not final()[-1][
            "delayed_complete"
        ]  # null, once a request has begun that could not be asked
    finally:
        child.stop()


NO_FAREWELL = struct.pack(
    "ii", 1, 0
)  # what SO_LINGER takes for: reset the connection as it is closed
RATE = 400
LONG = 1.0


def test_of_a_long_backlog_the_record_says_that_it_is_not_complete_and_spans_name_all(
    tmp_path: Path,
) -> None:
    """At 400 requests a second through a stall of one second, by a service that works a little for each."""
    queued = [Asked("/busy/2") for _ in range(int(RATE * LONG * 0.9))]
    culprit = Asked(f"/hold/{LONG * 1000:.0f}?after=300&rest=300")
    with serve(tmp_path, APP, "uvicorn-h11-asyncio", telemetry="contrib") as server:

        async def ask() -> None:
            await warm(server.url)
            made = await connections(server.url, len(queued) + 1)
            asking = [asyncio.create_task(made[-1].ask(culprit))]
            await begun(server)
            asking += [
                asyncio.create_task(ask_after(0.03 + number / RATE, each, asked))
                for number, (each, asked) in enumerate(zip(made, queued, strict=False))
            ]
            await asyncio.gather(*asking)
            close_all(made)

        asyncio.run(ask())
        truth = truth_of(server)
        record = record_of(server, truth)
        spans = spans_of(server, record, late=2.0)
    scene = Scene(culprit, {"queued": queued}, {}, truth, record, spans, [])
    scene.settle()
    sure = scene.waited["queued"]
    assert len(sure) >= RATE // 2
    named = {span["trace_id"] for span in scene.delays}
    missed = [each.sent - truth["entered"] for each in sure if each.trace_id not in named]
    assert missed == []
    assert record["delayed_complete"] is False
    assert record["delayed_requests"] <= len(named)
    assert len(record["delayed"]) == min(100, record["delayed_requests"])


def test_a_connection_that_is_reset_in_the_queue_harms_nothing(
    tmp_path: Path,
) -> None:
    """Its request may begin or not; there is no trouble, and the others are named."""
    with serve(tmp_path, APP, "uvicorn-h11-asyncio", telemetry="contrib") as server:
        host, _, port = server.url.removeprefix("http://").partition(":")

        async def ask() -> None:
            await warm(server.url)
            one = Asked("/quick/one")
            playing = asyncio.create_task(play(server, Asked(CULPRIT), [], [one]))
            await begun(server)
            await asyncio.sleep(0.2 * HELD)
            with socket.create_connection((host, int(port))) as gone:
                gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_FAREWELL)
                gone.sendall(Asked("/quick/gone").head())
            await playing

        asyncio.run(ask())
        record = record_of(server, truth_of(server))
        stats = json.loads(httpx.get(f"{server.url}/stats", trust_env=False).text)
    assert stats["troubles"] == 0
    assert record["delayed_requests"] in (1, 2)
