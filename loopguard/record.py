"""What happened: the frozen records that loopguard hands out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

SCHEMA = 1

Severity = Literal["info", "warning", "error"]
Phase = Literal["startup", "serving", "shutdown"]
Cause = Literal[
    "blocking_call",
    "lock",
    "cpu",
    "gil_hold",
    "gil_wait",
    "gc",
    "import",
    "congestion",
    "not_scheduled",
    "unknown",
]


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a stack.

    `function` is the qualified name, `code` the source of the expression that was running there (from its column
    positions, PEP 657), `library` whether it is somebody else's code: the standard library, another package, the
    plumbing of loop and server.
    """

    file: str
    line: int | None
    module: str | None
    function: str
    code: str | None
    library: bool

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place} in {self.function}"


@dataclass(frozen=True, slots=True)
class Request:
    """The request whose code held the loop. `started_at` is in unix seconds; the ids are those of its own span."""

    method: str
    route: str | None
    trace_id: str | None
    span_id: str | None
    started_at: float
    background: bool


@dataclass(frozen=True, slots=True)
class Holder:
    """The thread that was in the way: it owned the lock, or kept the GIL."""

    thread: str
    native_id: int | None
    culprit: Frame | None
    stack: tuple[Frame, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """One of several lines on which a callback blocked, with its share (0 to 1) of the stall."""

    culprit: Frame
    share: float


@dataclass(frozen=True, slots=True)
class Contributor:
    """One of many callbacks that together held the loop, with its share (0 to 1) of the time."""

    name: str
    share: float


@dataclass(frozen=True, slots=True)
class Delayed:
    """A request that had to wait for the stall to end; `delay` in seconds."""

    method: str
    route: str | None
    trace_id: str | None
    span_id: str | None
    delay: float
    exact: bool
    queued: bool
    ready: bool | None


@dataclass(frozen=True, slots=True)
class Process:
    """Which process this was: in a container every pid is 1. Times in seconds."""

    instance: str
    host: str
    service: str | None
    version: str | None
    started_at: float
    loop_seconds: float
    requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """A callback that held the event loop for longer than its budget.

    Times are unix seconds, durations seconds; `started_at` is known to within `duration_error`.
    What could not be known is None, never a guess.
    """

    schema: int = SCHEMA
    id: str
    started_at: float
    duration: float
    duration_error: float
    budget: float
    severity: Severity
    ongoing: bool
    phase: Phase | None
    cause: Cause
    culprit: Frame | None
    call: str | None
    waited_on: str | None
    holder: Holder | None
    stack: tuple[Frame, ...]
    samples: int
    confidence: float | None
    phases: tuple[Share, ...] | None
    cpu_time: float | None
    gc_time: float | None
    task: str | None
    coroutine: str | None
    contributors: tuple[Contributor, ...] | None
    request: Request | None
    trace_id: str | None
    span_id: str | None
    delayed: tuple[Delayed, ...] | None
    delayed_requests: int | None
    delayed_complete: bool | None
    in_flight: int | None
    open_connections: int | None
    advice: str | None
    fingerprint: str
    suppressed: int
    profile: str | None
    pid: int
    thread: str
    loop: str
    process: Process

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON knows it: the same keys, tuples as lists, None as null."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {key: _plain(item) for key, item in asdict(value).items()}
    return value
