"""The labelled stalls of `tests/corpus` under each watcher: what it finds, and what it gets right.

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

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.overhead import ROOT
from benchmarks.peers_environment import PEERS, environment
from benchmarks.peers_told import own_line
from tests.corpus.cases import CASES, MARKS
from tests.corpus.judge import blames_nobody, overlap
from tests.corpus.run import run_cases, select
from tests.corpus.world import world

Row = dict[str, Any]

WATCHERS = ("loopguard", "aiocop", "pyleak", "livekit")
HEADS = ("", "found", "right line", "right trace", "right cause", "false reports")


def watch(name: str, loop: str, patterns: Sequence[str]) -> list[Row]:
    """Run the cases under that watcher, in its own environment; a row for each."""
    python, variables = environment([name], group="advice")
    with tempfile.TemporaryDirectory(prefix="peers-") as temporary:
        rows = Path(temporary) / "rows.jsonl"
        program = [*python, "-m", "benchmarks.peers_accuracy", name, loop, str(rows), *patterns]
        subprocess.run(program, cwd=ROOT, env=variables, check=True)
        return [json.loads(line) for line in rows.read_text().splitlines()]


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
    lines += [(PEERS[name].title, *map(str, counts.values())) for name, counts in counted.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measure(
    names: Sequence[str],
    loop: str,
    patterns: Sequence[str],
    at_once: bool,
    file: Path | None = None,
) -> str:
    with ThreadPoolExecutor(len(names) if at_once else 1) as pool:
        rows = pool.map(lambda name: watch(name, loop, patterns), names)
        counted = dict(zip(names, map(figures, rows), strict=True))
    if file:
        plain = {
            name: {head: [count.right, count.of] for head, count in counts.items()}
            for name, counts in counted.items()
        }
        file.write_text(json.dumps(plain))
    return table(counted)


if __name__ == "__main__":
    run(*sys.argv[1:])
