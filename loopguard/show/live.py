"""The live page on loopback: for whoever was given its address, and nobody else on the machine or in the browser."""

from __future__ import annotations

import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from loopguard.show.board import Board
from loopguard.show.page import live_page
from loopguard.show.page.data import Payload
from loopguard.tell.jsonl import json_line

HOST = "127.0.0.1"
_NAMES = ("127.0.0.1", "localhost")
_HEARTBEAT = 10.0
# Where the token was, the page's own address follows at once: a navigation of this site's own, as the cookie needs.
_ENTERED = b'<!doctype html><meta http-equiv="refresh" content="0;url=/"><title>loopguard</title>'


class LiveServer(ThreadingHTTPServer):
    """Serves the board on loopback.

    `address` holds a token that is good for one visit, which leaves a cookie in its place: EventSource sends no header, so
    a cookie it must be. A request under a foreign name (DNS rebinding) is refused, whatever it carries.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, board: Board, port: int = 0) -> None:
        super().__init__((HOST, port), _Handler)
        self.board = board
        self.news = threading.Condition()
        self._token: str | None = secrets.token_urlsafe(32)
        self._key = secrets.token_urlsafe(32)
        # Cookies ignore ports: the name tells two of these apart.
        self.cookie = f"loopguard-{self.server_port}"

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_port}/?token={self._token}"

    def add(self, stalls: list[Any]) -> None:
        """Take what came, and tell the pages."""
        if stalls:
            with self.news:
                self.board.add(stalls)
                self.news.notify_all()

    def enter(self, token: str) -> str | None:
        """The key for the cookie, in exchange for the token; None for a wrong one, and for one used before."""
        with self.news:
            if self._token is None or not _same(token, self._token):
                return None
            self._token = None
            return self._key

    def knows(self, key: str) -> bool:
        return _same(key, self._key)

    def snapshot(self) -> tuple[int, dict[str, Any]]:
        """Which change the board has come to, and all of it."""
        with self.news:
            return self.board.changes, Payload(self.board.since(0)).to_dict()

    def later(self, change: int) -> tuple[int, dict[str, Any] | None]:
        """The same of what came after that change; waits for it a while, and gives None where nothing came."""
        with self.news:
            self.news.wait_for(lambda: self.board.changes > change, _HEARTBEAT)
            new = self.board.since(change)
            return self.board.changes, Payload(new).to_dict() if new else None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a visitor that goes away in the middle is everyday."""


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    server_version = "loopguard"
    sys_version = ""
    timeout = 30
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if not self._is_for_us():
            self._refuse(403, "this name is not served here")
        elif address.path == "/" and address.query:
            self._enter(parse_qs(address.query).get("token", [""])[0])
        elif not self._is_known():
            self._refuse(
                403, "the address that `loopguard watch --web` printed is good for one visit"
            )
        elif route := self._routes.get(address.path):
            route(self)
        else:
            self._refuse(404, "there is nothing here")

    def __getattr__(self, name: str) -> Any:
        """Any other method is refused in the same words."""
        if name.startswith("do_"):
            return lambda: self._refuse(405, "GET only")
        raise AttributeError(name)

    def log_message(self, *args: Any) -> None:
        """Nothing: stderr is the user's, and a path may hold the token."""

    def _is_for_us(self) -> bool:
        hosts = self.headers.get_all("Host") or [""]
        return hosts in [[f"{name}:{self.server.server_port}"] for name in _NAMES]

    def _is_known(self) -> bool:
        try:
            cookies = SimpleCookie(self.headers.get("Cookie", ""))
        except CookieError:
            return False
        cookie = cookies.get(self.server.cookie)
        return cookie is not None and self.server.knows(cookie.value)

    def _enter(self, token: str) -> None:
        key = self.server.enter(token)
        if key is None:
            self._refuse(403, "this address was good for one visit")
            return
        cookie = f"{self.server.cookie}={key}; HttpOnly; SameSite=Strict; Path=/"
        self._answer(_ENTERED, "text/html; charset=utf-8", cookie=cookie)

    def _page(self) -> None:
        change, payload = self.server.snapshot()
        page, policy = live_page(payload, change=change, now=time.time())
        self._answer(page.encode(), "text/html; charset=utf-8", policy=policy)

    def _events(self) -> None:
        """New stalls as server-sent events, until the visitor leaves."""
        self.send_response(200)
        self._send_headers("text/event-stream", "default-src 'none'")
        self.send_header("Connection", "close")
        self.end_headers()
        change = self._last_seen()
        while True:
            change, payload = self.server.later(change)
            event = (
                f"id: {change}\ndata: {json_line(payload)}\n\n" if payload else ": still here\n\n"
            )
            self.wfile.write(event.encode())
            self.wfile.flush()

    def _last_seen(self) -> int:
        asked = parse_qs(urlsplit(self.path).query).get("after", [""])[0]
        seen = self.headers.get("Last-Event-ID") or asked
        return int(seen) if seen.isdecimal() and len(seen) < 16 else 0

    _routes: ClassVar[dict[str, Callable[[_Handler], None]]] = {"/": _page, "/events": _events}

    def _refuse(self, status: int, reason: str) -> None:
        self.close_connection = True
        body = json.dumps({"refused": reason}).encode()
        self._answer(body, "application/json", status=status)

    def _answer(
        self,
        body: bytes,
        kind: str,
        *,
        status: int = 200,
        policy: str = "default-src 'none'",
        cookie: str | None = None,
    ) -> None:
        self.send_response(status)
        self._send_headers(kind, policy)
        self.send_header("Content-Length", str(len(body)))
        if cookie:
            self.send_header("Set-Cookie", cookie)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_headers(self, kind: str, policy: str) -> None:
        self.send_header("Content-Type", kind)
        self.send_header("Content-Security-Policy", f"{policy}; frame-ancestors 'none'")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(errors="replace"), other.encode())
