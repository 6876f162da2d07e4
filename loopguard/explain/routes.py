"""Which route a request is served by, as its template: from its ASGI scope and the routes of the application."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import Context
from typing import Any


def flat(routes: Iterable[Any]) -> Iterable[Any]:
    """Routes, with those of included routers under their whole path (FastAPI keeps them apart since 0.12x)."""
    for route in routes:
        expand = getattr(route, "effective_route_contexts", None)
        if callable(expand):
            yield from expand()
        else:
            yield route


def route_template(routes: Iterable[Any], scope: Mapping[str, Any]) -> str | None:
    """The template of the route that serves a request, with the prefixes of routers and mounts; never its raw path.

    None where nothing matched.
    """
    root = str(scope.get("root_path", ""))
    outer = str(scope.get("app_root_path", root))
    path = str(scope.get("path", "")).removeprefix(outer)
    mounted = len(root) - len(outer)
    own = path_of(scope)
    if own is None:
        return _matching(routes, path, scope.get("method"))
    return _mounts(routes, path, mounted) + own if mounted > 0 else own


def path_of(scope: Mapping[str, Any]) -> str | None:
    template = scope.get("path_template")  # as Litestar has it
    if isinstance(template, str):
        return template
    route = scope.get("route")
    effective = scope.get("fastapi", {}).get("effective_route_context")
    if effective is not None and getattr(effective, "original_route", None) is route:
        route = effective
    path = getattr(route, "path", None)
    return path if isinstance(path, str) and not hasattr(route, "routes") else None


def rule_in(context: Context) -> str | None:
    """The rule that Quart serves a request by, as it stands in the context of code that runs for it.

    Only instances' own attributes are read: none of the user's code runs.
    """
    for variable, value in context.items():
        for name in _QUART.get(variable.name, ()):
            request = _own(value, name)
            rule = _own(_own(request, "url_rule"), "rule")
            if isinstance(rule, str):
                return rule
    return None


# Quart's variables, and the attributes under which their value has the request: until 0.22, and since.
_QUART = {
    "quart.request_ctx": ("request_websocket",),
    "quart.websocket_ctx": ("request_websocket",),
    "quart.app_ctx": ("_request", "_websocket"),
}


def _own(owner: object, name: str) -> object:
    try:
        return object.__getattribute__(owner, "__dict__").get(name)
    except (AttributeError, TypeError):
        return None


def _mounts(routes: Iterable[Any], path: str, length: int) -> str:
    """The templates of the mounts that make up the first `length` characters of `path`."""
    for route in routes:
        inner, remaining = _enter_mount(route, path)
        if remaining is None:
            continue
        consumed = len(path) - len(remaining)
        if consumed >= length:
            return str(route.path)
        return str(route.path) + _mounts(inner, remaining, length - consumed)
    return ""


def _enter_mount(route: Any, path: str) -> tuple[Iterable[Any], str | None]:
    """The routes inside a mount that `path` leads into, and the rest of the path; None if it does not."""
    inner, regex = getattr(route, "routes", None), getattr(route, "path_regex", None)
    if inner is None or regex is None:
        return (), None
    match = regex.match(path)
    if match is None or "path" not in match.groupdict():
        return (), None
    return inner, "/" + match.groupdict()["path"]


def _matching(routes: Iterable[Any], path: str, method: Any) -> str | None:
    """The route that the path leads to, where the scope does not say: a middleware may have copied the scope."""
    for route in flat(routes):
        inner, remaining = _enter_mount(route, path)
        if remaining is not None:
            found = _matching(inner, remaining, method)
            if found is not None:
                return f"{route.path}{found}"
            continue
        regex, methods = getattr(route, "path_regex", None), getattr(route, "methods", None)
        if (
            regex is not None
            and regex.match(path)
            and (method is None or not methods or method in methods)
        ):
            return str(route.path)
    return None
