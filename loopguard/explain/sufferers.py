"""From what was seen of the requests around a stall to those that it delayed, as they are told of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from loopguard.evidence import ActiveRequest, Incident, StoodStill, Suffered
from loopguard.explain.correlation import Route, began_in, ids_of, method_of
from loopguard.explain.delays import (
    Delay,
    delayed_in_flight,
    delayed_in_queue,
    has_drained,
    longest_first,
)
from loopguard.record import Delayed

_AT_A_TIME = 20


@dataclass(frozen=True, slots=True)
class Sufferers:
    """Tells whom a stall delayed. `rest` is called now and then, for with thousands of requests it takes a while."""

    route: Route
    rest: Callable[[], None]

    def of(self, incident: Incident) -> Suffered | None:
        """Those that are known by now; None where nobody looked."""
        held, aftermath = incident.held, incident.held.beat.aftermath
        if aftermath is None:
            return None
        culprits = _culprits(incident)
        own = [culprit.coroutine for culprit in culprits]
        seen = aftermath.in_flight(held.start_ns, held.end_ns, own)
        if incident.ongoing:
            return Suffered((), None, seen.others, seen.open_connections)
        arrivals = aftermath.arrivals(held.start_ns)
        there = delayed_in_flight(held, seen.crossings)
        delays = longest_first([*there, *delayed_in_queue(held, arrivals, culprits)])
        return Suffered(
            delays=tuple(self._told(delays, incident.wall_offset_ns)),
            complete=has_drained(held, arrivals),
            in_flight=seen.others,
            open_connections=seen.open_connections,
        )

    def late(
        self, incident: Incident, since_ns: int, known: Collection[object]
    ) -> tuple[StoodStill, ...]:
        """Those that have begun since then; `known` are the coroutines' references of those told of already."""
        held, aftermath = incident.held, incident.held.beat.aftermath
        if aftermath is None:
            return ()
        delays = delayed_in_queue(held, aftermath.arrivals(since_ns), (), known)
        return tuple(self._told(longest_first(delays), incident.wall_offset_ns))

    def _told(self, delays: Iterable[Delay], wall_offset_ns: int) -> Iterable[StoodStill]:
        for number, delay in enumerate(delays):
            if number % _AT_A_TIME == 0:
                self.rest()
            yield self._as_told(delay, wall_offset_ns)

    def _as_told(self, delay: Delay, wall_offset_ns: int) -> StoodStill:
        span = began_in(delay.request, wall_offset_ns)
        trace_id, span_id = ids_of(span)
        told = Delayed(
            method=method_of(delay.request),
            route=self.route(delay.request, delay.request.context),
            trace_id=trace_id,
            span_id=span_id,
            delay=delay.delay_ns / 1e9,
            exact=delay.exact,
            queued=delay.queued,
            ready=delay.ready,
        )
        return StoodStill(
            told=told,
            own_span=span,
            began_ns=delay.from_ns + wall_offset_ns,
            ended_ns=delay.to_ns + wall_offset_ns,
            coroutine=delay.request.coroutine,
        )


def _culprits(incident: Incident) -> list[ActiveRequest]:
    """The requests whose code held the loop: none of them waited for itself. A crowd is nobody's."""
    if incident.held.together:
        return []
    return [look.request for look in incident.held.looks[-1:] if look.request is not None]
