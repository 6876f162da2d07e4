"""Runs the corpus on every pair of CPython and loop: `python -m tests.corpus.matrix`.

Prints the figures and, unless told otherwise, writes them into docs/accuracy.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.real.server import ROOT

Row = dict[str, Any]

PYTHONS = ("3.11", "3.12", "3.13")
LOOPS = ("asyncio", "uvloop")
PAGE = ROOT / "docs" / "accuracy.md"
BEGIN, END = "<!-- figures: python -m tests.corpus.matrix -->", "<!-- end of the figures -->"

# What a column counts as right, by the fields of the misses that it must not have.
COLUMNS = {
    "wholly right": (),
    "found": ("records",),
    "line": ("records", "culprit", "code"),
    "cause": ("records", "cause", "first contributor"),
    "call": ("records", "call"),
    "`waited_on`": ("records", "waited_on"),
    "`holder`": ("records", "holder"),
    "request": ("records", "request"),
    "start, end": ("records", "start", "end"),
}


def run_on(python: str, loops: Sequence[str], times: int) -> list[Row]:
    """Run all cases on that Python, in an environment of its own unless it is an interpreter that has all."""
    own = ["uv", "run", "--isolated", "--quiet", "--python", python, "--group", "advice", "python"]
    interpreter = [python] if Path(python).is_file() else own
    done = subprocess.run(
        [
            *interpreter,
            *("-m", "tests.corpus.run", "--json", "--times", str(times), "--loops"),
            *loops,
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    if not rows:
        raise SystemExit(f"nothing was run on {python}")
    return rows


def figures(rows: Sequence[Row]) -> str:
    """Both tables, in Markdown."""
    run = [row for row in rows if not row["lacking"]]
    return f"{_table(run)}\n\n{_misses(run)}"


def _table(rows: Sequence[Row]) -> str:
    """By pair, of the stalls in each column how many were right, and of all runs what was told beside them."""
    heads = ["CPython, loop", "stalls", *COLUMNS, "innocent", "false reports", "excused"]
    lines = [heads, ["---"] * len(heads)]
    for pair, of_pair in sorted(_grouped(rows, _pair).items()):
        excused = sum(bool(row["excuse"]) for row in of_pair)
        judged = [row for row in of_pair if not row["excuse"]]
        stalls = [row for row in judged if row["cause"] != "innocent"]
        counts = [sum(_right(row, fields) for row in stalls) for fields in COLUMNS.values()]
        false = sum("other records" in row["fields"] for row in judged)
        innocent = len(judged) - len(stalls)
        lines.append([pair, *map(str, (len(stalls), *counts, innocent, false, excused))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _right(row: Row, fields: tuple[str, ...]) -> bool:
    return not (set(row["fields"]) & set(fields) if fields else row["fields"])


def _misses(rows: Sequence[Row]) -> str:
    """By case, on which pairs it was not wholly right, how often, and what was told."""
    missed = _grouped((row for row in rows if row["misses"] and not row["excuse"]), _case)
    if not missed:
        return "Nothing was missed."
    lines = ["| missed | on | told |", "| --- | --- | --- |"]
    for case, of_case in sorted(missed.items()):
        pairs = ", ".join(
            f"{pair} ({count} of {sum(_pair(row) == pair and row['case'] == case for row in rows)})"
            for pair, count in sorted(Counter(map(_pair, of_case)).items())
        )
        told = "; ".join(sorted({miss for row in of_case[:3] for miss in row["misses"]}))
        told = told.replace("|", r"\|")
        lines.append(f"| `{case}` | {pairs} | {told} |")
    return "\n".join(lines)


def _grouped(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(groups)


def _pair(row: Row) -> str:
    return f"{row['python']}, {row['loop']}"


def _case(row: Row) -> str:
    return str(row["case"])


def write(text: str, page: Path, begin: str = BEGIN, end: str = END) -> None:
    """Put it on the page, in place of what stands between these two lines."""
    before, _, rest = page.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page} has no place for the figures")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.corpus.matrix", description=__doc__)
    parser.add_argument("--times", type=int, default=10, help="runs of each case on each pair")
    parser.add_argument("--pythons", nargs="*", default=PYTHONS, help="versions for uv, or paths")
    parser.add_argument("--loops", nargs="+", default=LOOPS)
    parser.add_argument("--rows", type=Path, help="JSONL to keep each run in; counts what it has")
    parser.add_argument(
        "--page", type=Path, default=PAGE, help="where the figures go; - for nowhere"
    )
    options = parser.parse_args()
    rows: list[Row] = []
    if options.rows and options.rows.exists():
        rows = [json.loads(line) for line in options.rows.read_text().splitlines()]
    for python in options.pythons:
        new = run_on(python, options.loops, options.times)
        rows += new
        if options.rows:
            with options.rows.open("a") as file:
                file.writelines(f"{json.dumps(row)}\n" for row in new)
    text = figures(rows)
    print(text)
    if str(options.page) != "-":
        write(text, options.page)


if __name__ == "__main__":
    main()
