"""What loopguard costs while all is well: CPU per request, idle CPU, the ASGI layer, memory, import time.

    uv run python benchmarks/overhead.py [--quick] [--json PATH] [--check]

How a request is measured (`overhead_turns.py`):

- Within one process the same app is served bare and guarded by turns, 33 requests each, after a lead-in of 20 that
  is not counted; who begins changes each round. A turn takes 3 ms: whatever disturbs the machine or the process for
  longer meets both alike. Two processes would differ by some percent for good, by where their memory happens to lie.
- What takes turns is what lies on a request's way: the ASGI layer and the callback of the garbage collector. The
  heartbeat, the watchdog and the reporter run on, so they are added: a beat is measured by turns of its own, and the
  CPU time of the guard's threads by their clocks. `ratio` is all of it together: 1 + layer ÷ bare request + what
  beats and threads take of a core at full load.
- Two apps: `plain`, a small FastAPI app, and `traced`, the same with OpenTelemetry's instrumentor and SDK. Each is
  measured alone, and beside another thread that works. They are called in process, without sockets or an HTTP client,
  so that there is little to hide a cost behind.
- What counts is CPU time of all threads of the process: it shows a fight for the GIL, and it does not count the time
  for which other programs had the machine. They still disturb the caches: see the interval.

How an idle process is measured (`overhead_twins.py`): processes forked from one idle side by side, one bare, one
guarded, and one that is the floor: a callback every 50 ms that does nothing. What the floor costs is the price of
waking up at all.

The estimate is the median of the rounds; the interval holds 95 % of bootstrap medians, which draw processes first and
their rounds second. Beside it stands the mean without the outer tenths, with its standard error.

To see what the method can tell, put something known in the place of loopguard: `--contestant bare` must
come out at 1, `--contestant planted` (3 % more requests than it admits) at 1.03, and `--contestant pinged`
shows what a thread costs that wakes up 50 times a second.

It needs Linux, FastAPI with OpenTelemetry's instrumentor, its SDK, and uvloop.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOOPS = ("asyncio", "uvloop")
APPS = ("plain", "traced")
CONDITIONS = ("alone", "beside_thread")
PACKAGES = (
    *("fastapi", "starlette", "uvloop", "structlog", "opentelemetry-sdk"),
    "opentelemetry-instrumentation-fastapi",
)

RATIO_TARGET = 1.01
IDLE_TARGET = 0.3  # percent of a core
LAYER_TARGET = 0.7  # µs
MEMORY_TARGET = 8.0  # MB

DRAWS = 500
TRIMMED = 0.1
LOADED_ALREADY = (
    "import structlog, opentelemetry.context, opentelemetry.metrics, opentelemetry.trace"
)

Turn = dict[str, float]
Window = dict[str, dict[str, float]]
Groups = list[list[float]]  # one list for each process


@dataclass(frozen=True, slots=True)
class Effort:
    """How much to measure."""

    processes: int
    rounds: int
    idle_windows: int
    idle_seconds: float
    imports: int


THOROUGH = Effort(processes=3, rounds=300, idle_windows=5, idle_seconds=2, imports=7)
QUICK = Effort(processes=1, rounds=6, idle_windows=2, idle_seconds=0.3, imports=1)


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value: the median, the interval that holds it, the trimmed mean and its standard error."""

    name: str
    unit: str
    median: float
    low: float
    high: float
    mean: float
    error: float
    count: int
    target: float | None

    @property
    def missed(self) -> bool:
        return self.target is not None and self.median > self.target


# From single measurements to figures.


def figure(name: str, unit: str, groups: Groups, target: float | None = None) -> Figure:
    values = [value for group in groups for value in group]
    low, high = bootstrap_interval(groups)
    mean, error = trimmed_mean(values)
    return Figure(
        name=name,
        unit=unit,
        median=statistics.median(values),
        low=low,
        high=high,
        mean=mean,
        error=error,
        count=len(values),
        target=target,
    )


def bootstrap_interval(groups: Groups) -> tuple[float, float]:
    """Say where the median would lie in 95 % of repetitions, other processes and other rounds drawn each time."""
    chance = random.Random(0)
    medians = []
    for _ in range(DRAWS):
        drawn = chance.choices(groups, k=len(groups))
        medians.append(
            statistics.median(v for group in drawn for v in chance.choices(group, k=len(group)))
        )
    return quantile(medians, 0.025), quantile(medians, 0.975)


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[round(share * (len(ordered) - 1))]


def trimmed_mean(values: Sequence[float]) -> tuple[float, float]:
    """The mean without the outer tenths, and its standard error, for which these are moved to the edge."""
    ordered = sorted(values)
    cut = int(len(ordered) * TRIMMED)
    kept = ordered[cut : len(ordered) - cut]
    moved = [kept[0]] * cut + kept + [kept[-1]] * cut
    spread = statistics.stdev(moved) if len(moved) > 1 else 0.0
    return statistics.mean(kept), spread / (len(kept) / len(moved) * len(moved) ** 0.5)


# What is measured.


def measure_loop(kind: str, loop: str, effort: Effort) -> list[Figure]:
    runs = {app: runs_of_turns(kind, loop, app, effort) for app in (*APPS, "shell")}
    twins = runs_of_twins(kind, loop, effort)
    stalls = [
        *([run["stalls"]] for group in runs.values() for run in group),
        *([run["stalls"][0]["contestant"]["stalls"]] for run in twins),
    ]
    return [
        *(
            item
            for app in APPS
            for condition in CONDITIONS
            for item in request_figures(
                f"request.{app}.{loop}.{condition}", [run[condition] for run in runs[app]]
            )
        ),
        *layer_figures(f"layer.{loop}", [run["calls"] for run in runs["shell"]]),
        *idle_figures(f"idle.{loop}", [run["idle"] for run in twins]),
        *memory_figures(f"memory.{loop}", [run["memory"] for run in twins]),
        figure(f"stalls.{loop}", "reported", stalls),
    ]


def runs_of_turns(kind: str, loop: str, app: str, effort: Effort) -> list[dict[str, Any]]:
    runs = []
    for number in range(effort.processes):
        progress(f"{loop}, {app}: process {number + 1} of {effort.processes}")
        runs.append(run("overhead_turns", kind, loop, app, "--rounds", effort.rounds))
    return runs


def runs_of_twins(kind: str, loop: str, effort: Effort) -> list[dict[str, list[Window]]]:
    windows = ("--windows", effort.idle_windows, "--seconds", effort.idle_seconds)
    runs = []
    for number in range(effort.processes):
        progress(f"{loop}, idle: twins {number + 1} of {effort.processes}")
        runs.append(run("overhead_twins", kind, loop, *windows))
    return runs


def run(
    module: str,
    *arguments: object,
    python: Sequence[str] = (sys.executable,),
    variables: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    done = subprocess.run(
        [*python, "-m", f"benchmarks.{module}", *map(str, arguments)],
        capture_output=True,
        cwd=ROOT,
        env=plain_environment() if variables is None else variables,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{module} failed:\n{done.stderr}")
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def plain_environment() -> dict[str, str]:
    """Leave out whatever would configure the guard or the telemetry: the defaults are measured."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("LOOPGUARD_", "OTEL_"))}


def request_figures(name: str, runs: list[dict[str, Any]]) -> list[Figure]:
    turns: list[list[Turn]] = [run["turns"] for run in runs]
    bare = [statistics.median(turn["bare"] for turn in group) for group in turns]
    added = [[turn["guarded"] - turn["bare"] for turn in group] for group in turns]
    beat = [
        [(turn["beating"] - turn["bare"]) * run["requests_a_beat"] for turn in run["turns"]]
        for run in runs
    ]
    background = [
        statistics.median(costs) / 1e6 * run["beats_per_second"] + run["threads_share"]
        for costs, run in zip(beat, runs, strict=True)
    ]
    ratio = [
        [1 + more / request + share for more in group]
        for group, request, share in zip(added, bare, background, strict=True)
    ]
    return [
        figure(f"{name}.ratio", "guarded ÷ bare", ratio, RATIO_TARGET),
        figure(f"{name}.added", "µs", added),
        figure(f"{name}.beat", "µs", beat),
        figure(f"{name}.background", "% of a core", [[share * 100] for share in background]),
        figure(f"{name}.bare", "µs", [[turn["bare"] for turn in group] for group in turns]),
    ]


def layer_figures(name: str, turns: list[list[Turn]]) -> list[Figure]:
    added = [[turn["guarded_calls"] - turn["bare_calls"] for turn in group] for group in turns]
    return [
        figure(f"{name}.added", "µs", added, LAYER_TARGET),
        figure(f"{name}.bare", "µs", [[turn["bare_calls"] for turn in group] for group in turns]),
    ]


def idle_figures(name: str, windows: list[list[Window]]) -> list[Figure]:
    def each(value: Callable[[Window], float]) -> Groups:
        return [[value(window) for window in group] for group in windows]

    def share(who: str) -> Groups:
        return each(lambda window: core_share(window[who]))

    def added(who: str) -> Groups:
        return each(lambda window: core_share(window[who]) - core_share(window["bare"]))

    def wakeups(who: str) -> Groups:
        return each(lambda window: wakeups_per_second(window[who]))

    return [
        figure(f"{name}.added", "% of a core", added("contestant"), IDLE_TARGET),
        figure(f"{name}.floor.added", "% of a core", added("floor")),
        figure(f"{name}.guarded", "% of a core", share("contestant")),
        figure(f"{name}.floor", "% of a core", share("floor")),
        figure(f"{name}.bare", "% of a core", share("bare")),
        figure(f"{name}.guarded.wakeups", "1/s", wakeups("contestant")),
        figure(f"{name}.floor.wakeups", "1/s", wakeups("floor")),
        figure(f"{name}.bare.wakeups", "1/s", wakeups("bare")),
    ]


def core_share(reading: dict[str, float]) -> float:
    """Percent of one core."""
    return reading["cpu"] / reading["wall"] * 100


def wakeups_per_second(reading: dict[str, float]) -> float:
    """Each sleep ends in one."""
    return reading["sleeps"] / reading["wall"]


def memory_figures(name: str, windows: list[list[Window]]) -> list[Figure]:
    def added(kind: str) -> Groups:
        return [
            [(each["contestant"][kind] - each["bare"][kind]) / 1e6 for each in group]
            for group in windows
        ]

    return [
        figure(f"{name}.{kind}.added", "MB", added(kind), MEMORY_TARGET)
        for kind in ("rss", "pss", "uss")
    ]


def measure_import(effort: Effort) -> list[Figure]:
    """Time `import loopguard` where structlog and OpenTelemetry are imported already."""
    progress("import")
    times = [[import_milliseconds()] for _ in range(effort.imports)]
    return [figure("import.added", "ms", times)]


def import_milliseconds() -> float:
    code = f"{LOADED_ALREADY}; import loopguard"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True
    )
    for line in done.stderr.splitlines():
        _, cumulative, module = line.removeprefix("import time:").split("|")
        if module.strip() == "loopguard":
            return float(cumulative) / 1000
    raise RuntimeError("loopguard was not imported")


# What is shown.


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def machine() -> dict[str, str]:
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": f"{len(os.sched_getaffinity(0))}",
        "system": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": versions,
    }


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def load() -> str:
    """How busy the machine is: figures from a busy one are noisy."""
    return " ".join(f"{average:.1f}" for average in os.getloadavg())


def table(figures: Sequence[Figure]) -> str:
    rows = [
        ("figure", "median", "95 % interval", "trimmed mean", "n", "unit", "target", ""),
        *map(row, figures),
    ]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def row(figure: Figure) -> tuple[str, ...]:
    return (
        figure.name,
        f"{figure.median:.4g}",
        f"{figure.low:.4g} to {figure.high:.4g}",
        f"{figure.mean:.4g} ± {figure.error:.2g}",
        f"{figure.count}",
        figure.unit,
        "" if figure.target is None else f"≤ {figure.target:g}",
        "" if figure.target is None else "missed" if figure.missed else "met",
    )


def as_json(surroundings: dict[str, str], figures: Sequence[Figure]) -> str:
    named = {item.name: asdict(item) | {"missed": item.missed} for item in figures}
    return json.dumps({"machine": surroundings, "figures": named}, indent=2) + "\n"


# The command.


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="does it run at all? (no figure to rely on)"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there too")
    parser.add_argument("--loop", choices=LOOPS, action="append", help="only this loop")
    parser.add_argument(
        "--contestant", choices=["guarded", "bare", "planted", "pinged"], default="guarded"
    )
    parser.add_argument("--processes", type=int, help="how many; more give narrower intervals")
    parser.add_argument("--rounds", type=int, help="rounds of turns in each of them")
    parser.add_argument("--idle-seconds", type=float, help="length of each idle window")
    return parser.parse_args()


def chosen_effort(arguments: argparse.Namespace) -> Effort:
    options = {name: getattr(arguments, name) for name in ("processes", "rounds", "idle_seconds")}
    given = {name: value for name, value in options.items() if value is not None}
    return replace(QUICK if arguments.quick else THOROUGH, **given)


def measure(kind: str, loops: Sequence[str], effort: Effort) -> list[Figure]:
    figures = []
    for loop in loops:
        figures += measure_loop(kind, loop, effort)
    if kind == "guarded":
        figures += measure_import(effort)
    progress("")
    return figures


def main() -> int:
    arguments = read_arguments()
    surroundings = machine() | {"contestant": arguments.contestant, "load_before": load()}
    figures = measure(arguments.contestant, arguments.loop or LOOPS, chosen_effort(arguments))
    surroundings["load_after"] = load()
    for key, value in surroundings.items():
        print(f"{key:12} {value}")
    print(table(figures))
    if arguments.json:
        arguments.json.write_text(as_json(surroundings, figures))
    return 1 if arguments.check and any(item.missed for item in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
