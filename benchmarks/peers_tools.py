"""The same FastAPI handlers that hold the loop, under each tool: what it finds, what it names, and what it costs.

One handler calls a function of the app's that sleeps, the other one that computes, each for 0.25 and for 0.45 s, behind
uvicorn, with OpenTelemetry's instrumentor and SDK. Of four other requests two wait for a timer that comes due meanwhile,
and two are sent meanwhile on connections that are open. All that a tool writes of a stall is searched.

found      it tells of the stall: at its time, or, where it tells no times, of the function with its time
line       the line that held the loop, as its innermost line of the app's
route      the route's template stands in what it says
trace      the request's trace stands there, or is where its spans are put
delayed    of the four other requests, how many traces stand there
cause      that it waited in a call or that it computed; a profiler's time in a built-in function counts for the one, in
           the function itself for the other
wrong by   how far its duration was from the true one, at most
CPU        time per request of a small app that nothing holds, with the tool ÷ without, of all threads of the process
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import peers_app
from benchmarks.overhead import ROOT, Figure
from benchmarks.peers_cost import Effort, cpu_ratio, turns
from benchmarks.peers_environment import PEERS, CannotRunError, Server, serving
from benchmarks.peers_told import own_line
from tests.corpus.judge import overlap
from tests.real.marks import Mark, read_marks

Row = dict[str, Any]

TOOLS = tuple(name for name in PEERS if name != "bare")
MARKS = read_marks("benchmarks.peers_app", ROOT)
FUNCTIONS = {"report": peers_app.read_report, "totals": peers_app.add_up}
ROUTES = {"report": "/reports/{year}", "totals": "/totals/{year}"}
SECONDS = (0.25, 0.45)
HEADS = ("found", "line", "route", "trace", "delayed", "cause")


@dataclass(frozen=True)
class Stall:
    """What is known of one: `began` to `ended` is its request."""

    kind: str
    trace_id: str
    began: float
    ended: float
    entered: float
    left: float
    delayed: tuple[str, ...]

    @property
    def mark(self) -> Mark:
        return MARKS[self.kind]


@dataclass
class Examined:
    """How often a tool was right, and of how many; `wrong_by` in seconds; `reason` why it could not be run."""

    right: dict[str, int] = field(default_factory=lambda: dict.fromkeys(HEADS, 0))
    of: dict[str, int] = field(default_factory=lambda: dict.fromkeys(HEADS, 0))
    wrong_by: float | None = None
    cpu: Figure | None = None
    reason: str | None = None

    def add(self, head: str, right: int, of: int = 1) -> None:
        self.right[head] += right
        self.of[head] += of


# The stalls.


class Client:
    """Five connections that stay open."""

    def __init__(self, port: int, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._count = 0
        self._connections = [http.client.HTTPConnection("127.0.0.1", port) for _ in range(5)]
        for connection in self._connections:
            _ask(connection, "/stock/0", self._new_trace())

    def hold(self, kind: str, path: str) -> Stall:
        """Ask for what holds the loop, while others wait."""
        early, late = self._connections[:2], self._connections[2:4]
        traces = [self._new_trace() for _ in self._connections]
        waiting = [self._stock(*each) for each in zip(early, traces, strict=False)]
        time.sleep(0.1)  # half of what they wait for
        began = time.time()
        held = self._pool.submit(_ask, self._connections[4], path, traces[4])
        time.sleep(0.1)
        waiting += [self._stock(*each) for each in zip(late, traces[2:], strict=False)]
        truth = held.result() or {"entered": began, "left": time.time()}
        ended = time.time()
        for each in waiting:
            each.result()
        time.sleep(0.3)
        return Stall(kind, traces[4], began, ended, **truth, delayed=tuple(traces[:4]))

    def _stock(self, connection: http.client.HTTPConnection, trace: str) -> Any:
        return self._pool.submit(_ask, connection, "/stock/1", trace)

    def _new_trace(self) -> str:
        self._count += 1
        return f"{0xABCD:016x}{self._count:016x}"


def _ask(connection: http.client.HTTPConnection, path: str, trace: str) -> Any:
    """The answer, or nothing where the handler failed."""
    connection.request("GET", path, headers={"traceparent": f"00-{trace}-{1:016x}-01"})
    answer = connection.getresponse()
    body = answer.read()
    if answer.status == 200:
        return json.loads(body)
    connection.close()  # as the server does, though it does not say so; the next request opens it again
    return None


def stalls(server: Server) -> list[Stall]:
    per_second = _counts_per_second()
    with ThreadPoolExecutor(5) as pool:
        client = Client(server.port, pool)
        time.sleep(0.3)
        return [
            *(client.hold("report", f"/reports/2026?seconds={seconds}") for seconds in SECONDS),
            *(
                client.hold("totals", f"/totals/2026?count={round(seconds * per_second)}")
                for seconds in SECONDS
            ),
        ]


def _counts_per_second() -> float:
    """At the best: a stall may take longer, but no less than it should."""
    count = 200_000
    held = [peers_app.add_up(count) for _ in range(5)]
    return count / min(each["left"] - each["entered"] for each in held)


# The judgement.


def judge(truths: Sequence[Stall], told: Sequence[Row]) -> Examined:
    examined, errors = Examined(), []
    for stall in truths:
        of_it = [each for each in told if _is_of(each, stall)]
        best = max(of_it, key=lambda each: each["duration"] or 0, default=None)
        said = "".join(each["said"] for each in of_it)
        traces = {each["trace_id"] for each in of_it}
        examined.add("found", best is not None)
        examined.add("line", best is not None and _on_line(best, stall.mark))
        examined.add("route", ROUTES[stall.kind] in said)
        examined.add("trace", stall.trace_id in traces or stall.trace_id in said)
        examined.add("delayed", sum(each in said for each in stall.delayed), len(stall.delayed))
        examined.add("cause", best is not None and stall.mark.cause in best["causes"])
        if best and best["duration"] is not None:
            errors.append(abs(best["duration"] - (stall.left - stall.entered)))
    examined.wrong_by = max(errors, default=None)
    return examined


def _is_of(told: Row, stall: Stall) -> bool:
    if told["duration"] is None:
        return bool(stall.began <= told["started_at"] <= stall.ended)
    if told["started_at"] is None:
        return _in_function(told, FUNCTIONS[stall.kind])
    return overlap(told, {"entered": stall.entered, "left": stall.left})


def _in_function(told: Row, function: Callable[..., object]) -> bool:
    place = own_line(told["stack"])
    lines = [line for *_, line in function.__code__.co_lines() if line is not None]
    return place is not None and min(lines) <= place[1] <= max(lines)


def _on_line(told: Row, mark: Mark) -> bool:
    place = own_line(told["stack"])
    return place is not None and mark.line <= place[1] <= mark.last_line


# The tools.


def examine(name: str, loop: str, rounds: int) -> Examined:
    try:
        with serving(name, loop, "handlers") as server:
            truths = stalls(server)
            told = server.end()
    except CannotRunError as error:
        return Examined(reason=str(error))
    examined = judge(truths, told)
    runs = [turns(["bare", name], loop, Effort(rounds=rounds))]
    examined.cpu = cpu_ratio(name, runs)
    return examined


def table(loop: str, examined: dict[str, Examined]) -> str:
    """In Markdown."""
    heads = (f"on {loop}", *HEADS, "wrong by", "CPU")
    lines = [heads, ("---",) * len(heads), *(_line(*each) for each in examined.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(name: str, tool: Examined) -> tuple[str, ...]:
    if tool.reason is not None:
        return PEERS[name].title, f"cannot be run here: {tool.reason}", *([""] * 7)
    counts = (f"{tool.right[head]}/{tool.of[head]}" for head in HEADS)
    wrong = "–" if tool.wrong_by is None else f"{tool.wrong_by * 1000:.0f} ms"
    cpu = "–" if tool.cpu is None else f"{tool.cpu.median:.2f}"
    return PEERS[name].title, *counts, wrong, cpu


def measure(
    tools: Sequence[str], loops: Sequence[str], rounds: int, file: Path | None = None
) -> str:
    by_loop = {loop: {name: examine(name, loop, rounds) for name in tools} for loop in loops}
    if file:
        plain = {
            loop: {name: asdict(tool) for name, tool in examined.items()}
            for loop, examined in by_loop.items()
        }
        file.write_text(json.dumps(plain))
    return "\n\n".join(table(loop, examined) for loop, examined in by_loop.items())
