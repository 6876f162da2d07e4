"""loopguard beside its peers, on the same labelled stalls: what each finds, and what it gets right.

    uv run python benchmarks/peers.py accuracy [--watchers NAME …] [--loop LOOP] [--cases PATTERN …] [--page PATH]

Each peer runs in an environment of its own, which uv makes for it outside the checkout, and watches the corpus
(`tests/corpus`) in the place of loopguard: the same cases in the same order, the same threshold of 0.1 s, all set up as
its own documentation says (`peers_*.py`). Of several reports of one stall the longest counts.

found           a report covers more than half of the stall, or the stall more than half of a report
right line      the innermost line of the corpus's own in the report's stack is the one that held the loop; of the
                stalls for which a line is to blame
right trace     the report bears the trace of the request that held the loop; of the stalls inside one
right cause     what the report says of the cause may stand for the right one
false reports   reports in a case that never holds the loop; that the process was not run does not count as one
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]  # as a script it finds its neighbours only

from benchmarks.peers_told import own_line  # noqa: E402
from tests.corpus.cases import CASES, MARKS  # noqa: E402
from tests.corpus.judge import blames_nobody, overlap  # noqa: E402
from tests.corpus.matrix import write  # noqa: E402
from tests.corpus.run import run_cases, select  # noqa: E402
from tests.corpus.world import world  # noqa: E402

Row = dict[str, Any]

PAGE = ROOT / "docs" / "accuracy.md"
BEGIN, END = "<!-- peers: python benchmarks/peers.py accuracy -->", "<!-- end of the peers -->"


@dataclass(frozen=True)
class Watcher:
    """`packages` are installed for it; of a `module` alone, the wheel is unpacked and no more."""

    title: str
    packages: tuple[str, ...] = ()
    module_of: str | None = None


WATCHERS = {
    "loopguard": Watcher("loopguard"),
    "aiocop": Watcher("aiocop 1.2.1", ("aiocop==1.2.1",)),
    "pyleak": Watcher("pyleak 0.2.0", ("pyleak==0.2.0",)),
    "livekit": Watcher(
        "LiveKit's monitor (livekit-agents 1.8.9)", module_of="livekit-agents==1.8.9"
    ),
}
HEADS = ("", "found", "right line", "right trace", "right cause", "false reports")


def watch(name: str, loop: str, patterns: Sequence[str]) -> list[Row]:
    """Run the cases under that watcher, in its own environment; a row for each."""
    watcher = WATCHERS[name]
    with tempfile.TemporaryDirectory(prefix="peers-") as temporary:
        rows = Path(temporary) / "rows.jsonl"
        variables = dict(os.environ)
        if watcher.module_of is not None:
            _run(
                [
                    "uv",
                    "pip",
                    "install",
                    "--quiet",
                    "--python",
                    sys.executable,
                    "--no-deps",
                    "--target",
                    temporary,
                    watcher.module_of,
                ]
            )
            variables["LIVEKIT"] = temporary
        python = [sys.executable]
        if watcher.packages:
            extra = (part for package in watcher.packages for part in ("--with", package))
            python = [
                "uv",
                "run",
                "--isolated",
                "--quiet",
                "--python",
                sys.executable,
                "--group",
                "advice",
                *extra,
                "python",
            ]
        _run([*python, __file__, "run", name, loop, str(rows), *patterns], variables)
        return [json.loads(line) for line in rows.read_text().splitlines()]


def _run(command: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
    subprocess.run(command, cwd=ROOT, env=variables, check=True)


def run(name: str, loop: str, file: str, *patterns: str) -> None:
    """In the watcher's environment: the parts that the cases need, and the cases."""
    names = select(patterns)
    with tempfile.TemporaryDirectory(prefix="corpus-") as temporary:
        directory = Path(temporary)
        with world(directory, [CASES[each] for each in names]) as variables:
            rows = run_cases(directory, variables, loop, names, program=f"benchmarks.peers_{name}")
    Path(file).write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@dataclass
class Count:
    right: int = 0
    of: int = 0

    def add(self, right: bool) -> None:
        self.right += right
        self.of += 1

    def __str__(self) -> str:
        return f"{self.right}/{self.of}"


def figures(rows: Sequence[Row]) -> dict[str, Count]:
    """By column: how many were right, of how many."""
    counts = {head: Count() for head in HEADS[1:]}
    for row in rows:
        if row.get("lacking"):
            continue
        case = CASES[row["case"]]
        if case.innocent:
            counts["false reports"].add(
                any(told["causes"] != ["not_scheduled"] for told in row["records"])
            )
            continue
        mark = MARKS[case.name]
        of_it = [told for told in row["records"] if overlap(told, row)]
        told = max(of_it, key=lambda told: float(told["duration"]), default=None)
        counts["found"].add(told is not None)
        counts["right cause"].add(told is not None and mark.cause in told["causes"])
        if blames_nobody(case, mark):
            continue
        counts["right line"].add(told is not None and _on_line(told, mark))
        if case.served:
            counts["right trace"].add(told is not None and told["trace_id"] == row["trace_id"])
    return counts


def _on_line(told: Row, mark: Any) -> bool:
    found = own_line(told["stack"])
    return found is not None and found[0] == mark.file and mark.line <= found[1] <= mark.last_line


def table(counted: Mapping[str, Mapping[str, Count]]) -> str:
    """In Markdown."""
    lines = [HEADS, ("---",) * len(HEADS)]
    lines += [
        (WATCHERS[name].title, *map(str, counts.values())) for name, counts in counted.items()
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def accuracy(options: argparse.Namespace) -> None:
    if shutil.which("uv") is None:
        raise SystemExit("it takes uv to make an environment for each peer")
    with ThreadPoolExecutor(len(options.watchers) if options.at_once else 1) as pool:
        rows = pool.map(lambda name: watch(name, options.loop, options.cases), options.watchers)
        counted = dict(zip(options.watchers, map(figures, rows), strict=True))
    text = table(counted)
    print(text)
    if options.json:
        plain = {
            name: {head: [count.right, count.of] for head, count in counts.items()}
            for name, counts in counted.items()
        }
        options.json.write_text(json.dumps(plain))
    if options.page:
        write(text, options.page, BEGIN, END)


def main() -> None:
    if sys.argv[1:2] == ["run"]:
        run(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["accuracy"])
    parser.add_argument(
        "--watchers",
        nargs="+",
        choices=WATCHERS,
        default=list(WATCHERS),
        metavar="NAME",
        help=", ".join(WATCHERS),
    )
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="uvloop")
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="PATTERN")
    parser.add_argument(
        "--at-once", action="store_true", help="all side by side: to try it, not to measure"
    )
    parser.add_argument(
        "--json", type=Path, metavar="PATH", help="the figures, each as [right, of]"
    )
    parser.add_argument(
        "--page",
        type=Path,
        metavar="PATH",
        help=f"write the table there, as in {PAGE.relative_to(ROOT)}",
    )
    accuracy(parser.parse_args())


if __name__ == "__main__":
    main()
