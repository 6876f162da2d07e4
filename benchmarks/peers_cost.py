"""What a service costs under each watcher while all is well, in one run, in alternation.

CPU per request    a small FastAPI app called in process: processes forked from one serve 200 requests by turns
                   (`peers_turns.py`), on two cores, and all of it pinned to one; with the watcher ÷ bare in the same
                   round, of all threads of the process
idle, wake-ups     the same processes side by side with nothing to do: percent of a core, and how often a second a
                   thread went to sleep
memory             what the process has of its own more than the bare one has, MB; of that, all that is resident
over the wire      the same app behind uvicorn, under wrk with 20 connections, by turns: requests a second with the
                   watcher ÷ bare in the same round, and the latency that half and 99 in 100 of them stayed under, ms

Each is the median, and in brackets where it lies in 95 of 100 repetitions (`overhead.py`).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.overhead import Figure, core_share, figure, run, wakeups_per_second
from benchmarks.peers_environment import PEERS, environment, serving

WATCHERS = ("loopguard", "livekit", "aiocop", "pyleak", "debug_mode")
WRK = ("wrk", "--threads", "1", "--connections", "20", "--latency")

Run = dict[str, list[dict[str, dict[str, float]]]]
Figures = dict[str, Figure]


@dataclass(frozen=True)
class Effort:
    """How much to measure; `seconds` of each idle window, and of each turn over the wire."""

    processes: int = 1
    rounds: int = 20
    requests: int = 200
    windows: int = 0
    seconds: float = 2
    wire_rounds: int = 0


THOROUGH = Effort(processes=3, rounds=30, windows=3, wire_rounds=6)
QUICK = Effort(rounds=2, requests=40, windows=1, seconds=0.3, wire_rounds=1)


# In process.


def turns(names: Sequence[str], loop: str, effort: Effort, cores: int = 2) -> Run:
    """One process and those forked from it, in an environment that has all of these watchers."""
    python, variables = environment(names)
    options = {
        "--cores": cores,
        "--rounds": effort.rounds,
        "--requests": effort.requests,
        "--windows": effort.windows,
        "--seconds": effort.seconds,
    }
    given = (part for option in options.items() for part in option)
    return run("peers_turns", loop, *names, *given, python=python, variables=variables)


def cpu_ratio(name: str, runs: Sequence[Run]) -> Figure:
    ratios = [[each[name]["cpu"] / each["bare"]["cpu"] for each in one["serving"]] for one in runs]
    return figure(f"cpu.{name}", "÷ bare", ratios)


def in_process(name: str, runs: Sequence[Run], pinned: Sequence[Run]) -> Figures:
    def idle(unit: str, value: Callable[[dict[str, float]], float]) -> Figure:
        return figure(unit, unit, [[value(each[name]) for each in one["idle"]] for one in runs])

    def memory(each: dict[str, dict[str, float]]) -> float:
        if name == "bare":
            return each[name]["rss"] / 1e6
        return (each[name]["uss"] - each["bare"]["uss"]) / 1e6

    return {
        "CPU per request, two cores": cpu_ratio(name, runs),
        "on one core": cpu_ratio(name, pinned),
        "idle, % of a core": idle("% of a core", core_share),
        "wake-ups a second": idle("1/s", wakeups_per_second),
        "memory, MB": figure(
            "memory", "MB", [[memory(each) for each in one["memory"]] for one in runs]
        ),
    }


# Over the wire.


def over_the_wire(names: Sequence[str], loop: str, effort: Effort) -> dict[str, Figures]:
    """By watcher; nothing where there is no wrk."""
    if shutil.which(WRK[0]) is None:
        return {name: {} for name in names}
    rounds = []
    with ExitStack() as stack:
        servers = {name: stack.enter_context(serving(name, loop, "plain")) for name in names}
        for number in range(effort.wire_rounds):
            order = names if number % 2 == 0 else names[::-1]
            rounds.append({name: _load(servers[name].port, effort.seconds) for name in order})
        for server in servers.values():
            server.end()
    return {name: _wire_figures(name, rounds) for name in names}


def _load(port: int, seconds: float) -> dict[str, float]:
    """What wrk says of one turn."""
    command = [*WRK, "--duration", f"{max(1, round(seconds))}s"]
    target = ("--header", "Authorization: Bearer me", f"http://127.0.0.1:{port}/orders/1")
    said = subprocess.run([*command, *target], capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in said:
        raise SystemExit(f"the app failed:\n{said}")
    [rate] = re.findall(r"Requests/sec: +([\d.]+)", said)
    latency = {
        share: float(value) * {"us": 0.001, "ms": 1, "s": 1000}[unit]
        for share, value, unit in re.findall(r"(\d\d)% +([\d.]+)(us|ms|s)", said)
    }
    return {"rate": float(rate), "p50": latency["50"], "p99": latency["99"]}


def _wire_figures(name: str, rounds: Sequence[dict[str, dict[str, float]]]) -> Figures:
    ratios = [each[name]["rate"] / each["bare"]["rate"] for each in rounds]
    return {
        "requests a second": figure("rate", "÷ bare", [ratios]),
        "p50, ms": figure("p50", "ms", [[each[name]["p50"] for each in rounds]]),
        "p99, ms": figure("p99", "ms", [[each[name]["p99"] for each in rounds]]),
    }


# What is shown.


def table(loop: str, by_watcher: dict[str, Figures]) -> str:
    """In Markdown."""
    heads = (f"on {loop}", *next(iter(by_watcher.values())))
    lines = [heads, ("---",) * len(heads)]
    lines += [
        (PEERS[name].title, *map(_cell, figures.values())) for name, figures in by_watcher.items()
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(figure: Figure) -> str:
    if figure.low == figure.high:
        return f"{figure.median:.3g}"
    return f"{figure.median:.3g} ({figure.low:.3g}–{figure.high:.3g})"


def measure(
    names: Sequence[str], loops: Sequence[str], effort: Effort, file: Path | None = None
) -> str:
    by_loop = {loop: _measure_loop(names, loop, effort) for loop in loops}
    if file:
        plain: dict[str, Any] = {
            loop: {
                name: {head: asdict(each) for head, each in figures.items()}
                for name, figures in by_watcher.items()
            }
            for loop, by_watcher in by_loop.items()
        }
        file.write_text(json.dumps(plain))
    tables = [table(loop, by_watcher) for loop, by_watcher in by_loop.items()]
    if shutil.which(WRK[0]) is None:
        tables.append("Not over the wire: wrk is not installed.")
    return "\n\n".join(tables)


def _measure_loop(names: Sequence[str], loop: str, effort: Effort) -> dict[str, Figures]:
    runs = [turns(names, loop, effort) for _ in range(effort.processes)]
    alone = Effort(rounds=effort.rounds, requests=effort.requests)
    pinned = [turns(names, loop, alone, cores=1) for _ in range(effort.processes)]
    wire = over_the_wire(names, loop, effort)
    return {name: in_process(name, runs, pinned) | wire[name] for name in names}
