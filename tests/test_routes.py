"""The template of the route that serves a request: real applications, asked as a server asks them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route, Router

from loopguard.evidence import Scope
from loopguard.explain.routes import route_template
from loopguard.integrations.asgi import StarletteApp, WrappedApp

pytestmark = pytest.mark.core

Inside = Callable[[Scope], None]


class Copying:
    """A middleware that hands on a copy of the scope, so that the router writes its route elsewhere."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        await self.app(dict(scope), receive, send)


class World:
    """An application, and what was found for each request while its endpoint ran."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.scope: Scope = {}
        self.found: str | None = "no endpoint ran"

    def look(self) -> None:
        self.found = route_template(self.app.routes, self.scope)

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        root_path: str = "",
        websocket: bool = False,
        host: str = "localhost",
    ) -> str | None:
        """The template as of the time that the endpoint runs; where none runs, as of the end."""
        self.found = "no endpoint ran"
        self.scope = {
            "type": "websocket" if websocket else "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": root_path,
            "headers": [(b"host", host.encode())],
            "query_string": b"secret=1",
            "scheme": "ws" if websocket else "http",
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "http_version": "1.1",
            "asgi": {"version": "3.0"},
            "subprotocols": [],
        }
        if not websocket:
            self.scope["method"] = method
        asyncio.run(self._serve())
        if self.found == "no endpoint ran":
            self.look()
        return self.found

    async def _serve(self) -> None:
        first = "websocket.connect" if self.scope["type"] == "websocket" else "http.request"
        messages = [{"type": first, "body": b""}]

        async def receive() -> Any:
            return messages.pop() if messages else {"type": "http.disconnect"}

        async def send(_message: Any) -> None:
            pass

        await self.app(self.scope, receive, send)


def shop(*middleware: Any) -> World:
    """Routes in every way that FastAPI has: plain, included with prefixes, twice, mounted, below parameters."""
    app = FastAPI()
    world = World(app)

    async def endpoint() -> str:
        world.look()
        return "ok"

    inner = APIRouter(prefix="/in")
    inner.add_api_route("/{k}", endpoint)
    outer = APIRouter()
    outer.add_api_route("/users/{user_id:int}", endpoint)
    outer.add_api_route("/users/{user_id:int}", endpoint, methods=["DELETE"])
    outer.include_router(inner, prefix="/deep")
    app.include_router(outer, prefix="/v1")
    app.include_router(outer, prefix="/v2/{tenant}")
    app.add_api_route("/", endpoint)
    app.add_api_route("/plain", endpoint)
    app.add_api_route("/files/{path:path}", endpoint)

    @app.websocket("/ws/{room}")
    async def chat(websocket: WebSocket) -> None:
        world.look()
        await websocket.accept()
        await websocket.close()

    async def starlette_endpoint(_request: Any) -> PlainTextResponse:
        world.look()
        return PlainTextResponse("ok")

    reports = Router(
        [
            Route("/reports/{item}", starlette_endpoint),
            Mount("/years/{year}", Router([Route("/{month}", starlette_endpoint)])),
        ]
    )
    app.mount("/tenants/{tenant}", reports)
    sub = FastAPI()
    sub.add_api_route("/items/{item}", endpoint)
    sub.include_router(outer, prefix="/included")
    app.mount("/sub", sub)
    for kind in middleware:
        app.add_middleware(kind)
    return world


TEMPLATES = {
    "/": "/",
    "/plain": "/plain",
    "/files/a/b/c.txt": "/files/{path:path}",
    "/v1/users/42": "/v1/users/{user_id:int}",
    "/v2/acme/users/42": "/v2/{tenant}/users/{user_id:int}",
    "/v1/deep/in/key": "/v1/deep/in/{k}",
    "/v2/acme/deep/in/key": "/v2/{tenant}/deep/in/{k}",
    "/tenants/acme/reports/7": "/tenants/{tenant}/reports/{item}",
    "/tenants/acme/years/2024/5": "/tenants/{tenant}/years/{year}/{month}",
    "/sub/items/7": "/sub/items/{item}",
    "/sub/included/users/7": "/sub/included/users/{user_id:int}",
    "/sub/included/deep/in/key": "/sub/included/deep/in/{k}",
}


@pytest.fixture(scope="module", params=["as it is", "with a copied scope"])
def world(request: pytest.FixtureRequest) -> World:
    return shop() if request.param == "as it is" else shop(Copying)


@pytest.mark.parametrize("path", TEMPLATES)
def test_the_template_has_the_prefixes_of_all_routers_and_mounts(world: World, path: str) -> None:
    """Also where a middleware has copied the scope, and hides what the router wrote."""
    assert world.ask(path) == TEMPLATES[path]


@pytest.mark.parametrize("root_path", ["/api", "/api/v9"])
@pytest.mark.parametrize("path", TEMPLATES)
def test_the_root_path_of_a_proxy_is_no_part_of_it(world: World, path: str, root_path: str) -> None:
    """The server puts it in front of the path, as ASGI has it."""
    assert world.ask(root_path + path, root_path=root_path) == TEMPLATES[path]


@pytest.mark.parametrize("path", ["/plain", "/v1/users/42", "/tenants/acme/reports/7"])
def test_a_root_path_that_the_server_has_cut_off_is_no_part_of_it(world: World, path: str) -> None:
    """As older servers and test clients do."""
    assert world.ask(path, root_path="/api") == TEMPLATES[path]


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/v1", "/v1/users/x", "/tenants/acme/nothing", "/sub/nothing", "/wp-admin.php"],
)
def test_what_matches_nothing_has_no_template(world: World, path: str) -> None:
    assert world.ask(path) is None


def test_the_method_tells_routes_of_one_path_apart(world: World) -> None:
    assert world.ask("/v1/users/42", method="DELETE") == "/v1/users/{user_id:int}"


def test_a_websocket_has_the_template_of_its_route(world: World) -> None:
    assert world.ask("/ws/lobby", websocket=True) == "/ws/{room}"


def starlette_world(*routes: Callable[[Any], Any]) -> World:
    async def endpoint(_request: Any) -> PlainTextResponse:
        made.look()
        return PlainTextResponse("ok")

    made = World(Starlette(routes=[route(endpoint) for route in routes]))
    return made


def test_a_starlette_application_has_templates_too() -> None:
    made = starlette_world(lambda endpoint: Mount("/a", routes=[Route("/{b}", endpoint)]))
    assert made.ask("/a/1") == "/a/{b}"


def test_a_route_behind_a_host_has_its_path() -> None:
    made = starlette_world(
        lambda endpoint: Host("{tenant}.example.org", Router([Route("/things/{x}", endpoint)])),
        lambda endpoint: Mount("/", Router([Route("/others/{y}", endpoint)])),
    )
    assert made.ask("/things/1", host="acme.example.org") == "/things/{x}"
    assert made.ask("/others/1", host="example.org") == "/others/{y}"


def test_what_another_framework_wrote_into_the_scope_is_taken() -> None:
    """Litestar writes the template itself."""
    scope = {"type": "http", "path": "/a/1", "path_template": "/a/{b}"}
    assert route_template([], scope) == "/a/{b}"


def test_an_application_in_another_wrapper_has_the_template_of_the_scope_alone() -> None:
    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        pass

    assert WrappedApp(app).packages() == {__name__.partition(".")[0]}


def test_the_packages_are_those_of_the_endpoints_and_not_of_the_framework() -> None:
    assert StarletteApp(shop().app).packages() == {__name__.partition(".")[0]}
