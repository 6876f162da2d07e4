"""One performance of the demo: the app on a real server, guarded as the docs say, and visitors who call its routes."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

import loopguard
from loopguard.cli.demo import JAEGER
from loopguard.cli.demo.backends import start_backends
from loopguard.cli.demo.children import Child
from loopguard.cli.demo.records import Records, RecordsError
from loopguard.cli.demo.routes import add_index, get_paths
from loopguard.cli.demo.show import screen, show_findings, show_log
from loopguard.cli.demo.signals import Stopped, signals, unwind
from loopguard.cli.demo.traces import TracesError, start_traces
from loopguard.tell.printable import printable

# How many visitors walk through all routes at a time: one alone, then two who get into each other's way.
PARTIES = (1, 2)
# Seconds after which nobody begins another call: the demo ends by itself, whatever the routes do.
CURTAIN = 11.0


def run_demo(
    app: FastAPI, *, jsonl: str | None = None, serve: bool = False, trace_url: str = JAEGER
) -> int:
    """Serve the app, let visitors call each of its GET routes, and show what loopguard found.

    Nothing is known in advance about the routes. `jsonl` None is a new file in the working directory, - is stdout.
    The exit code: 0, 2 with one line on stderr where something cannot be used, 128 + the signal that broke it off.
    """
    try:
        with signals(unwind), contextlib.ExitStack() as stack:
            _perform(app, Records(jsonl), serve, trace_url, stack)
    except (
        loopguard.ConfigError,
        loopguard.AlreadyInstalledError,
        RecordsError,
        TracesError,
    ) as error:
        print(f"loopguard demo: {printable(str(error))}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        return 0 if serve else stopped.code
    return 0


def load_shop() -> FastAPI:
    """The demo's app, as a program of its own: in a module of loopguard it would not count as a user's code."""
    spec = importlib.util.spec_from_file_location("shop", Path(__file__).with_name("shop.py"))
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    app: FastAPI = module.app
    return app


def _perform(
    app: FastAPI, records: Records, serve: bool, trace_url: str, stack: contextlib.ExitStack
) -> None:
    """Start everything, in an order that `stack` can undo, and serve."""
    began = time.monotonic()
    show_log()
    console = screen(records.stage)
    traces = start_traces(app, console, stack)
    guard = stack.enter_context(loopguard.install(app, jsonl=records.path, on_stall=records))
    start_backends(app, console, stack)
    door = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    port, paths = door.getsockname()[1], get_paths(app)
    if serve:
        add_index(app)
    plan = {"port": port, "paths": paths, "parties": PARTIES}
    visitors = stack.enter_context(
        Child("traffic.py", {**plan, "seconds": CURTAIN - (time.monotonic() - began)})
    )
    server = _Server(app, visitors)
    if server.config.loop != "uvloop":
        console.print("uvloop is not installed, so the app runs on asyncio's own loop.")
    console.print(f"Visitors call {len(paths)} routes: one visitor alone, then two at once.\n")

    def conclude() -> None:
        show_findings(console, records.stalls)
        if traces:
            traces.show(console, records.stalls, trace_url)
        console.print(f"\n{records}")
        if records.path:
            console.print(records.write_page(trace_url if traces else None))

    def when_visitors_left() -> None:
        calls = visitors.answer()
        if calls.get("failed"):
            console.print("{failed} of {calls} calls failed.".format(**calls))
        if calls and serve:
            guard.flush(1.0)
            conclude()
            console.print(f"\nOpen http://127.0.0.1:{port}/ for the routes. Ctrl-C ends it.")

    _serve(server, door, when_visitors_left, stay=serve)
    if not serve:
        guard.uninstall()
        conclude()


def _serve(
    server: _Server, door: socket.socket, when_visitors_left: Callable[[], None], stay: bool
) -> None:
    """Serve until the visitors have left, or, if it is to stay, until a signal comes."""

    def watch() -> None:
        try:
            when_visitors_left()
        finally:
            server.should_exit |= not stay

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with signals(server.handle_exit):
        server.run(sockets=[door])
    if server.stopped_by:
        raise Stopped(server.stopped_by)
    watcher.join()


class _Server(uvicorn.Server):
    """uvicorn, but when a signal comes, no further request begins: those that wait may hold the loop, one by one."""

    def __init__(self, app: FastAPI, visitors: Child) -> None:
        loop: Any = "uvloop" if importlib.util.find_spec("uvloop") else "asyncio"
        super().__init__(
            uvicorn.Config(
                self._admit,
                interface="asgi3",
                loop=loop,
                log_config=None,
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._app = app
        self._visitors = visitors
        self.stopped_by: int | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.stopped_by = sig
        super().handle_exit(sig, frame)
        self._visitors.dismiss()

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.should_exit and scope["type"] == "http":
            await Response(status_code=503)(scope, receive, send)
        else:
            await self._app(scope, receive, send)
