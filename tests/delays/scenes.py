"""Scenes with a culprit and its victims, played against a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.delays.client import Asked, ask_after, close_all, connections
from tests.real.server import Row, Server, read_rows, wait_until
from tests.real.told import belongs

HELD = 0.6
SURE = 0.015  # the kernel's ticks, and what a client may be late
LATE = 0.8  # in which those come that begin after the record went out
SETTLED = 10.0  # a busy machine's


@dataclass
class Scene:
    """What was asked, and what came of it."""

    culprit: Asked
    waited: dict[str, list[Asked]]
    innocent: dict[str, list[Asked]]
    truth: Row
    record: Row
    spans: list[Row]
    woke: list[Row]

    def named(self, those: Iterable[Asked]) -> list[Row]:
        """The spans of delays in the traces of those requests."""
        traces = {asked.trace_id for asked in those}
        return [span for span in self.delays if span["trace_id"] in traces]

    @property
    def delays(self) -> list[Row]:
        """Those of this stall: on a busy machine there may be others."""
        return [
            span
            for span in self.spans
            if span["name"] == "event_loop.delay"
            and span["attributes"]["loopguard.stall.id"] == self.record["id"]
        ]

    @property
    def ended(self) -> float:
        return float(self.record["started_at"] + self.record["duration"])

    def settle(self) -> None:
        """On a busy machine some come sooner or later than they were meant to: each counts as what it was."""
        coming = [*self.waited.pop("queued"), *self.innocent.pop("after", ())]
        entered, left = self.truth["entered"], self.truth["left"]
        self.waited["queued"] = [
            each for each in coming if entered + SURE < each.sent < left - SURE
        ]
        self.innocent["after"] = [each for each in coming if each.sent > self.ended + SURE]
        surely = {row["trace_id"] for row in self.woke if entered + SURE < row["due"] < left - SURE}
        ats = self.waited.pop("at", [])
        self.waited["at"] = [each for each in ats if each.trace_id in surely]
        self.woke = [row for row in self.woke if row["trace_id"] in surely]

    @property
    def stall(self) -> Row:
        [stall] = [
            span
            for span in self.spans
            if span["name"] == "event_loop.stall"
            and span["attributes"]["loopguard.stall.id"] == self.record["id"]
        ]
        return stall


async def warm(url: str) -> None:
    """The first request of all is slow before it gets anywhere."""
    made = await connections(url, 1)
    await made[0].ask(Asked("/quick/first"))
    close_all(made)


async def play(
    server: Server,
    culprit: Asked,
    flying: Sequence[Asked],
    queued: Sequence[Asked],
    after: Sequence[Asked] = (),
) -> None:
    """Those in flight are asked before, the queued ones all through the stall, and the others when it is over."""
    everything = [culprit, *flying, *queued, *after]
    made = await connections(server.url, len(everything))
    free = iter(made)
    asking = [asyncio.create_task(next(free).ask(each)) for each in flying]
    await asyncio.sleep(0.3)
    before = len(rows_of(server.starts, "begins"))
    asking.append(asyncio.create_task(next(free).ask(culprit)))
    while len(rows_of(server.starts, "begins")) == before:
        await asyncio.sleep(0.005)
    span = 0.8 * HELD / max(1, len(queued))
    asking += [
        asyncio.create_task(ask_after(0.1 * HELD + number * span, next(free), each))
        for number, each in enumerate(queued)
    ]
    asking += [asyncio.create_task(ask_after(HELD + 0.05, next(free), each)) for each in after]
    await asyncio.gather(*asking)
    close_all(made)


def record_of(server: Server, truth: Row) -> Row:
    """The final record of what the truth tells of."""

    def found() -> list[Row]:
        rows = read_rows(server.jsonl)
        return [row for row in rows if belongs(row, truth) and not row["ongoing"]]

    assert wait_until(lambda: bool(found()), SETTLED), server.child.read()
    return found()[0]


def spans_of(server: Server, record: Row, late: float = LATE) -> list[Row]:
    """All spans that were sent, once the stall's is among them and nothing more of it comes."""

    def of_stall(name: str) -> list[Row]:
        return [
            row
            for row in read_rows(server.spans)
            if row["name"] == name and row["attributes"]["loopguard.stall.id"] == record["id"]
        ]

    assert wait_until(lambda: bool(of_stall("event_loop.stall")), SETTLED), server.child.read()
    seen = -1
    while len(of_stall("event_loop.delay")) > seen:
        seen = len(of_stall("event_loop.delay"))
        time.sleep(late)
    return read_rows(server.spans)


def truth_of(server: Server) -> Row:
    return read_rows(server.truth)[-1]


def rows_of(path: Path, case: str) -> list[Row]:
    return [row for row in read_rows(path) if row.get("case") == case]
