"""What was seen, raw: the data that pass from capture and watch to explain.

Code objects and offsets are kept, never frames: a frame keeps the user's locals alive. All times are nanoseconds of
CLOCK_MONOTONIC (`time.monotonic_ns`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextvars import Context, ContextVar
from dataclasses import dataclass
from types import CodeType
from typing import Any, NamedTuple, Protocol

from loopguard.record import Delayed, Phase

BACKGROUND = frozenset({"starlette.background", "litestar.background_tasks"})
"""The modules that run background tasks, inside the coroutine of the request that left them."""


Scope = dict[str, Any]
"""What ASGI tells of a request."""
PROFILED: ContextVar[str | None] = ContextVar("loopguard_profile", default=None)
"""The profile that is being taken of the request that this context belongs to."""


class RawFrame(NamedTuple):
    """One frame of a sampled stack: enough to name file, line and expression later, off the hot path."""

    code: CodeType
    lasti: int
    module: str | None


@dataclass(frozen=True, slots=True)
class Callee:
    """What an expression was calling: `function` as found without running user code, `owner` the type of its self."""

    function: object
    owner: type | None
    name: str


class Through(NamedTuple):
    """The frame at that index of a stack called something in C, which called the frames inside of it."""

    place: int
    callee: Callee


@dataclass(frozen=True, slots=True)
class Iteration:
    """One turn of the loop: when it began (to within `error_ns`), and which of its ready callbacks is running."""

    started_ns: int
    error_ns: int
    index: int | None


@dataclass(frozen=True, slots=True)
class ActiveRequest:
    """A request in flight, as the ASGI layer knows it. `context` was copied as it began: its own span is in there.

    `coroutine` serves it, and is dead when it has ended. `background`: as it was found, it awaited a background task.
    """

    scope: Scope
    started_ns: int
    context: Context
    coroutine: weakref.ref[Any]
    background: bool = False

    @property
    def ended(self) -> bool:
        return self.coroutine() is None


@dataclass(frozen=True, slots=True)
class Wait:
    """The system call that a thread was found in: its name, and what it waits on in words."""

    call: str
    on: str


class Throttled(NamedTuple):
    """What a CPU limit cost the processes of a container: periods of it gone by, in how many of them the quota was used
    up, for how long it kept them from a CPU then (summed over CPUs), and how long a period is."""

    periods: int
    throttled: int
    throttled_ns: int
    period_ns: int


@dataclass(frozen=True, slots=True)
class OtherThread:
    """Another thread than the loop's: where it stood, and how long it had computed since `since_ns`.

    `alone`: no other thread but those that were kept from the GIL wanted it back when it was free at last. `ended`: it
    is no more by then, and nobody knows which it was.
    """

    name: str
    native_id: int | None
    stack: tuple[RawFrame, ...]
    cpu_ns: int
    since_ns: int
    alone: bool = False
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the loop's thread while its heartbeat was overdue.

    `stack` is innermost first and holds the callback's frames only; it is empty where the loop ran no callback.
    `key` tells callbacks apart: it changes exactly when another callback is running.
    `serves`: the request's own coroutine was running, not just something that was begun for it.
    `through` is known where C code stands between the innermost frame of the user's own and what that runs.
    `let_in`: native code that keeps the GIL made a collection, and our callback for that let the watchdog in.
    `owner` is the thread that must release what the loop's thread waits for, where that is known.
    `other` is the thread that had computed most of late, where the watchdog had to wait for the GIL.
    `stopped`: a debugger had stopped the loop's thread, and not the others.
    `probed`: by the probe, from inside native code that kept the GIL; else by the watchdog.
    `asked_ns` is when the watchdog's timer fired, `at_ns` when it was served; `gil_waits` counts how often it woke in
    between to ask for the GIL again, `starved_ns` how long it was ready to run without getting a CPU.
    """

    asked_ns: int
    at_ns: int
    key: object
    stack: tuple[RawFrame, ...]
    callee: Callee | None = None
    through: Through | None = None
    context: Context | None = None
    task: str | None = None
    coroutine: str | None = None
    request: ActiveRequest | None = None
    serves: bool = False
    iteration: Iteration | None = None
    cpu_ns: int | None = None
    wait: Wait | None = None
    gil_waits: int = 0
    starved_ns: int = 0
    stopped: bool = False
    probed: bool = False
    let_in: bool = False
    other: OtherThread | None = None
    owner: OtherThread | None = None

    @property
    def late_ns(self) -> int:
        return self.at_ns - self.asked_ns


class Crossing(NamedTuple):
    """A request that was in flight all through a stall, and whether it was ready to run when the loop came back.

    `ready` is None where that could not be known.
    """

    request: ActiveRequest
    ready: bool | None


class Arrival(NamedTuple):
    """A request that began after a stall, or in the midst of it.

    `arrived_ns` is when its connection last got data, by the kernel's account; None where that cannot be asked.
    `whole`: that was all of it, head and body, at once; else its head came then or earlier.
    """

    request: ActiveRequest
    arrived_ns: int | None
    whole: bool = True


@dataclass(frozen=True, slots=True)
class InFlight:
    """The requests that were in flight as a stall ended, its culprit's own left out.

    `crossings` are those of them that were ready to run, or may have been. `others` counts all but the
    `open_connections`: WebSockets, and responses that have streamed for over a minute.
    """

    crossings: tuple[Crossing, ...]
    others: int
    open_connections: int


class Aftermath(Protocol):
    """What becomes known of the requests around a late beat, up to some time after it."""

    def in_flight(self, start_ns: int, end_ns: int, culprits: Sequence[object]) -> InFlight:
        """Those in flight at the end of a stall; `culprits` are the coroutines' references of those that held the loop."""

    def arrivals(self, since_ns: int) -> list[Arrival]:
        """Those that have begun since then."""

    @property
    def more_may_come(self) -> bool:
        """Whether more may still begin that waited."""

    def on_loop(self, act: Callable[[], object]) -> None:
        """Have something done on the loop's own thread, if it still runs."""

    def without_flight(self) -> Aftermath:
        """The same for arrivals alone: it holds nothing of those that were in flight."""

    def let_go(self) -> None:
        """Nobody will ask any more."""


@dataclass(frozen=True, slots=True)
class LateBeat:
    """A heartbeat that came late: the loop was held, or not run, somewhere between `last_ns` and `at_ns`.

    `cpu_ns`, `gc_ns` and `run_delay_ns` are what the loop's thread spent since the last beat on a CPU, in the
    collector, and ready to run without getting a CPU. The first is None where another thread had to ask for it and
    the platform does not tell. The last is measured from the first look on, and before that it is the most that it
    can have been; None where the platform does not tell. `switches` is how often it gave up its CPU to wait, `other`
    the thread that was in its way as it came; both are None where another thread had to ask. `aftermath` is None where
    nobody looked whom it delayed.
    """

    last_ns: int
    due_ns: int
    at_ns: int
    cpu_start_ns: int
    cpu_ns: int | None
    gc_ns: int
    run_delay_ns: int | None
    switches: int | None = None
    other: OtherThread | None = None
    aftermath: Aftermath | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """The verdict of the detector: one callback held the loop beyond its budget.

    The start lies between `start_ns - error_ns` and `start_ns + error_ns`. `looks` saw this callback and no other;
    they are empty where the loop's thread was late without being seen in any callback. Where it was `together`, many
    callbacks of one iteration held it, none of them beyond the budget, and `looks` saw those.
    """

    start_ns: int
    error_ns: int
    end_ns: int
    looks: tuple[Look, ...]
    beat: LateBeat
    together: bool = False


@dataclass(frozen=True, slots=True)
class Incident:
    """A stall as the watchdog hands it on: the verdict, and what is gone by the time somebody explains it.

    `wall_offset_ns` added to a time of CLOCK_MONOTONIC gives unix nanoseconds. Where it is `ongoing`, the callback
    still held the loop when this was written, and the incident that follows at its end has the same `id`. One that is
    `boxed` is for the black box, and for nobody else. `throttled` is what the CPU limit has cost since a late beat was
    last judged; None where there is none.
    """

    id: str
    ongoing: bool
    held: Held
    budget_ns: int
    thread: str
    thread_id: int
    loop: str
    phase: Phase | None
    in_flight: int
    wall_offset_ns: int
    boxed: bool = False
    throttled: Throttled | None = None


@dataclass(frozen=True, slots=True)
class StoodStill:
    """A delayed request as it is told of: its entry in the record, and what its span needs.

    `own_span` is the request's own OpenTelemetry span, if it has one. From `began_ns` to `ended_ns`, unix nanoseconds, it
    stood still. `coroutine` tells requests apart.
    """

    told: Delayed
    own_span: Any
    began_ns: int
    ended_ns: int
    coroutine: object


@dataclass(frozen=True, slots=True)
class Suffered:
    """Who had to wait for a stall, the longest first, as far as it is known by now.

    `complete`: all that came in meanwhile has begun; None where that cannot be known.
    """

    delays: tuple[StoodStill, ...]
    complete: bool | None
    in_flight: int
    open_connections: int
