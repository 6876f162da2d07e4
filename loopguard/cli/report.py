"""`loopguard report`: what JSONL files tell, as text, a page, JSON, or a file for Speedscope."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import TYPE_CHECKING, get_args

from loopguard.black_box.search import records_in
from loopguard.cli import arguments, namesake, output
from loopguard.cli.progress import Progress
from loopguard.record import Cause
from loopguard.show.choose import Choice
from loopguard.show.document import document
from loopguard.show.page import report_page
from loopguard.show.read import LeftOut, Reader, ReadError
from loopguard.show.speedscope import speedscope
from loopguard.show.summary import MOST_KEPT, Summary, summarize
from loopguard.show.text import text_report
from loopguard.tell.printable import printable

if TYPE_CHECKING:
    from argparse import _SubParsersAction

FORMS = ("text", "html", "json", "speedscope")
ENDINGS = (
    (".html", "html"),
    (".htm", "html"),
    (".speedscope.json", "speedscope"),
    (".json", "json"),
    (".txt", "text"),
)
TOP_OF_TEXT = 10


def add_to(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "report",
        help="what was recorded, as text, a page, JSON, or for Speedscope",
        description="Reads the JSONL of any number of processes, and tells what held their event loops.",
    )
    add_files(parser)
    add_choice(parser)
    add_output(parser, FORMS)
    parser.add_argument(
        "--top",
        metavar="N",
        type=arguments.positive,
        help=f"how many culprits and routes the text names (default {TOP_OF_TEXT}); "
        f"in the other forms how many stalls are kept whole, the longest (default {MOST_KEPT})",
    )
    parser.add_argument("--title", metavar="S", default="", help="stands above it")
    parser.add_argument(
        "--trace-url",
        metavar="TEMPLATE",
        type=arguments.trace_url,
        help="where a trace is to be seen, with {trace_id} in it: the page links there",
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.set_defaults(run=run)


def add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="JSONL, plain or gzipped, a directory of it, a black box, or - for stdin",
    )


def add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--since", metavar="T", type=arguments.time, help="ISO 8601, or 15m, 2h, 1d ago"
    )
    parser.add_argument("--until", metavar="T", type=arguments.time, help="the same")
    parser.add_argument(
        "--cause", metavar="C", action="append", choices=get_args(Cause), default=[], help="only it"
    )
    parser.add_argument(
        "--route", metavar="R", action="append", default=[], help="only it; * stands for anything"
    )
    parser.add_argument(
        "--instance",
        metavar="I",
        action="append",
        default=[],
        help="only that process; also with *",
    )


def add_output(parser: argparse.ArgumentParser, forms: tuple[str, ...]) -> None:
    parser.add_argument(
        "-o", dest="path", metavar="PATH", help="the file to write (default: stdout)"
    )
    parser.add_argument(
        "-f", dest="form", choices=forms, help="the form (default: by the file's ending, else text)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite PATH")


def run(options: argparse.Namespace) -> int:
    try:
        _report(options)
    except (ReadError, output.OutputError) as error:
        print(f"loopguard report: {printable(str(error))}", file=sys.stderr)
        return 2
    return 0


def _report(options: argparse.Namespace) -> None:
    path, form = options.path, options.form
    if options.open and path is None and form in (None, "html"):
        path, form = output.passing_file(".html"), "html"
        options.force = True
    form = output.form(form, path, ENDINGS)
    if options.open and (form != "html" or path == output.STDOUT):
        raise output.OutputError("--open is for a page in a file: -o PATH.html")
    output.check(path, options.force)
    choice = Choice(options.since, options.until, options.cause, options.route, options.instance)
    keep = 0 if form == "text" else options.top or MOST_KEPT
    summary, left_out = read(options.files, choice, keep)
    output.write(_made(form, summary, left_out, options), path, options.force)
    if options.open:
        print(path)
        output.show_in_browser(path)


def read(files: list[str], choice: Choice, keep: int) -> tuple[Summary, LeftOut]:
    """Add up what is in the files, and say on stderr what was left out.

    Raises:
        ReadError: one of them is not to be had, or is the report of another project.
    """
    for theirs in filter(namesake.is_theirs, files):
        raise ReadError(namesake.refusal(theirs))
    with Progress() as progress:
        reader = Reader(files, progress=progress, remains=records_in)
        progress.size = reader.size
        summary = summarize(reader, choice, keep)
    for skipped in reader.left_out.skipped.values():
        print(f"loopguard: {printable(str(skipped))}", file=sys.stderr)
    return summary, reader.left_out


def _made(form: str, summary: Summary, left_out: LeftOut, options: argparse.Namespace) -> str:
    title = printable(options.title)
    if form == "text":
        shown = coloured(options.path)
        return text_report(
            summary, left_out, top=options.top or TOP_OF_TEXT, title=title, colour=shown
        )
    if form == "speedscope":
        return json.dumps(speedscope(summary.longest, title=title or "loopguard")) + "\n"
    if form == "json":
        made = document(summary, left_out, title=title, written_at=time.time())
        return json.dumps(made, indent=1) + "\n"
    return report_page(
        summary, left_out, title=title, written_at=time.time(), trace_url=options.trace_url
    )


def coloured(path: str | None) -> bool:
    """Whether there are to be colours: on a terminal that has them, and as NO_COLOR and FORCE_COLOR have it."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    on_terminal = path in (None, output.STDOUT) and sys.stdout.isatty()
    return on_terminal and os.environ.get("TERM") != "dumb"
