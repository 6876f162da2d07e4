"""A FastAPI application that holds its loop in every place where a request's code can run."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import (
    APIRouter,
    BackgroundTasks,
    Depends,
    FastAPI,
    HTTPException,
    Request,
    Response,
    WebSocket,
)
from fastapi.responses import PlainTextResponse, StreamingResponse
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from pydantic import BaseModel, field_validator
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import Response as StarletteResponse

import loopguard
from tests.places.blocks import BLOCK, trace_to_file
from tests.real.truth import Held

tracer = trace.get_tracer(__name__)
ring = asyncio.Event()


async def outside() -> None:
    """Runs beside all requests: started in the lifespan, and told to go on by a request."""
    while True:
        await ring.wait()
        ring.clear()
        await asyncio.sleep(0.02)
        with Held("outside", resumed=True):
            time.sleep(BLOCK)  # blocks outside: time.sleep, blocking_call


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    with Held("startup"):
        time.sleep(BLOCK)  # blocks startup: time.sleep, blocking_call
    task = asyncio.create_task(outside())
    yield
    task.cancel()
    await asyncio.sleep(0)
    with Held("shutdown", resumed=True):
        time.sleep(BLOCK)  # blocks shutdown: time.sleep, blocking_call


class AskedError(Exception):
    pass


class UnexpectedError(Exception):
    pass


def in_the_error_handler() -> Response:
    with Held("unexpected"):
        time.sleep(BLOCK)  # blocks unexpected: time.sleep, blocking_call
    return PlainTextResponse("sorry", 500)


async def handle_asked(_request: Request, _error: Exception) -> Response:
    with Held("exception"):
        time.sleep(BLOCK)  # blocks exception: time.sleep, blocking_call
    return PlainTextResponse("asked for")


async def handle_unexpected(_request: Request, _error: Exception) -> Response:
    return in_the_error_handler()


async def handle_not_found(_request: Request, _error: Exception) -> Response:
    with Held("not_found"):
        time.sleep(BLOCK)  # blocks not_found: time.sleep, blocking_call
    return PlainTextResponse("nothing", 404)


Next = Callable[[Request], Awaitable[StarletteResponse]]


class Middleware(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Next) -> StarletteResponse:
        if request.url.path.endswith("/before"):
            with Held("before"):
                time.sleep(BLOCK)  # blocks before: time.sleep, blocking_call
        if request.url.path.endswith("/lost.php"):
            with Held("lost"):
                time.sleep(BLOCK)  # blocks lost: time.sleep, blocking_call
        response = await call_next(request)
        if request.url.path.endswith("/after"):
            with Held("after", resumed=True):
                time.sleep(BLOCK)  # blocks after: time.sleep, blocking_call
        return response


class Behind:
    """Leads some paths through a `BaseHTTPMiddleware`, which runs what is behind it in a task of its own."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.middleware = Middleware(app)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        behind = "/behind/" in path or path.endswith("/lost.php")
        await (self.middleware if behind else self.app)(scope, receive, send)


api = APIRouter(prefix="/v1")
places = APIRouter(prefix="/places/{tenant}")


@places.get("/behind/{item}")
async def behind(item: str) -> str:
    if item == "handler":
        with Held("behind"):
            time.sleep(BLOCK)  # blocks behind: time.sleep, blocking_call
    return item


@places.get("/behind/{item}/background")
async def behind_background(item: str, tasks: BackgroundTasks) -> str:
    tasks.add_task(afterwards, "behind_background")
    return item


async def innermost() -> str:
    await asyncio.sleep(0)
    with Held("dependency", resumed=True):
        time.sleep(BLOCK)  # blocks dependency: time.sleep, blocking_call
    return "innermost"


async def middle(inner: Annotated[str, Depends(innermost)]) -> AsyncIterator[str]:
    yield inner
    await asyncio.sleep(0)


async def outermost(inner: Annotated[str, Depends(middle)]) -> str:
    return inner


async def quick() -> AsyncIterator[str]:
    yield "quick"


@places.get("/dependency/{item}")
async def with_dependencies(inner: Annotated[str, Depends(outermost)]) -> str:
    return inner


async def closing() -> AsyncIterator[str]:
    yield "opened"
    with Held("closing"):
        time.sleep(BLOCK)  # blocks closing: time.sleep, blocking_call


@places.get("/closing/{item}")
async def with_something_to_close(opened: Annotated[str, Depends(closing)]) -> str:
    return opened


class Order(BaseModel):
    word: str

    @field_validator("word")
    @classmethod
    def check(cls, word: str) -> str:
        with Held("validator"):
            time.sleep(BLOCK)  # blocks validator: time.sleep, blocking_call
        return word


@places.post("/validator/{item}")
async def with_a_body(order: Order) -> str:
    return order.word


@places.get("/exception/{item}")
async def raises(item: str) -> str:
    raise AskedError(item)


@places.get("/unexpected/{item}")
async def fails(item: str) -> str:
    raise UnexpectedError(item)


async def chunks(item: str) -> AsyncIterator[str]:
    yield item
    await asyncio.sleep(0.02)
    with Held("stream", resumed=True):
        time.sleep(BLOCK)  # blocks stream: time.sleep, blocking_call
    yield item


@places.get("/stream/{item}")
async def streams(item: str) -> StreamingResponse:
    return StreamingResponse(chunks(item))


async def afterwards(case: str) -> None:
    with Held(case):
        time.sleep(BLOCK)  # blocks afterwards: time.sleep, blocking_call


async def twice(case: str) -> None:
    await asyncio.gather(asyncio.sleep(0), afterwards(case))


@places.get("/background/{item}")
async def leaves_work(item: str, tasks: BackgroundTasks) -> str:
    tasks.add_task(afterwards, "background")
    return item


@places.get("/response_background/{item}")
async def leaves_work_with_a_response(item: str) -> Response:
    task = BackgroundTask(afterwards, "response_background")
    return PlainTextResponse(item, background=task)


@places.get("/child_background/{item}")
async def leaves_work_to_child_tasks(item: str, tasks: BackgroundTasks) -> str:
    tasks.add_task(twice, "child_background")
    return item


@places.websocket("/socket/{item}")
async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    async for message in websocket.iter_text():
        with Held("socket"):
            time.sleep(BLOCK)  # blocks socket: time.sleep, blocking_call
        await websocket.send_text(message)


async def child(case: str) -> None:
    with tracer.start_as_current_span("child"), Held(case):
        time.sleep(BLOCK)  # blocks child: time.sleep, blocking_call


@places.get("/gather/{item}")
async def gathers(item: str) -> str:
    await asyncio.gather(asyncio.sleep(0), child("gather"))
    return item


@places.get("/group/{item}")
async def groups(item: str) -> str:
    async with asyncio.TaskGroup() as group:
        group.create_task(child("group"))
    return item


@places.get("/soon/{item}")
async def soon(item: str) -> str:
    done = asyncio.Event()

    def nap() -> None:
        with Held("soon", resumed=True):
            time.sleep(BLOCK)  # blocks soon: time.sleep, blocking_call
        done.set()

    asyncio.get_running_loop().call_soon(nap)
    await done.wait()
    return item


@places.get("/later/{item}")
async def later(item: str) -> str:
    done = asyncio.Event()

    def nap() -> None:
        with Held("later", resumed=True):
            time.sleep(BLOCK)  # blocks later: time.sleep, blocking_call
        done.set()

    asyncio.get_running_loop().call_later(0.02, nap)
    await done.wait()
    return item


@places.post("/upload/{item}")
async def upload(request: Request) -> int:
    return len(await request.body())


@places.post("/uploaded/{item}")
async def held_upload(request: Request) -> int:
    body = await request.body()
    with Held("uploaded", resumed=True):
        time.sleep(BLOCK)  # blocks uploaded: time.sleep, blocking_call
    return len(body)


@places.get("/next/{item}")
async def next_on_the_connection(item: str) -> str:
    with Held("next"):
        time.sleep(BLOCK)  # blocks next: time.sleep, blocking_call
    return item


@places.get("/untraced/{item}")
async def untraced(item: str) -> str:
    with Held("untraced"):
        time.sleep(BLOCK)  # blocks untraced: time.sleep, blocking_call
    return item


@places.get("/forbidden/{item}")
async def forbidden(item: str) -> str:
    raise HTTPException(403, item)


@places.get("/ring/{item}")
async def rings(item: str) -> str:
    ring.set()
    return item


@places.get("/ready/{item}")
async def ready(_inner: Annotated[str, Depends(quick)]) -> int:
    return os.getpid()


mounted = FastAPI()
inner = APIRouter(prefix="/reports")


@inner.get("/{item}")
async def report(item: str) -> str:
    with Held("mounted"):
        time.sleep(BLOCK)  # blocks mounted: time.sleep, blocking_call
    return item


mounted.include_router(inner, prefix="/years/{year}")

trace_to_file()
app = FastAPI(lifespan=lifespan)
api.include_router(places)
app.include_router(api, prefix="/api")
app.mount("/tenants/{tenant}", mounted)
app.add_middleware(Behind)
app.add_exception_handler(AskedError, handle_asked)
app.add_exception_handler(404, handle_not_found)
app.add_exception_handler(Exception, handle_unexpected)

TELEMETRY = os.environ["REAL_TELEMETRY"]
if TELEMETRY == "before":
    FastAPIInstrumentor.instrument_app(app, excluded_urls="untraced")
loopguard.install(app, jsonl=os.environ["REAL_JSONL"])
if TELEMETRY == "after":
    FastAPIInstrumentor.instrument_app(app, excluded_urls="untraced")
