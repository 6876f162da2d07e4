"""`loopguard watch --web`: the live page, and the way to it."""

from __future__ import annotations

import argparse
import sys
import threading
import time
import webbrowser
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from loopguard.cli import output
from loopguard.tell.printable import printable

if TYPE_CHECKING:
    from loopguard.show.board import Board
    from loopguard.show.follow import Follower

EVERY = 0.1
# A command line is public on the machine: the browser is given a file of one's own, which leads to the address.
_WAY = '<!doctype html><meta name="referrer" content="no-referrer"><meta http-equiv="refresh" content="0;url={}">'


def add_web(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--web", action="store_true", help="serve a live page on 127.0.0.1")
    parser.add_argument(
        "--port", metavar="N", type=_port, default=0, help="its port (default: a free one)"
    )
    parser.add_argument("--no-open", action="store_true", help="only print its address")


def serve(follower: Follower, board: Board, *, port: int, browser: bool) -> int:
    """Serve until Ctrl-C."""
    from loopguard.show.live import LiveServer

    try:
        server = LiveServer(board, port)
    except OSError as error:
        print(f"loopguard watch: port {port}: {printable(error.strerror or '')}", file=sys.stderr)
        return 2
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"Open {server.address} (good for one visit). Ctrl-C ends it.", flush=True)
    way = _open(server.address) if browser else None
    try:
        while True:
            server.add(follower.poll())
            time.sleep(EVERY)
    finally:
        server.shutdown()
        server.server_close()
        if way:
            Path(way).unlink(missing_ok=True)


def _open(address: str) -> str:
    way = output.passing_file(".html")
    Path(way).write_text(_WAY.format(escape(address)), "utf-8")
    webbrowser.open(Path(way).as_uri())
    return way


def _port(words: str) -> int:
    if not words.isdecimal() or not words.isascii() or not 0 <= int(words[:6]) < 65536:
        raise argparse.ArgumentTypeError(f"{words!r} is no port")
    return int(words)
