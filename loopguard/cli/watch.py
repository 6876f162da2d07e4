"""`loopguard watch`: stalls as they happen, seen from a process of its own."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
import time
from typing import TYPE_CHECKING

from loopguard.cli.web import add_web, serve
from loopguard.show import words
from loopguard.show.board import Board
from loopguard.show.follow import Follower

if TYPE_CHECKING:
    from argparse import _SubParsersAction

EVERY = 0.1


def add_to(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "watch",
        help="stalls as they happen",
        description="Follows the JSONL of any number of processes: a view in the terminal, a line for each stall where "
        "stdout is none, or a page. Ctrl-C ends it.",
    )
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="JSONL, also where it is not there yet; or a directory",
    )
    add_web(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    follower, board = Follower(options.files), Board()
    with contextlib.closing(follower), contextlib.suppress(KeyboardInterrupt):
        if options.web:
            return serve(follower, board, port=options.port, browser=not options.no_open)
        if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and _has_rich():
            _view(follower, board)
        else:
            _lines(follower)
    return 0


def _has_rich() -> bool:
    found = importlib.util.find_spec("rich") is not None
    if not found:
        print(
            "loopguard watch: without rich a line for each stall: pip install 'asyncio-loopguard[cli]'",
            file=sys.stderr,
        )
    return found


def _lines(follower: Follower) -> None:
    while True:
        for stall in follower.poll():
            print(words.line(stall), flush=True)
        time.sleep(EVERY)


def _view(follower: Follower, board: Board) -> None:
    from rich.console import Console
    from rich.live import Live

    from loopguard.show.screen import Screen

    view = Screen(board, "")
    console = Console(
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        highlight=False,
        markup=False,
        emoji=False,
    )
    with Live(view, console=console, screen=True, auto_refresh=False) as live:
        while True:
            board.add(follower.poll())
            view.watched = f"{words.number(follower.files, 'file')} followed"
            view.now = time.time()
            live.refresh()
            time.sleep(EVERY)
