"""The metrics: every stall, and how the loops are all the time; on the API of OpenTelemetry alone, never rate limited."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Histogram, MeterProvider, Observation

from loopguard.evidence import Incident, StoodStill
from loopguard.record import Cause, Delayed, Severity
from loopguard.tell.printable import printable
from loopguard.tell.report import LateDelays, Report
from loopguard.tell.reporter import Counts

SCOPE = "loopguard"
MOST = 100  # routes, and reasons of exemptions, told apart
OTHER = "other"

CAUSE, SEVERITY = "loopguard.stall.cause", "loopguard.stall.severity"
ROUTE, REASON = "http.route", "loopguard.exempt.reason"

_Attributes = dict[str, str]
_Observed = Iterable[Observation]


class Metered(NamedTuple):
    """One instrument: its name, unit, what it is, and for a histogram the boundaries that it advises."""

    name: str
    unit: str
    description: str
    boundaries: tuple[float, ...] = ()


EVENTLOOP_DELAY = Metered(
    "loopguard.eventloop.delay",
    "s",
    "How much later than it asked a callback would have run, at any moment",
    (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
STALL_DURATION = Metered(
    "loopguard.stall.duration",
    "s",
    "How long stalls held the event loop",
    (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30, 60),
)
REQUEST_DELAY = Metered(
    "loopguard.request.delay",
    "s",
    "How long requests had to wait because another callback held the event loop",
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
STALLS = Metered("loopguard.stalls", "{stall}", "Callbacks that held the event loop over budget")
EXEMPT = Metered("loopguard.stalls.exempt", "{stall}", "Stalls of code that is allowed to block")
SUPPRESSED = Metered("loopguard.reports.suppressed", "{report}", "Stalls that the log left out")
DROPPED = Metered("loopguard.reports.dropped", "{report}", "Stalls told by nothing but metrics")
DELAY_LOST = Metered(
    "loopguard.eventloop.delay.lost", "{sample}", "Beats overwritten before they were collected"
)
UTILIZATION = Metered(
    "loopguard.eventloop.utilization",
    "1",
    "Share of wall time that the loop's thread was on a CPU or stalled",
)
WAITING = Metered("loopguard.threadpool.waiting", "{task}", "Calls that wait for a worker thread")
THREADS_TAKEN = Metered("loopguard.threadpool.utilization", "1", "Share of worker threads taken")
UP = Metered("loopguard.up", "1", "Whether the event loop is being watched")

HISTOGRAMS = (EVENTLOOP_DELAY, STALL_DURATION, REQUEST_DELAY)
COUNTERS = (DELAY_LOST, STALLS, EXEMPT, SUPPRESSED, DROPPED)
GAUGES = (UTILIZATION, WAITING, THREADS_TAKEN, UP)


@dataclass(frozen=True, slots=True)
class Sources:
    """What is asked at each collection, on the thread of whoever collects. None of it waits for a loop.

    `delays` takes the samples since the last time, in seconds; `threadpool` tells the calls that wait and the share of
    threads that are taken; `severity` that of a stall which nobody has explained.
    """

    counts: Callable[[], Counts]
    delays: Callable[[], Iterable[float]]
    delays_lost: Callable[[], int]
    utilization: Callable[[], float | None]
    threadpool: Callable[[], tuple[int, float] | None]
    watching: Callable[[], bool]
    severity: Callable[[Incident], Severity]


class Metrics:
    """A sink that counts each stall, and answers whoever collects.

    What only ever grows is counted here and observed, not added to an instrument: after a fork the child begins at zero,
    and after `stop()` nothing is left to be seen. Histograms cannot be observed; those that the SDK keeps go on.
    """

    def __init__(
        self,
        sources: Sources,
        version: str | None,
        trouble: Callable[[BaseException], None],
        provider: MeterProvider | None = None,
    ) -> None:
        self._sources = sources
        self._version = version
        self._trouble = trouble
        self._provider = provider
        self._histograms: Mapping[str, Histogram] = {}
        self._stalls: Counter[tuple[Cause, Severity, str | None]] = Counter()
        self._routes = Vocabulary()
        self._reasons = Vocabulary()
        self._answers: dict[str, Callable[[], _Observed]] = {
            DELAY_LOST.name: self._delays,
            STALLS.name: self._stalls_seen,
            EXEMPT.name: self._exempt,
            SUPPRESSED.name: lambda: [Observation(sources.counts().suppressed)],
            DROPPED.name: lambda: [Observation(sources.counts().dropped)],
            UTILIZATION.name: lambda: _if_known(sources.utilization()),
            WAITING.name: lambda: _if_known(sources.threadpool(), 0),
            THREADS_TAKEN.name: lambda: _if_known(sources.threadpool(), 1),
            UP.name: lambda: [Observation(int(sources.watching()))],
        }

    def start(self) -> None:
        """Be what is asked from now on. A meter provider may be set later."""
        try:
            provider = self._provider or metrics.get_meter_provider()
            self._histograms = _instruments_of(provider, self._version)
        except Exception as error:
            self._trouble(error)
        _asked.metrics = self

    def stop(self) -> None:
        """Take what is still to be taken, and answer nobody any more."""
        self.observe(DELAY_LOST.name)
        self.abandon()

    def abandon(self) -> None:
        """In a forked child, where this is still the parent's: only answer nobody."""
        if _asked.metrics is self:
            _asked.metrics = None

    def __call__(self, report: Report) -> None:
        stall = report.stall
        route = None if stall.request is None else stall.request.route
        # In the blocked code's context: an SDK may keep its span as the example of this measurement.
        report.context.copy().run(
            self._count, stall.cause, stall.severity, self._routes.word(route), stall.duration
        )
        self._count_delays(report.delays)

    def late(self, late: LateDelays) -> None:
        """Record the requests that turned out to have waited after their stall was told of."""
        self._count_delays(late.delays)

    def _count_delays(self, delays: Iterable[StoodStill]) -> None:
        for each in delays:
            self.delayed(each.told)

    def delayed(self, delayed: Delayed) -> None:
        """Record a request that had to wait, named in a record or found later."""
        route = self._routes.word(delayed.route)
        self._record(REQUEST_DELAY, delayed.delay, _attributes({ROUTE: route}))

    def unexplained(self, incident: Incident) -> None:
        """Count a stall that no other sink hears of."""
        seconds = (incident.held.end_ns - incident.held.start_ns) / 1e9
        self._count("unknown", self._sources.severity(incident), None, seconds)

    def observe(self, name: str) -> _Observed:
        """What an observable instrument is to tell now. Never raises: whoever collects is somebody else's."""
        try:
            return list(self._answers[name]())
        except Exception as error:
            self._trouble(error)
            return ()

    def _count(self, cause: Cause, severity: Severity, route: str | None, seconds: float) -> None:
        self._stalls[cause, severity, route] += 1
        attributes = _attributes({CAUSE: cause, SEVERITY: severity, ROUTE: route})
        self._record(STALL_DURATION, seconds, attributes)

    def _record(self, metered: Metered, value: float, attributes: _Attributes) -> None:
        histogram = self._histograms.get(metered.name)
        if histogram is not None:
            histogram.record(value, attributes)

    def _delays(self) -> _Observed:
        """Fill the histogram of delays: an SDK asks for what is observable before it reads what was recorded."""
        for seconds in self._sources.delays():
            self._record(EVENTLOOP_DELAY, seconds, {})
        yield Observation(self._sources.delays_lost())

    def _stalls_seen(self) -> _Observed:
        for (cause, severity, route), count in self._stalls.copy().items():
            attributes = _attributes({CAUSE: cause, SEVERITY: severity, ROUTE: route})
            yield Observation(count, attributes)

    def _exempt(self) -> _Observed:
        counted: Counter[str | None] = Counter()
        for reason, count in self._sources.counts().exempt_by_reason.copy().items():
            counted[self._reasons.word(reason)] += count
        for word, count in counted.items():
            yield Observation(count, _attributes({REASON: word}))


class Vocabulary:
    """The first so many words as they are, all others as `other`: each is a time series in somebody's database."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._known: dict[Hashable, None] = {}

    def word(self, word: str | None) -> str | None:
        if word is None or word in self._known:
            return word
        if len(self._known) >= self._most:
            return OTHER
        self._known[word] = None
        return word


class _Asked:
    """Whom the observable instruments ask. They cannot be taken back once they are made, so they are made once."""

    metrics: Metrics | None = None


_asked = _Asked()
_made: WeakKeyDictionary[MeterProvider, Mapping[str, Histogram]] = WeakKeyDictionary()


def _instruments_of(provider: MeterProvider, version: str | None) -> Mapping[str, Histogram]:
    """The histograms of a provider, made with all other instruments when it is first seen."""
    found = _made.get(provider)
    if found is None:
        meter: Any = provider.get_meter(SCOPE, version)
        for name, unit, description, _ in COUNTERS:
            meter.create_observable_counter(name, [_asking(name)], unit, description)
        for name, unit, description, _ in GAUGES:
            meter.create_observable_gauge(name, [_asking(name)], unit, description)
        found = _made[provider] = {
            name: meter.create_histogram(
                name, unit, description, explicit_bucket_boundaries_advisory=boundaries
            )
            for name, unit, description, boundaries in HISTOGRAMS
        }
    return found


def _asking(name: str) -> Callable[[CallbackOptions], _Observed]:
    def ask(_: CallbackOptions) -> _Observed:
        return () if _asked.metrics is None else _asked.metrics.observe(name)

    return ask


def _if_known(value: Any, place: int | None = None) -> _Observed:
    if value is not None:
        yield Observation(value if place is None else value[place])


def _attributes(values: Mapping[str, str | None]) -> _Attributes:
    return {key: printable(value) for key, value in values.items() if value is not None}
