"""loopguard beside its peers.

    uv run python benchmarks/peers.py accuracy [--watchers NAME …] [--loop LOOP] [--cases PATTERN …] [--page PATH]
    uv run python benchmarks/peers.py tools [--tools NAME …] [--loops LOOP …] [--page PATH]
    uv run python benchmarks/peers.py cost [--watchers NAME …] [--loops LOOP …] [--page PATH]

Each peer is set up as its own documentation says (`peers_*.py`), in an environment of its own, which uv makes for it
outside the checkout and keeps. `peers.py accuracy --help` and so on say what is measured, and how.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]  # as a script it finds its neighbours only

from benchmarks import peers_accuracy, peers_cost, peers_tools  # noqa: E402
from tests.corpus.matrix import write  # noqa: E402

LOOPS = ("uvloop", "asyncio")


def accuracy(given: argparse.Namespace) -> str:
    return peers_accuracy.measure(
        given.watchers, given.loop, given.cases, given.at_once, given.json
    )


def tools(given: argparse.Namespace) -> str:
    return peers_tools.measure(given.tools, given.loops, 2 if given.quick else 20, given.json)


def cost(given: argparse.Namespace) -> str:
    effort = peers_cost.QUICK if given.quick else peers_cost.THOROUGH
    return peers_cost.measure(["bare", *given.watchers], given.loops, effort, given.json)


COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], str], str | None]] = {
    "accuracy": (accuracy, peers_accuracy.__doc__),
    "tools": (tools, peers_tools.__doc__),
    "cost": (cost, peers_cost.__doc__),
}


def some(parser: argparse.ArgumentParser, option: str, of: Sequence[str]) -> None:
    names = ", ".join(of)
    parser.add_argument(option, nargs="+", choices=of, default=of, metavar="NAME", help=names)


def read_arguments() -> argparse.Namespace:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    commands = parser.add_subparsers(dest="command", required=True)
    parsers = {
        name: commands.add_parser(name, description=text, formatter_class=plain)
        for name, (_, text) in COMMANDS.items()
    }
    for each in parsers.values():
        each.add_argument("--json", type=Path, metavar="PATH", help="write the figures there too")
        each.add_argument("--page", type=Path, metavar="PATH", help="put the table on that page")
    some(parsers["accuracy"], "--watchers", peers_accuracy.WATCHERS)
    parsers["accuracy"].add_argument("--loop", choices=LOOPS, default="uvloop")
    parsers["accuracy"].add_argument("--cases", nargs="+", default=["*"], metavar="PATTERN")
    parsers["accuracy"].add_argument(
        "--at-once", action="store_true", help="all side by side: to try it, not to measure"
    )
    some(parsers["tools"], "--tools", peers_tools.TOOLS)
    some(parsers["cost"], "--watchers", peers_cost.WATCHERS)
    for name in ("tools", "cost"):
        some(parsers[name], "--loops", LOOPS)
        parsers[name].add_argument("--quick", action="store_true", help="does it run at all?")
    return parser.parse_args()


def main() -> None:
    given = read_arguments()
    measure, _ = COMMANDS[given.command]
    text = measure(given)
    print(text)
    if given.page:
        begin = f"<!-- peers: python benchmarks/peers.py {given.command} -->"
        write(text, given.page, begin, "<!-- end of the peers -->")


if __name__ == "__main__":
    main()
