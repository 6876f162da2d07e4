"""A Django application behind `loopguard.wrap`, which holds its loop in its common places."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import include, path
from django.utils.decorators import async_only_middleware
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

import loopguard
from tests.places.blocks import BLOCK, trace_to_file
from tests.real.truth import Held


async def ready(_request: HttpRequest) -> HttpResponse:
    return HttpResponse("ready")


async def handler(_request: HttpRequest, tenant: str, item: int) -> HttpResponse:
    with Held("handler"):
        time.sleep(BLOCK)  # blocks handler: time.sleep, blocking_call
    return HttpResponse(str(item))


async def plain(_request: HttpRequest, tenant: str, item: int) -> HttpResponse:
    return HttpResponse(str(item))


async def chunks() -> AsyncIterator[bytes]:
    yield b"first"
    with Held("stream"):
        time.sleep(BLOCK)  # blocks stream: time.sleep, blocking_call
    yield b"last"


async def streams(_request: HttpRequest, tenant: str, item: int) -> StreamingHttpResponse:
    return StreamingHttpResponse(chunks())


async def with_a_child(_request: HttpRequest, tenant: str, item: int) -> HttpResponse:
    async def nap() -> None:
        with Held("child"):
            time.sleep(BLOCK)  # blocks child: time.sleep, blocking_call

    await asyncio.gather(asyncio.sleep(0), nap())
    return HttpResponse(str(item))


@async_only_middleware  # type: ignore[untyped-decorator]
def middleware(
    get_response: Callable[[HttpRequest], Awaitable[Any]],
) -> Callable[[HttpRequest], Awaitable[Any]]:
    async def around(request: HttpRequest) -> Any:
        if "/before/" in request.path:
            with Held("before"):
                time.sleep(BLOCK)  # blocks before: time.sleep, blocking_call
        if "/nothing/" in request.path:
            with Held("not_found"):
                time.sleep(BLOCK)  # blocks not_found: time.sleep, blocking_call
        return await get_response(request)

    return around


v1 = [
    path("handler/<int:item>", handler),
    path("before/<int:item>", plain),
    path("stream/<int:item>", streams),
    path("child/<int:item>", with_a_child),
]
urlpatterns = [path("ready", ready), path("v1/<str:tenant>/", include(v1))]

trace_to_file()
settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["127.0.0.1"],
    SECRET_KEY="for tests",
    MIDDLEWARE=[f"{__name__}.middleware"],
)
django.setup()
inside = get_asgi_application()
app = loopguard.wrap(OpenTelemetryMiddleware(inside), jsonl=os.environ["REAL_JSONL"])
