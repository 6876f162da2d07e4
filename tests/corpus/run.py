"""Runs the corpus and says how much of it loopguard tells right: `python -m tests.corpus.run`.

Each loop gets a process of its own. Exit code 1 where a case was not told wholly right.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import platform
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.corpus.cases import CASES
from tests.corpus.judge import cause_of, judge
from tests.corpus.world import world
from tests.real.server import Child, read_rows

Row = dict[str, Any]
SECONDS_EACH = 10.0


def select(patterns: Sequence[str]) -> list[str]:
    """The names of the cases that match one of the patterns."""
    return [name for name in CASES if any(fnmatch.fnmatch(name, each) for each in patterns)]


def run_session(
    directory: Path, variables: Mapping[str, str], loop: str, names: Sequence[str], times: int = 1
) -> list[Row]:
    """Run the cases on that loop, and give a row for each time."""
    file = directory / f"{loop}.jsonl"
    child = Child(
        ["-m", "tests.corpus.session", loop, str(file), str(times), *names],
        directory / f"{loop}.log",
        {**variables, "TMPDIR": str(directory)},
    )
    try:
        code = child.process.wait(60 + SECONDS_EACH * times * len(names))
    except subprocess.TimeoutExpired:
        code = None
    finally:
        child.stop()
    rows = read_rows(file) if file.exists() else []
    assert code == 0, (
        f"ended with {code} after {rows[-1]['case'] if rows else 'nothing'}:\n{child.read()}"
    )
    return rows


def told(rows: Iterable[Row]) -> list[Row]:
    """What is to be said of each row: the misses in words, or why the case could not run."""
    return [
        {
            **{name: row[name] for name in ("case", "loop", "turn")},
            "cause": cause_of(row["case"]),
            "python": platform.python_version(),
            "lacking": row.get("lacking"),
            "misses": [] if row.get("lacking") else [str(miss) for miss in judge(row)],
            "records": row.get("records"),
        }
        for row in rows
    ]


def table(results: Sequence[Row]) -> str:
    """By cause: how many cases, how often they were run, and how often all was right."""
    by_cause: defaultdict[str, list[Row]] = defaultdict(list)
    for result in results:
        if not result["lacking"]:
            by_cause[result["cause"]].append(result)
    lines = [f"{'cause':<16}{'cases':>6}{'runs':>6}{'right':>6}"]
    for cause, rows in [*by_cause.items(), ("all", [row for row in results if not row["lacking"]])]:
        cases = len({row["case"] for row in rows})
        right = sum(not row["misses"] for row in rows)
        lines.append(f"{cause:<16}{cases:>6}{len(rows):>6}{right:>6}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.corpus.run", description=__doc__)
    parser.add_argument("--loops", nargs="+", default=["asyncio", "uvloop"])
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="PATTERN")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object for each run of a case"
    )
    options = parser.parse_args(arguments)
    names = select(options.cases)
    with tempfile.TemporaryDirectory(prefix="corpus-") as temporary:
        directory = Path(temporary)
        with world(directory) as variables:
            results = [
                result
                for loop in options.loops
                for result in told(run_session(directory, variables, loop, names, options.times))
            ]
    _show(results, options.json)
    return int(any(result["misses"] for result in results))


def _show(results: Sequence[Row], as_json: bool) -> None:
    if as_json:
        for result in results:
            print(json.dumps(result))
        return
    for name, why in {row["case"]: row["lacking"] for row in results if row["lacking"]}.items():
        print(f"not run: {name}: {why}")
    for result in results:
        for miss in result["misses"]:
            print(f"{result['loop']} {result['cause']} {result['case']}: {miss}")
    print(table(results))


if __name__ == "__main__":
    sys.exit(main())
