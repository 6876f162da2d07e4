"""Which addresses an app has for GET: those that its visitors call, and that the index lists."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

_PARAMETER = re.compile(r"\{[^{}]*\}")


def get_paths(app: FastAPI) -> list[str]:
    """The paths of all GET routes, in the app's own order, with 1 for each parameter."""
    return list(dict.fromkeys(_PARAMETER.sub("1", template) for template in _templates(app.routes)))


def add_index(app: FastAPI) -> None:
    """Give the app a page that leads to its routes, unless it has one at / already."""
    paths = get_paths(app)
    if "/" in paths:
        return
    links = "".join(f'<li><a href="{html.escape(path)}">{html.escape(path)}</a>' for path in paths)
    page = f"<!doctype html><title>{html.escape(app.title)}</title><h1>{html.escape(app.title)}</h1><ul>{links}</ul>"

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page)


def _templates(routes: Iterable[Any], prefix: str = "") -> Iterator[str]:
    for route in _flat(routes):
        path = prefix + (getattr(route, "path", None) or "")
        if "GET" in (getattr(route, "methods", None) or ()):
            yield path
        else:
            # A mounted app has routes of its own.
            yield from _templates(getattr(route, "routes", None) or (), path)


def _flat(routes: Iterable[Any]) -> Iterable[Any]:
    """The routes with included routers resolved, which newer versions of FastAPI keep as one route."""
    try:
        from fastapi.routing import iter_route_contexts
    except ImportError:
        return routes
    return iter_route_contexts(list(routes))
