"""The command line: one module for each command, and nothing imported that the chosen one does not need."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import NoReturn

from loopguard.cli import demo, diff, doctor, profile, report, watch
from loopguard.tell.printable import printable

COMMANDS = (demo, doctor, report, diff, watch, profile)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. The exit code: 0, 2 with one line on stderr for bad input, 130 after Ctrl-C."""
    try:
        code = _run(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `loopguard … | head`
        _discard_output()
        return 141
    return code


def _run(argv: Sequence[str] | None) -> int:
    try:
        options = _parser().parse_args(argv)
    except SystemExit as leaving:  # after --help, --version and an error
        return leaving.code if isinstance(leaving.code, int) else 0
    code: int = options.run(options)
    return code


class _Parser(argparse.ArgumentParser):
    """argparse, but an error is one line, whatever the user typed."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="loopguard", description="Finds the line that blocks your asyncio event loop."
    )
    parser.add_argument("--version", action="version", version=f"loopguard {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_to(commands)
    return parser


def _version() -> str:
    try:
        return metadata.version("asyncio-loopguard")
    except metadata.PackageNotFoundError:
        return "(not installed, run from its source)"


def _discard_output() -> None:
    """Let the interpreter flush at exit without a second complaint."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
