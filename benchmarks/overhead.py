"""What loopguard costs while all is well: CPU per request, idle CPU, the ASGI layer, memory, import time.

    uv run python benchmarks/overhead.py [--quick] [--json PATH] [--check]

How it is made fair:

- A process that has loaded everything and run the app hot is forked into twins: the same memory, the same
  app, server loop and libraries (`overhead_twins.py`). One stays bare; in the other loopguard is installed
  with its defaults. Two processes started apart would differ by some percent for good, whatever the number
  of turns, by where their memory happens to lie.
- The twins live at once and take turns: bare, guarded, guarded, bare … in blocks of 20 to 30 ms,
  each with a lead-in that is not counted. A drift of the machine's speed meets both alike, and what is
  compared is neighbours. The whole is repeated with fresh twins.
- The app is called in process, without sockets or an HTTP client, so that there is little to hide a cost behind.
- What counts is CPU time of all threads of the process: it shows a fight for the GIL, and it does not
  count the time for which other programs had the machine. They still disturb the caches: see the interval.
- The estimate is the median of the pairs of blocks; the interval holds 95 % of bootstrap medians, which
  draw twins first and their blocks second.

To see what the method can tell, put something known in the place of loopguard: `--contestant bare` must
come out at 1, `--contestant planted` (3 % more requests than it admits) at 1.03, and `--contestant pinged`
shows what a thread costs that wakes up 50 times a second.

It needs Linux, FastAPI and uvloop.
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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

TWINS = Path(__file__).with_name("overhead_twins.py")
LOOPS = ("asyncio", "uvloop")
PACKAGES = ("fastapi", "starlette", "uvloop", "structlog", "opentelemetry-api")

RATIO_TARGET = 1.01
IDLE_TARGET = 0.3  # percent of a core
MEMORY_TARGET = 8.0  # MB

DRAWS = 2000
LOADED_ALREADY = (
    "import structlog, opentelemetry.context, opentelemetry.metrics, opentelemetry.trace"
)

Reading = dict[str, float]
Pair = tuple[Reading, Reading]  # bare, contestant
Groups = list[list[float]]  # one list for each pair of twins


@dataclass(frozen=True, slots=True)
class Effort:
    """How much to measure."""

    twins: int
    blocks: int
    requests: int
    calls: int
    idle_windows: int
    idle_seconds: float
    imports: int


THOROUGH = Effort(
    twins=24, blocks=30, requests=250, calls=10_000, idle_windows=1, idle_seconds=2, imports=7
)
QUICK = Effort(
    twins=1, blocks=4, requests=100, calls=2000, idle_windows=2, idle_seconds=0.3, imports=1
)


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value: the median, the interval that holds it, the spread of the single measurements."""

    name: str
    unit: str
    median: float
    low: float
    high: float
    quartiles: tuple[float, float]
    count: int
    target: float | None

    @property
    def missed(self) -> bool:
        return self.target is not None and self.median > self.target


# From single measurements to figures.


def figure(name: str, unit: str, groups: Groups, target: float | None = None) -> Figure:
    values = [value for group in groups for value in group]
    low, high = bootstrap_interval(groups)
    return Figure(
        name=name,
        unit=unit,
        median=statistics.median(values),
        low=low,
        high=high,
        quartiles=(quantile(values, 0.25), quantile(values, 0.75)),
        count=len(values),
        target=target,
    )


def bootstrap_interval(groups: Groups) -> tuple[float, float]:
    """Say where the median would lie in 95 % of repetitions, other twins and other blocks drawn each time."""
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


def each(pairs: list[list[Pair]], value: Callable[[Reading, Reading], float]) -> Groups:
    return [[value(bare, contestant) for bare, contestant in group] for group in pairs]


def cpu_ratio(bare: Reading, contestant: Reading) -> float:
    return contestant["cpu"] / bare["cpu"]


def total_ratio(pairs: list[Pair]) -> float:
    """Of all blocks together: sees a cost that comes in few blocks, to which a median is blind."""
    return sum(contestant["cpu"] for _, contestant in pairs) / sum(bare["cpu"] for bare, _ in pairs)


def cpu_each(answer: Reading) -> float:
    """Microseconds of CPU for one request or call."""
    return answer["cpu"] / answer["count"] * 1e6


def cpu_added(bare: Reading, contestant: Reading) -> float:
    return cpu_each(contestant) - cpu_each(bare)


def core_share(answer: Reading) -> float:
    """Percent of one core."""
    return answer["cpu"] / answer["wall"] * 100


def sleeps_per_second(answer: Reading) -> float:
    """Each sleep ends in a wake-up."""
    return answer["sleeps"] / answer["wall"]


# What is measured.


def measure_loop(kind: str, loop: str, effort: Effort) -> list[Figure]:
    runs = []
    for number in range(effort.twins):
        progress(f"{loop}: twins {number + 1} of {effort.twins}")
        runs.append(run_twins(kind, loop, effort))
    measured = {name: [run[name] for run in runs] for name in runs[0]}
    return [
        *request_figures(f"request.{loop}", measured["request"]),
        *request_figures(f"request_beside_thread.{loop}", measured["request_beside_thread"]),
        *idle_figures(f"idle.{loop}", measured["idle"]),
        *layer_figures(f"layer.{loop}", measured["layer"]),
        *memory_figures(f"memory.{loop}", measured["memory"]),
        figure(
            f"stalls.{loop}",
            "reported",
            each(measured["stalls"], lambda _, guarded: guarded["stalls"]),
        ),
    ]


def run_twins(kind: str, loop: str, effort: Effort) -> dict[str, list[Pair]]:
    done = subprocess.run(
        [
            *(sys.executable, str(TWINS), kind, loop),
            *("--blocks", f"{effort.blocks}"),
            *("--requests", f"{effort.requests}"),
            *("--calls", f"{effort.calls}"),
            *("--idle-windows", f"{effort.idle_windows}"),
            *("--idle-seconds", f"{effort.idle_seconds}"),
        ],
        capture_output=True,
        env=plain_environment(),
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{TWINS.name} failed:\n{done.stderr}")
    measured: dict[str, list[Pair]] = json.loads(done.stdout)
    return measured


def plain_environment() -> dict[str, str]:
    """Leave out whatever would configure the guard or the telemetry: the defaults are measured."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("LOOPGUARD_", "OTEL_"))}


def request_figures(name: str, pairs: list[list[Pair]]) -> list[Figure]:
    return [
        figure(f"{name}.ratio", "guarded ÷ bare", each(pairs, cpu_ratio), RATIO_TARGET),
        figure(
            f"{name}.ratio_of_totals", "guarded ÷ bare", [[total_ratio(group)] for group in pairs]
        ),
        figure(f"{name}.added", "µs", each(pairs, cpu_added)),
        figure(f"{name}.bare", "µs", each(pairs, lambda bare, _: cpu_each(bare))),
        figure(f"{name}.guarded", "µs", each(pairs, lambda _, guarded: cpu_each(guarded))),
        figure(f"{name}.bare.sleeps", "1/s", each(pairs, lambda bare, _: sleeps_per_second(bare))),
        figure(
            f"{name}.guarded.sleeps",
            "1/s",
            each(pairs, lambda _, guarded: sleeps_per_second(guarded)),
        ),
    ]


def idle_figures(name: str, pairs: list[list[Pair]]) -> list[Figure]:
    added = each(pairs, lambda bare, guarded: core_share(guarded) - core_share(bare))
    return [
        figure(f"{name}.added", "% of a core", added, IDLE_TARGET),
        figure(f"{name}.bare", "% of a core", each(pairs, lambda bare, _: core_share(bare))),
        figure(
            f"{name}.guarded", "% of a core", each(pairs, lambda _, guarded: core_share(guarded))
        ),
        figure(f"{name}.bare.wakeups", "1/s", each(pairs, lambda bare, _: sleeps_per_second(bare))),
        figure(
            f"{name}.guarded.wakeups",
            "1/s",
            each(pairs, lambda _, guarded: sleeps_per_second(guarded)),
        ),
    ]


def memory_figures(name: str, pairs: list[list[Pair]]) -> list[Figure]:
    def added(kind: str) -> Groups:
        return each(pairs, lambda bare, guarded: (guarded[kind] - bare[kind]) / 1e6)

    return [
        figure(f"{name}.{kind}.added", "MB", added(kind), MEMORY_TARGET)
        for kind in ("rss", "pss", "uss")
    ]


def layer_figures(name: str, pairs: list[list[Pair]]) -> list[Figure]:
    return [
        figure(f"{name}.added", "µs", each(pairs, cpu_added)),
        figure(f"{name}.bare", "µs", each(pairs, lambda bare, _: cpu_each(bare))),
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
        ("figure", "median", "95 % interval", "quartiles", "n", "unit", "target", ""),
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
        f"{figure.quartiles[0]:.4g} to {figure.quartiles[1]:.4g}",
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
    parser.add_argument(
        "--twins", type=int, help="how many pairs of processes; more give narrower intervals"
    )
    parser.add_argument("--blocks", type=int, help="pairs of blocks for each of them")
    parser.add_argument("--idle-seconds", type=float, help="length of each idle window")
    return parser.parse_args()


def chosen_effort(arguments: argparse.Namespace) -> Effort:
    options = {name: getattr(arguments, name) for name in ("twins", "blocks", "idle_seconds")}
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
