"""The spans of the requests that a stall delayed, each in its own request's trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind

from loopguard.evidence import StoodStill
from loopguard.record import Stall
from loopguard.tell.attributes import Attributes, culprit_of, valued
from loopguard.tell.interval import time_of, within
from loopguard.tell.report import LateDelays

DELAY = "event_loop.delay"
MOST_SENT = 1000
MOST_LINKED = 32
_REMEMBERED = 64
# Spans are made so many at a time: in between the loops get the GIL.
_AT_A_TIME = 10
_REST = 0.0001


class Sent(NamedTuple):
    """A span that was sent: what leads to it, and the delay in seconds."""

    span: SpanContext
    delay: float


class _Told(NamedTuple):
    """A stall that was told of: what leads to its span, and how many delays it may still have."""

    span: SpanContext
    left: int


Failed = Callable[[Exception], object]


class DelaySpans:
    """Sends a span `event_loop.delay` for each delayed request whose own span is sampled, at most 1,000 a stall.

    One at which somebody's sampler or processor raises is lost alone: `failed` is told, and the others are sent.
    """

    def __init__(self, rest: Callable[[float], None] = time.sleep) -> None:
        self._rest = rest
        self._told: dict[str, _Told] = {}

    def send(
        self,
        tracer: trace.Tracer,
        stall: Stall,
        stall_span: SpanContext,
        delays: Sequence[StoodStill],
        failed: Failed,
    ) -> list[Sent]:
        """Send them, the longest first, with a link to the stall's span; gives those that are sampled."""
        sampled = [each for each in delays if _is_sampled(each.own_span)][:MOST_SENT]
        self._told[stall.id] = _Told(stall_span, MOST_SENT - len(sampled))
        while len(self._told) > _REMEMBERED:
            del self._told[next(iter(self._told))]
        return list(self._each(tracer, stall, stall_span, sampled, failed))

    def send_late(self, tracer: trace.Tracer, late: LateDelays, failed: Failed) -> None:
        """Send those of requests that began after the stall was told of."""
        told = self._told.get(late.stall.id)
        if told is None:  # of which no span could be made
            return
        sampled = [each for each in late.delays if _is_sampled(each.own_span)][: told.left]
        self._told[late.stall.id] = told._replace(left=told.left - len(sampled))
        for _ in self._each(tracer, late.stall, told.span, sampled, failed):
            pass

    def _each(
        self,
        tracer: trace.Tracer,
        stall: Stall,
        stall_span: SpanContext,
        delays: Iterable[StoodStill],
        failed: Failed,
    ) -> Iterable[Sent]:
        links = [Link(stall_span)] if stall_span.trace_flags.sampled else []
        of_stall = _of_stall(stall)
        for number, each in enumerate(delays, 1):
            try:
                span = _send(tracer, each, of_stall | _of(each), links)
            except Exception as error:
                failed(error)
            else:
                if span.trace_flags.sampled:
                    yield Sent(span, each.told.delay)
            if number % _AT_A_TIME == 0:
                self._rest(_REST)


def link_back(stall_span: Span, sent: Sequence[Sent]) -> None:
    """Lead from a stall's span to the delays that were longest; where it was sampled itself."""
    if not stall_span.get_span_context().trace_flags.sampled:
        return
    for each in sent[:MOST_LINKED]:
        stall_span.add_link(
            each.span,
            valued({"loopguard.link.type": "delayed", "loopguard.delay": each.delay}),
        )


def _send(
    tracer: trace.Tracer, each: StoodStill, attributes: Attributes, links: list[Link]
) -> SpanContext:
    begin_ns, end_ns = _interval(each)
    span = tracer.start_span(
        DELAY,
        # It holds the parent and nothing else: no baggage that other people's processors would copy.
        context=trace.set_span_in_context(each.own_span, Context()),
        kind=SpanKind.INTERNAL,
        attributes=attributes,
        links=links,
        start_time=begin_ns,
    )
    span.end(end_time=end_ns)
    return span.get_span_context()


def _interval(each: StoodStill) -> tuple[int, int]:
    """The time for which the request stood still, as far as it lies within its own span.

    A queued one stood still before that began.
    """
    began_ns, ended_ns = time_of(each.own_span, "start_time"), time_of(each.own_span, "end_time")
    if each.told.queued and began_ns is not None:
        return within(began_ns, began_ns, began_ns, ended_ns)
    return within(each.began_ns, each.ended_ns, began_ns, ended_ns)


def _of_stall(stall: Stall) -> Attributes:
    return culprit_of(stall) | valued(
        {
            "loopguard.stall.id": stall.id,
            "loopguard.stall.cause": stall.cause,
            "loopguard.stall.call": stall.call,
        }
    )


def _of(each: StoodStill) -> Attributes:
    return valued(
        {
            "loopguard.delay": each.told.delay,
            "loopguard.delay.exact": each.told.exact,
            "loopguard.delay.queued": each.told.queued,
        }
    )


def _is_sampled(span: Span) -> bool:
    context = span.get_span_context()
    return context.is_valid and context.trace_flags.sampled
