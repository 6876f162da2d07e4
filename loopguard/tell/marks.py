"""What is written on the requests' own spans while they still record: how long they waited, or held the loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple
from weakref import WeakKeyDictionary

from opentelemetry import trace
from opentelemetry.trace import Span

from loopguard.evidence import Incident, StoodStill
from loopguard.record import Stall
from loopguard.tell.attributes import valued
from loopguard.tell.delay_spans import MOST_SENT
from loopguard.tell.pending import Explained

# Written on the loop's thread, at most so many in one callback: some 6 µs each.
_AT_A_TIME = 40
_REMEMBERED = 64


class _Mark(NamedTuple):
    """To be written on a span: seconds that its request waited for a stall, and held the loop for in it."""

    span: Span
    delay: float
    blocked: float


@dataclass(slots=True)
class _Sum:
    """What a span says by now, over all stalls, and the longest of these in seconds."""

    delay: float = 0.0
    blocked: float = 0.0
    longest: float = 0.0


class Marks:
    """Marks the spans of delayed requests, and of the one that held the loop.

    On the loop's own thread, where its requests' spans end: nowhere else could it be known that one does not end
    between the question and the writing. So what is written comes a moment after the stall, and a request that ended
    before goes without.
    """

    def __init__(self, trouble: Callable[[BaseException], None]) -> None:
        self._trouble = trouble
        self._sums: WeakKeyDictionary[Span, _Sum] = WeakKeyDictionary()
        self._blamed: deque[str] = deque(maxlen=_REMEMBERED)

    def __call__(
        self, incident: Incident, explained: Explained, delays: Sequence[StoodStill]
    ) -> None:
        """Have spans marked soon. To be called more than once for a stall: with those not yet named."""
        aftermath, stall = incident.held.beat.aftermath, explained.stall
        if aftermath is None:
            return
        marks = [_Mark(each.own_span, each.told.delay, 0.0) for each in delays[:MOST_SENT]]
        own = _own(explained)
        if own is not None and stall.id not in self._blamed:
            self._blamed.append(stall.id)
            marks.insert(0, _Mark(own, 0.0, stall.duration))
        for place in range(0, len(marks), _AT_A_TIME):
            some = marks[place : place + _AT_A_TIME]
            aftermath.on_loop(partial(self._write_all, stall, some))

    def _write_all(self, stall: Stall, marks: Sequence[_Mark]) -> None:
        try:
            for mark in marks:
                if mark.span.is_recording():
                    self._write(stall, mark)
        except Exception as error:
            self._trouble(error)

    def _write(self, stall: Stall, mark: _Mark) -> None:
        known = self._sums.setdefault(mark.span, _Sum())
        known.delay += mark.delay
        known.blocked += mark.blocked
        values = {
            "loopguard.delay": known.delay or None,
            "loopguard.blocked": known.blocked or None,
        }
        for key, value in valued(values).items():
            mark.span.set_attribute(key, value)
        if stall.duration > known.longest:
            known.longest = stall.duration
            mark.span.set_attribute("loopguard.stall.id", stall.id)


def _own(explained: Explained) -> Span | None:
    """The own span of the request that held the loop; None where nobody is to blame."""
    context = explained.request_context
    if context is None or explained.stall.culprit is None:
        return None
    return context.copy().run(trace.get_current_span)
