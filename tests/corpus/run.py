"""Runs the corpus and says how much of it loopguard tells right: `python -m tests.corpus.run`.

On each loop two processes run side by side: one has the cases that wait, one those that compute. Exit code 1 where a
case was not told wholly right, unless the machine withheld the CPU from it.
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.corpus.cases import CASES
from tests.corpus.judge import cause_of, excuse, judge
from tests.corpus.world import world
from tests.real.server import Child, read_rows

Row = dict[str, Any]
SECONDS_EACH = 10.0
WAITING = ("waits", "locks", "innocent")


def select(patterns: Sequence[str]) -> list[str]:
    """The names of the cases that match one of the patterns."""
    return [name for name in CASES if any(fnmatch.fnmatch(name, each) for each in patterns)]


def run_cases(
    directory: Path,
    variables: Mapping[str, str],
    loop: str,
    names: Sequence[str],
    times: int = 1,
    program: str = "tests.corpus.session",
) -> list[Row]:
    """Run the cases on that loop by that module, and give a row for each time."""
    waiting = [name for name in names if CASES[name].family in WAITING]
    computing = [name for name in names if name not in waiting]
    seconds = 60 + SECONDS_EACH * times * len(names)
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(_session(directory, variables, [program, loop], times, some))
            for some in (waiting, computing)
            if some
        ]
        return [row for session in sessions for row in _rows(*session, seconds)]


@contextmanager
def _session(
    directory: Path,
    variables: Mapping[str, str],
    program: Sequence[str],
    times: int,
    names: Sequence[str],
) -> Iterator[tuple[Child, Path]]:
    file = directory / f"{'.'.join(program)}.{names[0]}.jsonl"
    child = Child(
        ["-m", *program, str(file), str(times), *names],
        file.with_suffix(".log"),
        {**variables, "TMPDIR": str(directory)},
    )
    try:
        yield child, file
    finally:
        child.stop()


def _rows(child: Child, file: Path, seconds: float) -> list[Row]:
    """What a session wrote until it ended, in good order."""
    with suppress(subprocess.TimeoutExpired):
        child.process.wait(seconds)
    rows = read_rows(file) if file.exists() else []
    last = rows[-1]["case"] if rows else "nothing"
    code = child.process.poll()
    assert code == 0, f"ended with {code} after {last}:\n{child.read()}"
    return rows


def told(rows: Iterable[Row]) -> list[Row]:
    """What is to be said of each row: the misses in words, what excuses them, or why the case could not run."""
    return [_told(row) for row in rows]


def _told(row: Row) -> Row:
    lacking = row.get("lacking")
    misses = [] if lacking else judge(row)
    return {
        **{name: row[name] for name in ("case", "loop", "turn")},
        "cause": cause_of(row["case"]),
        "python": platform.python_version(),
        "lacking": lacking,
        "misses": [str(miss) for miss in misses],
        "fields": [miss.field for miss in misses],
        "excuse": excuse(row, misses) if misses else None,
        "records": row.get("records"),
    }


def table(results: Sequence[Row]) -> str:
    """By cause: how many cases, how often run, how often all was right, how often the machine excuses that not."""
    by_cause: defaultdict[str, list[Row]] = defaultdict(list)
    for result in results:
        if not result["lacking"]:
            by_cause[result["cause"]].append(result)
    lines = [f"{'cause':<16}{'cases':>6}{'runs':>6}{'right':>6}{'excused':>8}"]
    for cause, rows in [*by_cause.items(), ("all", [row for row in results if not row["lacking"]])]:
        cases = len({row["case"] for row in rows})
        right = sum(not row["misses"] for row in rows)
        excused = sum(row["excuse"] is not None for row in rows)
        lines.append(f"{cause:<16}{cases:>6}{len(rows):>6}{right:>6}{excused:>8}")
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
        with world(directory, [CASES[name] for name in names]) as variables:
            results = [
                result
                for loop in options.loops
                for result in told(run_cases(directory, variables, loop, names, options.times))
            ]
    _show(results, options.json)
    return int(any(result["misses"] and not result["excuse"] for result in results))


def _show(results: Sequence[Row], as_json: bool) -> None:
    if as_json:
        for result in results:
            print(json.dumps(result))
        return
    for name, why in {row["case"]: row["lacking"] for row in results if row["lacking"]}.items():
        print(f"not run: {name}: {why}")
    for result in results:
        for miss in result["misses"]:
            excused = f" ({result['excuse']})" if result["excuse"] else ""
            print(f"{result['loop']} {result['cause']} {result['case']}: {miss}{excused}")
    print(table(results))


if __name__ == "__main__":
    sys.exit(main())
