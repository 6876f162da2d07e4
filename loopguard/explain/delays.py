"""Who had to wait for a stall, and for how long: decided from what was seen of the requests around it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from loopguard.evidence import ActiveRequest, Arrival, Crossing, Held

# The kernel tells when data came in whole milliseconds, and counts in ticks of 4 ms: nearer to the end of a stall
# than this, nobody knows on which side of it.
_TICK_NS = 5_000_000
_AT_ONCE_NS = 10_000_000  # a request is noted twice as it begins
# From the kernel's news of data to a task that begins: what came so shortly before a stall had no chance to begin.
_HANDED_OVER_NS = 10_000_000


@dataclass(frozen=True, slots=True)
class Delay:
    """A request that stood still from `from_ns` to `to_ns`.

    `exact`: it is known when it could have gone on, or begun; else it may have become so only in the course of that time.
    `queued`: its data lay unread in the socket. `ready`: it was ready to run when the loop came back; None where that
    could not be known, or it was queued.
    """

    request: ActiveRequest
    from_ns: int
    to_ns: int
    exact: bool
    queued: bool
    ready: bool | None

    @property
    def delay_ns(self) -> int:
        return self.to_ns - self.from_ns


def delayed_in_flight(held: Held, crossings: Iterable[Crossing]) -> list[Delay]:
    """Requests in flight that were ready, or may have been: each for all of the stall that it was there."""
    found = [
        Delay(request, max(held.start_ns, request.started_ns), held.end_ns, False, False, ready)
        for request, ready in crossings
        if ready is not False
    ]
    return [each for each in found if each.delay_ns > 0]


def delayed_in_queue(
    held: Held,
    arrivals: Iterable[Arrival],
    culprits: Collection[ActiveRequest],
    known: Collection[object] = (),
) -> list[Delay]:
    """Requests that began after the stall, and whose data had come before its end.

    Data that came well before the stall waited for something else, as a pipelined request does for the one before it.
    `known` are the coroutines' references of requests that are told of already.
    """
    earliest_ns = held.start_ns - held.error_ns - _HANDED_OVER_NS
    found = []
    for request, arrived_ns, whole in arrivals:
        if arrived_ns is None or request.coroutine in known or request.started_ns < held.start_ns:
            continue
        if any(_is_same(request, culprit) for culprit in culprits):
            continue
        if earliest_ns <= arrived_ns < held.end_ns - _TICK_NS:
            # A body that came in pieces: its head may have come at any time, and only the last of it is known.
            from_ns = max(held.start_ns, arrived_ns) if whole else held.start_ns
            found.append(Delay(request, from_ns, held.end_ns, whole, True, None))
    return found


def _is_same(request: ActiveRequest, culprit: ActiveRequest) -> bool:
    """References to what is gone are never equal; but they keep their hashes, which tell where in memory it was."""
    at_once = abs(request.started_ns - culprit.started_ns) <= _AT_ONCE_NS
    return at_once and hash(request.coroutine) == hash(culprit.coroutine)


def longest_first(delays: Iterable[Delay]) -> list[Delay]:
    return sorted(delays, key=lambda each: (-each.delay_ns, each.request.started_ns))


def has_drained(held: Held, arrivals: Sequence[Arrival]) -> bool | None:
    """Whether all that came in meanwhile has begun: a request has whose data came after the stall, and none since whose
    data came in it. None where no connection could be asked.
    """
    known = [arrived_ns for _, arrived_ns, whole in arrivals if arrived_ns is not None and whole]
    if arrivals and all(each.arrived_ns is None for each in arrivals):
        return None
    return bool(known) and known[-1] > held.end_ns + _TICK_NS
