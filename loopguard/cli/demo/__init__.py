"""`loopguard demo`: a real app that blocks its event loop, and what loopguard says about it."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from typing import TYPE_CHECKING

from loopguard.cli.arguments import trace_url
from loopguard.cli.demo.signals import leave, signals

if TYPE_CHECKING:
    from argparse import _SubParsersAction

JAEGER = "http://localhost:16686/trace/{trace_id}"
DEFAULT_JSONL = "loopguard-demo.jsonl"
NEEDED = ("fastapi", "uvicorn", "requests", "rich")


def add_to(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="an app that blocks its event loop, and what loopguard says about it",
        description="Runs an app with routes that block its event loop, calls them, and shows what loopguard finds. "
        "With OTEL_EXPORTER_OTLP_ENDPOINT set, the traces are sent there.",
    )
    parser.add_argument(
        "--serve", action="store_true", help="keep the app running for a browser, until Ctrl-C"
    )
    parser.add_argument(
        "--jsonl",
        metavar="PATH",
        help=f"append the records to this file, - for stdout (default: a new {DEFAULT_JSONL})",
    )
    parser.add_argument(
        "--trace-url",
        metavar="TEMPLATE",
        type=trace_url,
        default=JAEGER,
        help="where a trace is to be seen (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"loopguard demo: needs {', '.join(missing)}: pip install 'asyncio-loopguard[demo]'",
            file=sys.stderr,
        )
        return 2
    with signals(leave):
        from loopguard.cli.demo.stage import load_shop, run_demo

        app = load_shop()
    return run_demo(app, jsonl=options.jsonl, serve=options.serve, trace_url=options.trace_url)
