"""`loopguard profile FILE`: one request's profile as a page, for Speedscope, or as text."""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopguard.tell.printable import printable

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_BY_ENDING = {".html": "html", ".speedscope.json": "speedscope", ".json": "speedscope"}
_FONTS = re.compile(r"https?://fonts\.googleapis\.com/[^\"'`) ]*")


def add_to(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "profile",
        help="the profile of one request, as a page, for Speedscope, or as text",
        description="Renders a profile that was taken of one request (options profile_token and profile_dir).",
    )
    parser.add_argument("file", metavar="FILE", help="a file of profile_dir, - for stdin")
    parser.add_argument("-o", dest="output", metavar="PATH", help="where to write (default: -)")
    parser.add_argument(
        "-f",
        dest="format",
        choices=("html", "speedscope", "text"),
        help="(default: by -o, or text)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if importlib.util.find_spec("pyinstrument") is None:
        return _refuse("needs pyinstrument: pip install 'asyncio-loopguard[profile]'")
    try:
        session = _load(options.file)
    except OSError as error:
        return _refuse(f"{options.file}: {error.strerror or error}")
    except (ValueError, KeyError, TypeError) as error:
        return _refuse(f"{options.file}: no profile ({type(error).__name__})")
    kind = options.format or _format_of(options.output)
    try:
        text = _RENDER[kind](session)
    except Exception as error:  # noqa: BLE001 - whatever was in the file
        return _refuse(f"{options.file}: cannot be rendered ({type(error).__name__})")
    if options.output in (None, "-"):
        sys.stdout.write(text)
        return 0
    try:
        fd = os.open(options.output, _flags(options.force), 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return _refuse(f"{options.output} is there already (--force)")
    except OSError as error:
        return _refuse(f"{options.output}: {error.strerror or error}")
    return 0


def _flags(force: bool) -> int:
    return os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if force else os.O_EXCL)


def _format_of(output: str | None) -> str:
    found = (kind for ending, kind in _BY_ENDING.items() if (output or "").endswith(ending))
    return next(found, "text")


def _load(file: str) -> Any:
    from pyinstrument.session import Session

    text = sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")
    return Session.from_json(json.loads(text))


def _as_text(session: Any) -> str:
    from pyinstrument.renderers import ConsoleRenderer

    rendered = ConsoleRenderer(unicode=True, color=False).render(session)
    return "\n".join(printable(line) for line in rendered.splitlines()) + "\n"


def _as_speedscope(session: Any) -> str:
    from pyinstrument.renderers import SpeedscopeRenderer

    # Else it leaves out all that took little, which in a short request is everything.
    renderer = SpeedscopeRenderer(processor_options={"filter_threshold": 0})
    return f"{renderer.render(session)}\n"


def _as_page(session: Any) -> str:
    """pyinstrument's own page; but names in it are data and never script, and it asks no other machine."""
    from pyinstrument.renderers import HTMLRenderer

    page: str = HTMLRenderer().render(session)
    head, start, rest = page.partition("const sessionData = ")
    if not start:
        raise ValueError("pyinstrument's page is built in another way")
    data, end, tail = rest.rpartition(";\n                    pyinstrumentHTMLRenderer.render")
    if not end:
        raise ValueError("pyinstrument's page is built in another way")
    for character in "<>&\u2028\u2029":
        data = data.replace(character, f"\\u{ord(character):04x}")
    page = _FONTS.sub("data:,", head) + start + data + end + tail
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline' data:; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    return page.replace('<meta charset="utf-8">', f'<meta charset="utf-8">{meta}', 1)


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _refuse(why: str) -> int:
    print(f"loopguard profile: {printable(why)}", file=sys.stderr)
    return 2


_RENDER = {"html": _as_page, "speedscope": _as_speedscope, "text": _as_text}
