"""A long run: memory, threads and files stay as they are, and every stall is accounted for.

    python benchmarks/soak.py            200,000 requests and 2,000 stalls of nine kinds; then the demo's app behind
                                         gunicorn, under load, workers killed, sinks failing: some ten minutes
    python benchmarks/soak.py --quick    the same for half a minute
    python benchmarks/soak.py --write    puts the figures into docs/reliability.md

The exit code is 1 where something is not accounted for, or grows.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import soak_workers  # noqa: E402
from tests.reliability import PAGE, with_section  # noqa: E402

WAYS = (
    *("sleeps", "receives", "locks", "computes", "keeps_the_gil", "waits_for_the_gil", "collects"),
    *("imports", "crowds"),
)
CONNECTIONS = 8
FLAT_MB = 2.0
State = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    requests: int
    stalls: int
    samples: int


WHOLE, QUICK = Plan(200_000, 2_000, 40), Plan(3_000, 45, 10)


class Client:
    """One connection that is kept alive. A whole HTTP client would take more of the machine than the server."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def get(self, path: str) -> Any:
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert head.startswith(b"HTTP/1.1 200"), head
        assert length, head
        return json.loads(await self._reader.readexactly(int(length[1])))

    def close(self) -> None:
        self._writer.close()


@contextmanager
def served(directory: Path) -> Iterator[int]:
    """The app behind uvicorn; gives its port."""
    log = directory / "log"
    command = ["-m", "uvicorn", "benchmarks.soak_app:app", "--port", "0", "--no-access-log"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, "SOAK_DIRECTORY": str(directory), "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=output,
        )
    try:
        while not (found := re.search(r"127\.0\.0\.1:(\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield int(found[1])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


async def soak(port: int, plan: Plan) -> list[State]:
    """Send them all, the stalls evenly between the others; what the server said of itself, from time to time."""
    clients = [Client(port) for _ in range(CONNECTIONS)]
    holder, states = Client(port), list[State]()
    for client in (*clients, holder):
        await client.connect()
    await holder.get("/flush")  # on a thread that then stays
    ways, numbers = itertools.cycle(WAYS), iter(range(plan.requests))
    held = sampled = 0

    async def visit(client: Client) -> None:
        for number in numbers:
            await client.get(f"/items/{number}")

    async def hold() -> None:
        nonlocal held, sampled
        while held < plan.stalls:
            sent = plan.requests - numbers.__length_hint__()  # type: ignore[attr-defined]
            if sent * plan.stalls >= held * plan.requests:
                await holder.get(f"/hold/{next(ways)}")
                held += 1
                if held * plan.samples >= sampled * plan.stalls:
                    sampled += 1
                    states.append(await holder.get("/state"))
            await asyncio.sleep(0.01)

    await asyncio.gather(hold(), *(visit(client) for client in clients))
    assert await holder.get("/flush")
    states.append(await holder.get("/state"))
    for client in (*clients, holder):
        client.close()
    return states


@dataclass
class Judged:
    """Which stalls were told, and as what."""

    causes: defaultdict[str, Counter[str]]
    records: int
    missing: int
    twice: int
    others: Counter[str]


def judge(directory: Path) -> Judged:
    truth = [json.loads(line) for line in (directory / "truth.jsonl").read_text().splitlines()]
    lines = (directory / "stalls.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if not record["ongoing"]]
    judged = Judged(defaultdict(Counter), 0, 0, 0, Counter())
    found: list[list[str]] = [[] for _ in truth]
    for record in records:
        # Where the watchdog got no CPU, one record may be all that there is of two in one iteration.
        of = [n for n, each in enumerate(truth) if _is_of(record, each)]
        judged.records += bool(of)
        judged.others.update([] if of else [record["cause"]])
        for n in of:
            found[n].append(record["cause"])
    for each, told in zip(truth, found, strict=True):
        judged.causes[each["way"]].update(told[:1])
        judged.missing += not told
        judged.twice += len(told) > 1
        if not told:
            print(f"not told: {each}", file=sys.stderr)
    return judged


def _is_of(record: State, truth: State) -> bool:
    """Whether the middle of one lies within the other."""
    since = record["started_at"] - record["duration_error"]
    until = record["started_at"] + record["duration"]
    inside = truth["began"] <= (since + until) / 2 <= truth["ended"]
    return bool(inside or since <= (truth["began"] + truth["ended"]) / 2 <= until)


def report(
    plan: Plan, states: list[State], judged: Judged, seconds: float
) -> tuple[list[str], bool]:
    """The rows of the table, and whether all is as it should be."""
    warm, last = states[len(states) // 5 :], states[-1]
    memory = [state["memory_mb"] for state in warm]
    stats = last["stats"]
    accounted = stats["logged"] + stats["suppressed"] + stats["dropped"]
    told = sum(sum(causes.values()) for causes in judged.causes.values())
    others = sum(judged.others.values())
    swing = max(abs(each - memory[0]) for each in memory)
    good = (
        judged.missing == stats["dropped"] == stats["sink_errors"] == 0
        and stats["stalls"]
        == accounted
        == judged.records + others
        == last["heard"]
        == last["spans"]
        and swing <= FLAT_MB
        and {state["threads"] for state in warm} == {last["threads"]}
        and max(state["files"] for state in warm) - min(state["files"] for state in warm) <= 1
    )
    by_way = ", ".join(
        f"{way.replace('_', ' ')} {dict(causes)}".replace("'", "")
        for way, causes in judged.causes.items()
    )
    foreign = (
        f" and {others} of the machine's own ({dict(judged.others)})".replace("'", "")
        if others
        else ""
    )
    counts = f"{stats['stalls']:,} = {stats['logged']:,} + {stats['suppressed']:,} + {stats['dropped']:,}"
    apart = f"{memory[0]:.1f} MB, {memory[-1]:.1f} MB; {swing:.1f} MB"
    rows = [
        f"| requests, stalls injected, seconds | {plan.requests:,}, {plan.stalls:,}, {seconds:.0f} |",
        f"| told of those injected; twice; not at all | {told:,}; {judged.twice}; {judged.missing} |",
        f"| `stalls` = `logged` + `suppressed` + `dropped` | {counts}: those injected{foreign} |",
        f"| heard by `on_stall`; spans; `sink_errors` | {last['heard']:,}; {last['spans']:,}; {stats['sink_errors']} |",
        f"| memory after a fifth of the run, at the end; at most apart | {apart} |",
        f"| threads, open files, in all samples | {_span(warm, 'threads')}, {_span(warm, 'files')} |",
        f"| told as | {by_way} |",
    ]
    return rows, good


def _span(states: list[State], key: str) -> str:
    seen = [state[key] for state in states]
    return str(seen[0]) if min(seen) == max(seen) else f"{min(seen)} to {max(seen)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", choices=("requests", "workers"))
    options = parser.parse_args()
    parts = {"requests": soak_requests, "workers": soak_workers.run}
    well = True
    for name, part in parts.items():
        if options.only in (None, name):
            rows, good = part(options.quick)
            table = "\n".join(["| | |", "| --- | --- |", *rows])
            print(f"{table}\n\n{name}: {'all accounted for' if good else 'NOT ACCOUNTED FOR'}\n")
            well = well and good
            if options.write:
                PAGE.write_text(with_section(PAGE.read_text(), f"soak: {name}", table))
    return 0 if well else 1


def soak_requests(quick: bool) -> tuple[list[str], bool]:
    plan, began = QUICK if quick else WHOLE, time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        with served(Path(name)) as port:
            states = asyncio.run(soak(port, plan))
        return report(plan, states, judge(Path(name)), time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
