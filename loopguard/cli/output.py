"""Where a command writes what it made: to stdout, or to a file that it does not overwrite unless told to."""

from __future__ import annotations

import os
import sys
import tempfile
import webbrowser
from collections.abc import Sequence
from pathlib import Path

STDOUT = "-"


class OutputError(Exception):
    """It cannot be written, or there is no telling in which form."""


def form(asked: str | None, path: str | None, endings: Sequence[tuple[str, str]]) -> str:
    """The form that was asked for, else the one by the file's ending, else text.

    Raises:
        OutputError: the ending stands for no form.
    """
    if asked is not None:
        return asked
    if path is None or path == STDOUT:
        return "text"
    for ending, form in endings:
        if path.lower().endswith(ending):
            return form
    known = ", ".join(ending for ending, _ in endings)
    raise OutputError(f"{path}: what form is meant? It ends in none of {known}, and there is no -f")


def check(path: str | None, force: bool) -> None:
    """Say that the file is there already, before work is done for it.

    Raises:
        OutputError: it is, and may not be overwritten.
    """
    if path not in (None, STDOUT) and not force and os.path.lexists(path):
        raise OutputError(f"{path}: is there already; --force overwrites it")


def write(content: str, path: str | None, force: bool) -> None:
    """Write it whole.

    Raises:
        OutputError: it cannot be written.
    """
    if path is None or path == STDOUT:
        # As bytes: a terminal of another encoding must not end in a traceback.
        sys.stdout.flush()
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.buffer.write(content.encode(encoding, "backslashreplace"))
        return
    try:
        with open(path, "w" if force else "x", encoding="utf-8", newline="\n") as file:
            file.write(content)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise OutputError(f"{path}: {reason}") from error


def show_in_browser(path: str) -> None:
    webbrowser.open(Path(path).absolute().as_uri())


def passing_file(ending: str) -> str:
    """A new file for one look, which nobody else on the machine can read."""
    handle, path = tempfile.mkstemp(ending, "loopguard-")
    os.close(handle)
    return path
