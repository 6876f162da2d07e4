"""Made-up evidence to test with: code, looks, beats and verdicts, of which each test changes what it is about.

Times are given in milliseconds of a clock that begins at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loopguard.evidence import Callee, Held, LateBeat, Look, RawFrame, Wait

MS = 1_000_000
SWITCH = 5 * MS
BUDGET = 100 * MS


def frame(function: str, module: str = "app", file: str | None = None, line: int = 1) -> RawFrame:
    """A frame that stands in the first expression of a function of its own."""
    namespace: dict[str, Any] = {}
    source = "\n" * (line - 1) + f"def {function}(): return call()"
    exec(compile(source, file or f"/srv/{module.replace('.', '/')}.py", "exec"), namespace)
    return RawFrame(namespace[function].__code__, 2, module)


WORK = frame("work")
STACK = (WORK,)


def look(
    at: float,
    *,
    late: float = 0,
    key: object = "a",
    stack: tuple[RawFrame, ...] = STACK,
    cpu: float | None = None,
    wait: Wait | None = None,
    callee: Callee | None = None,
    gil_waits: int = 0,
    starved: float = 0,
    **more: Any,
) -> Look:
    """A look that the watchdog asked for `late` before it was served."""
    return Look(
        asked_ns=round((at - late) * MS),
        at_ns=round(at * MS),
        key=key,
        stack=stack,
        cpu_ns=None if cpu is None else round(cpu * MS),
        wait=wait,
        callee=callee,
        gil_waits=gil_waits,
        starved_ns=round(starved * MS),
        **more,
    )


def idle(at: float) -> Look:
    """A look that found the loop in no callback."""
    return look(at, key=None, stack=())


def beat(
    end: float,
    *,
    last: float = 0,
    interval: float = 50,
    cpu: float = 0,
    gc: float = 0,
    run_delay: float | None = 0,
    switches: int | None = None,
) -> LateBeat:
    """A beat that was due an interval after the last one, and came at `end`."""
    return LateBeat(
        last_ns=round(last * MS),
        due_ns=round((last + interval) * MS),
        at_ns=round(end * MS),
        cpu_start_ns=0,
        cpu_ns=round(cpu * MS),
        gc_ns=round(gc * MS),
        run_delay_ns=None if run_delay is None else round(run_delay * MS),
        switches=switches,
    )


def held(
    looks: Sequence[Look],
    start: float = 0,
    end: float = 400,
    *,
    error: float = 0,
    **of_beat: Any,
) -> Held:
    """A callback that held the loop from `start` to `end`."""
    return Held(
        start_ns=round(start * MS),
        error_ns=round(error * MS),
        end_ns=round(end * MS),
        looks=tuple(looks),
        beat=beat(end, last=min(0, start), **of_beat),
    )
