"""Why the system did not run the process, in words that a person can act on."""

from __future__ import annotations

from dataclasses import replace

from loopguard.evidence import Held, Throttled
from loopguard.explain.cause import stopped_ns, suspended_ns

_NOISE_NS = 2_500_000


def dated(held: Held, budget_ns: int, switch_ns: int) -> Held:
    """The same, from when the process was stopped: between its last sign of life and the next that was due.

    Where it was not stopped but starved, the start stays as it is.
    """
    alive_ns, earlier = held.start_ns - held.error_ns, None
    for look in held.looks:
        missed_ns = look.asked_ns + look.starved_ns + look.gil_waits * switch_ns
        if look.stopped or suspended_ns(look, earlier, held, switch_ns):
            missed_ns = look.at_ns if look.stopped else min(missed_ns, look.at_ns)
            start_ns = min((alive_ns + missed_ns) // 2, held.end_ns - budget_ns)
            error_ns = max(start_ns - alive_ns, missed_ns - start_ns, _NOISE_NS)
            return replace(held, start_ns=start_ns, error_ns=error_ns)
        alive_ns, earlier = max(alive_ns, look.at_ns), look
    return held


def advice_of(held: Held, limit: Throttled | None, switch_ns: int) -> str | None:
    """One sentence; None where nothing tells why. `limit` is what a CPU limit has cost since it was last read."""
    duration = held.end_ns - held.start_ns
    stopped = min(stopped_ns(held, switch_ns), duration)
    starved = min(_starved_ns(held), duration)
    limited = None if limit is None else _during(limit, held)
    if limited is not None and 2 * limited.throttled_ns >= max(stopped, starved):
        return (
            f"the container used up its CPU quota: {limited.throttled} of {limited.periods} periods throttled; "
            "raise its CPU limit"
        )
    if stopped > starved:
        return (
            f"the process was stopped for {_seconds(stopped)} "
            "(SIGSTOP, a debugger, or a frozen container)"
        )
    if starved:
        return (
            f"other processes took the CPU for {_seconds(starved)} of it; "
            "give this one a larger share of the CPU, or fewer neighbours"
        )
    return None


def _starved_ns(held: Held) -> int:
    """How long the loop's thread was ready to run without a CPU; else for how long the watchdog was."""
    return max(held.beat.run_delay_ns or 0, sum(look.starved_ns for look in held.looks))


def _during(throttled: Throttled, held: Held) -> Throttled | None:
    """Of what the limit cost since it was last read, so much as there was room for; None for nothing.

    That may have been long ago: it is read when a beat came late. So it says least of what came in time.
    """
    room_ns = held.end_ns - held.beat.last_ns
    most = -(-room_ns // throttled.period_ns) + 1
    seen = throttled._replace(
        periods=min(throttled.periods, most),
        throttled=min(throttled.throttled, most),
        throttled_ns=min(throttled.throttled_ns, room_ns),
    )
    return seen if seen.throttled and seen.throttled_ns else None


def _seconds(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e9:.2f}".rstrip("0").rstrip(".") + " s"
