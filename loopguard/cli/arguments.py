"""What several commands take on the command line, checked where it is typed."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from urllib.parse import urlsplit

from loopguard.show.choose import moment


def trace_url(template: str) -> str:
    """Where a trace is to be seen: an http or https address with `{trace_id}` in it."""
    if urlsplit(template).scheme not in ("http", "https") or not template.isprintable():
        raise argparse.ArgumentTypeError(f"{template!r} is not an http or https address")
    if "{trace_id}" not in template:
        raise argparse.ArgumentTypeError(f"{template!r} does not contain {{trace_id}}")
    return template


def time(words: str) -> float:
    """Unix seconds."""
    try:
        return moment(words, datetime.now(UTC))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(words: str) -> int:
    """A whole number, 1 or more."""
    if not words.isdecimal() or not words.isascii() or int(words[:18]) < 1:
        raise argparse.ArgumentTypeError(f"{words!r} is no whole number above 0")
    return int(words[:18])


def hours(words: str) -> float:
    """A number of hours, above 0."""
    try:
        value = float(words)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{words!r} is no number of hours")
    return value
