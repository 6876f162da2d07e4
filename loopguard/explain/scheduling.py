"""Why the system did not run the process, in words that a person can act on."""

from __future__ import annotations

from loopguard.evidence import Held, Incident, Throttled
from loopguard.explain.cause import stopped_ns
from loopguard.record import Cause


def advice_of(cause: Cause, incident: Incident, switch_ns: int) -> str | None:
    """One sentence; None for any other cause, and where nothing tells why."""
    if cause != "not_scheduled":
        return None
    held = incident.held
    duration = held.end_ns - held.start_ns
    stopped = min(stopped_ns(held, switch_ns), duration)
    starved = min(_starved_ns(held), duration)
    limited = None if incident.throttled is None else _during(incident.throttled, held)
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
