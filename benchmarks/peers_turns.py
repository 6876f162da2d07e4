"""Processes alike but for their watcher, which serve requests by turns and then idle side by side.

`peers_cost.py` runs this several times. It prints, as JSON, what each of them took in each round and window.
"""

from __future__ import annotations

import argparse
import json
import os
from functools import partial
from typing import TextIO

from fastapi import FastAPI

from benchmarks.overhead_app import (
    Server,
    new_runner,
    output_of_its_own,
    use_what_everybody_uses,
)
from benchmarks.overhead_twins import Reading, Twin, Work, forked, obey, together, warm_up
from benchmarks.peers_serve import load
from tests.corpus.session import Watcher

LEAD_IN = 40


def live(name: str, loop: str, app: FastAPI, commands: int, readings: int) -> None:
    """Be watched: prepare the app, run its loop, obey."""
    watcher = load(name)
    watcher.install(app)
    with (
        new_runner(loop) as runner,
        os.fdopen(commands) as lines,
        os.fdopen(readings, "w") as answers,
    ):
        runner.run(_watched(watcher, Work(Server(app), lambda: 0), lines, answers))


async def _watched(watcher: Watcher, work: Work, commands: TextIO, readings: TextIO) -> None:
    async with watcher.on_loop():
        await obey(work, commands, readings)


def serve_in_turn(twins: dict[str, Twin], requests: int, number: int) -> dict[str, Reading]:
    """One after the other; who begins changes each time."""
    names = list(twins)
    first = number % len(names)
    readings: dict[str, Reading] = {}
    for name in names[first:] + names[:first]:
        together({name: twins[name]}, f"requests {LEAD_IN}")
        readings |= together({name: twins[name]}, f"serving {requests}")
    return readings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loop", choices=["asyncio", "uvloop"])
    parser.add_argument("watchers", nargs="+")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--windows", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=2)
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    use_what_everybody_uses()
    lives = {name: partial(live, name, options.loop) for name in options.watchers}
    with output_of_its_own() as result:
        warm_up(options.loop)
        with forked(lives) as twins:
            measured = {
                "serving": [
                    serve_in_turn(twins, options.requests, number)
                    for number in range(options.rounds)
                ],
                "idle": [
                    together(twins, f"idle {options.seconds}") for _ in range(options.windows)
                ],
                "memory": [together(twins, "memory 0")],
            }
        json.dump(measured, result)


if __name__ == "__main__":
    main()
