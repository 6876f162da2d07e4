"""`loopguard diff`: what changed between two runs."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING

from loopguard.cli import arguments, output
from loopguard.cli.report import add_output, coloured, read
from loopguard.show.choose import Choice
from loopguard.show.diff import Comparison, compare, comparison_as_json, github_annotations
from loopguard.show.page import diff_page
from loopguard.show.read import STDIN, ReadError
from loopguard.show.text import text_diff
from loopguard.tell.printable import printable

if TYPE_CHECKING:
    from argparse import _SubParsersAction

FORMS = ("text", "html", "json", "github")
ENDINGS = ((".html", "html"), (".htm", "html"), (".json", "json"), (".txt", "text"))


def add_to(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "diff",
        help="what changed between two runs",
        description="Compares two runs by culprit, in blocked seconds per hour watched.",
    )
    parser.add_argument("before", metavar="BEFORE", help="JSONL, or a directory of it")
    parser.add_argument("after", metavar="AFTER", help="the same")
    add_output(parser, FORMS)
    for side in ("before", "after"):
        parser.add_argument(
            f"--{side}-hours",
            metavar="H",
            type=arguments.hours,
            help="hours that were watched, where the records do not tell, or not all",
        )
    parser.add_argument(
        "--fail-on-new", action="store_true", help="exit with 1 where there is a new culprit"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        comparison = _compared(options)
    except (ReadError, output.OutputError) as error:
        print(f"loopguard diff: {printable(str(error))}", file=sys.stderr)
        return 2
    return 1 if options.fail_on_new and comparison.of("new") else 0


def _compared(options: argparse.Namespace) -> Comparison:
    form = output.form(options.form, options.path, ENDINGS)
    output.check(options.path, options.force)
    if options.before == options.after == STDIN:
        raise ReadError("only one of both can be stdin")
    before, _ = read([options.before], Choice(), keep=0)
    after, _ = read([options.after], Choice(), keep=0)
    hours = {"before_hours": options.before_hours, "after_hours": options.after_hours}
    comparison = compare(before, after, **hours)
    output.write(_made(form, comparison, options.path), options.path, options.force)
    return comparison


def _made(form: str, comparison: Comparison, path: str | None) -> str:
    if form == "json":
        return json.dumps(comparison_as_json(comparison), indent=1) + "\n"
    if form == "github":
        return github_annotations(comparison.changes)
    if form == "html":
        return diff_page(comparison, title="", written_at=time.time())
    return text_diff(comparison, colour=coloured(path))
