"""The metrics, read back through a real SDK: what is counted, what is measured, and that it harms nobody."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextvars import Context
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk.metrics", reason="needs the extra `otlp`")

from opentelemetry import trace
from opentelemetry.context import attach
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.trace import TracerProvider

import loopguard
from loopguard.record import Delayed
from loopguard.tell import metrics
from loopguard.tell.metrics import Metrics, Sources, Vocabulary
from loopguard.tell.report import Subscription
from loopguard.tell.reporter import LONGEST_QUEUE, Counts, Reporter
from tests.holding import BUDGET, LOOPS, UVLOOP, hold, run
from tests.records import REQUEST, make_report, make_stall
from tests.test_eventloop_delay import incident

ROOT = Path(__file__).resolve().parents[1]
OFFERED = [*metrics.HISTOGRAMS, *metrics.COUNTERS, *metrics.GAUGES]


@dataclass
class Answers:
    """What a guard would say when it is asked."""

    counts: Counts = field(default_factory=Counts)
    delays: list[float] = field(default_factory=list)
    utilization: float | None = 0.25
    threadpool: tuple[int, float] | None = (3, 1.0)
    watching: bool = True
    troubles: list[BaseException] = field(default_factory=list)

    def sources(self) -> Sources:
        def drained() -> list[float]:
            taken, self.delays = self.delays, []
            return taken

        return Sources(
            counts=lambda: self.counts,
            delays=drained,
            delays_lost=lambda: 0,
            utilization=lambda: self.utilization,
            threadpool=lambda: self.threadpool,
            watching=lambda: self.watching,
            severity=lambda _: "error",
        )


class Collected:
    """A meter provider of one's own, and what it collects."""

    def __init__(self, **options: Any) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False, **options)

    def all(self) -> dict[str, Any]:
        """Each metric of ours that has a point now, by its name."""
        data = self.reader.get_metrics_data()
        scopes = (
            [scope for each in data.resource_metrics for scope in each.scope_metrics]
            if data
            else []
        )
        ours = [scope for scope in scopes if scope.scope.name == "loopguard"]
        return {metric.name: metric for scope in ours for metric in scope.metrics}

    def points(self, name: str) -> list[Any]:
        found = self.all().get(name)
        return [] if found is None else list(found.data.data_points)

    def values(self, name: str) -> dict[tuple[tuple[str, Any], ...], Any]:
        """The value of each point by its attributes; of a histogram's the count."""
        return {
            tuple(sorted(point.attributes.items())): getattr(point, "count", None)
            or getattr(point, "value", 0)
            for point in self.points(name)
        }


@pytest.fixture
def collected() -> Iterator[Collected]:
    made = Collected()
    yield made
    made.provider.shutdown()


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def metered(collected: Collected, answers: Answers) -> Iterator[Metrics]:
    made = Metrics(answers.sources(), "1.0", answers.troubles.append, collected.provider)
    made.start()
    yield made
    made.stop()
    assert answers.troubles == []


BY_SLEEP = (
    ("http.route", "/v1/users/{id}"),
    ("loopguard.stall.cause", "blocking_call"),
    ("loopguard.stall.severity", "warning"),
)


class TestStalls:
    """Each stall is counted once, whatever the log does with it."""

    def test_by_cause_severity_and_route(self, metered: Metrics, collected: Collected) -> None:
        for _ in range(30):
            metered(make_report(allowed=False))
        metered(make_report(make_stall(cause="cpu", severity="error", request=None)))
        by_cpu = (("loopguard.stall.cause", "cpu"), ("loopguard.stall.severity", "error"))
        for name in ("loopguard.stalls", "loopguard.stall.duration"):
            assert collected.values(name) == {BY_SLEEP: 30, by_cpu: 1}

    def test_its_duration_lies_in_a_bucket_of_ours(
        self, metered: Metrics, collected: Collected
    ) -> None:
        metered(make_report())
        [point] = collected.points("loopguard.stall.duration")
        assert point.sum == pytest.approx(0.4)
        assert tuple(point.explicit_bounds) == metrics.STALL_DURATION.boundaries
        [place] = [place for place, count in enumerate(point.bucket_counts) if count]
        assert point.explicit_bounds[place] == 0.5

    def test_it_points_to_the_span_of_the_blocked_code(
        self, metered: Metrics, collected: Collected
    ) -> None:
        """Where the SDK keeps exemplars, as it does by default in a sampled trace."""
        span = TracerProvider(shutdown_on_exit=False).get_tracer("app").start_span("GET /")
        blocked = Context()
        blocked.run(attach, trace.set_span_in_context(span))
        metered(make_report(context=blocked))
        [point] = collected.points("loopguard.stall.duration")
        [exemplar] = point.exemplars
        assert exemplar.trace_id == span.get_span_context().trace_id
        assert exemplar.span_id == span.get_span_context().span_id

    def test_the_requests_that_had_to_wait_are_measured_by_route(
        self, metered: Metrics, collected: Collected
    ) -> None:
        waited = Delayed("GET", "/a", None, None, 0.3, True, False, True)
        other = replace(waited, route=None, delay=0.2)
        metered(make_report(make_stall(delayed=(waited, waited, other))))
        metered.delayed(replace(waited, queued=True))
        assert collected.values("loopguard.request.delay") == {(("http.route", "/a"),): 3, (): 1}

    def test_after_a_hundred_routes_they_are_others(
        self, metered: Metrics, collected: Collected
    ) -> None:
        for number in range(150):
            request = replace(REQUEST, route=f"/{number}")
            metered(make_report(make_stall(request=request)))
        metered(make_report(make_stall(request=replace(REQUEST, route="/7"))))
        counted = {
            dict(attributes)["http.route"]: count
            for attributes, count in collected.values("loopguard.stalls").items()
        }
        assert len(counted) == 101
        assert (counted["/7"], counted["other"]) == (2, 50)

    def test_a_name_that_does_not_print_is_escaped(
        self, metered: Metrics, collected: Collected
    ) -> None:
        metered(make_report(make_stall(request=replace(REQUEST, route="/a\nb"))))
        [attributes] = collected.values("loopguard.stalls")
        assert dict(attributes)["http.route"] == r"/a\nb"

    def test_one_that_nobody_explained_is_counted_all_the_same(
        self, metered: Metrics, collected: Collected
    ) -> None:
        metered.unexplained(incident(0, 700, cpu=0))
        unknown = (("loopguard.stall.cause", "unknown"), ("loopguard.stall.severity", "error"))
        assert collected.values("loopguard.stalls") == {unknown: 1}
        [point] = collected.points("loopguard.stall.duration")
        assert point.sum == pytest.approx(0.7)


def test_what_a_full_queue_drops_is_in_the_metrics() -> None:
    """The only sink that hears of it."""
    seen = list[object]()
    reporter = Reporter(
        lambda _: pytest.fail("is never explained"),
        [Subscription("metrics", seen.append, unexplained=seen.append)],
        (),
        log=False,
    )
    for _, outlet in reporter._outlets:
        outlet.start()
    pushed_out = incident(0, 700, cpu=0)
    for _ in range(LONGEST_QUEUE + 3):
        reporter.put(pushed_out)
    assert all(outlet.flush(5) for _, outlet in reporter._outlets)
    assert seen == [pushed_out] * 3
    assert (reporter.counts.stalls, reporter.counts.dropped) == (3, 3)
    for _, outlet in reporter._outlets:
        outlet.finish()
        outlet.join(5)


class TestObserved:
    """What is asked for at each collection."""

    def test_every_instrument_is_there_with_its_unit(
        self, metered: Metrics, collected: Collected, answers: Answers
    ) -> None:
        answers.delays = [0.001]
        answers.counts.exempt_by_reason["warms up"] = 1
        waited = Delayed("GET", "/a", None, None, 0.3, True, False, True)
        metered(make_report(make_stall(delayed=(waited,))))
        found = collected.all()
        assert {name: metric.unit for name, metric in found.items()} == {
            each.name: each.unit for each in OFFERED
        }
        assert all(metric.description for metric in found.values())

    def test_delays_are_recorded_as_they_are_collected(
        self, metered: Metrics, collected: Collected, answers: Answers
    ) -> None:
        answers.delays = [0.0001] * 8 + [0.2, 0.15]
        [point] = collected.points("loopguard.eventloop.delay")
        assert point.count == 10
        assert tuple(point.explicit_bounds) == metrics.EVENTLOOP_DELAY.boundaries
        assert collected.points("loopguard.eventloop.delay")[0].count == 10

    def test_the_counts_are_those_of_the_statistics(
        self, metered: Metrics, collected: Collected, answers: Answers
    ) -> None:
        answers.counts = Counts(suppressed=4, dropped=2)
        answers.counts.exempt_by_reason.update({"warms up": 3, "ignored by /health": 1})
        assert collected.values("loopguard.reports.suppressed") == {(): 4}
        assert collected.values("loopguard.reports.dropped") == {(): 2}
        assert collected.values("loopguard.stalls.exempt") == {
            (("loopguard.exempt.reason", "warms up"),): 3,
            (("loopguard.exempt.reason", "ignored by /health"),): 1,
        }

    def test_reasons_are_bounded_like_routes(
        self, metered: Metrics, collected: Collected, answers: Answers
    ) -> None:
        answers.counts.exempt_by_reason.update({f"reason {number}": 1 for number in range(150)})
        counted = collected.values("loopguard.stalls.exempt")
        assert len(counted) == 101
        assert counted[("loopguard.exempt.reason", "other"),] == 50

    def test_what_is_not_known_is_not_told(
        self, metered: Metrics, collected: Collected, answers: Answers
    ) -> None:
        answers.utilization = answers.threadpool = None
        found = collected.all()
        assert "loopguard.up" in found
        assert not {name for name in found if "utilization" in name or "threadpool" in name}

    def test_after_stop_nothing_is_observed_and_a_new_start_counts_from_zero(
        self, collected: Collected, answers: Answers
    ) -> None:
        def started() -> Metrics:
            made = Metrics(answers.sources(), None, answers.troubles.append, collected.provider)
            made.start()
            return made

        first = started()
        first(make_report())
        assert collected.values("loopguard.stalls") == {BY_SLEEP: 1}
        first.stop()
        left = set(collected.all())
        assert left <= {each.name for each in metrics.HISTOGRAMS}
        second = started()
        second(make_report(make_stall(request=None, cause="gc")))
        counted = {
            dict(key)["loopguard.stall.cause"]: count
            for key, count in collected.values("loopguard.stalls").items()
        }
        assert counted == {"gc": 1}
        first.stop()  # once more: it is the second that is asked
        assert "loopguard.up" in collected.all()
        second.stop()
        assert answers.troubles == []


class TestHarmless:
    """Metrics that fail cost metrics, and nothing else."""

    def test_a_view_that_fails_is_one_trouble_and_the_collection_goes_on(
        self, answers: Answers
    ) -> None:
        class Broken(ExplicitBucketHistogramAggregation):
            def _create_aggregation(self, *_: Any, **__: Any) -> Any:
                raise ValueError("a broken view")

        collected = Collected(
            views=[View(instrument_name="loopguard.eventloop.delay", aggregation=Broken())]
        )
        made = Metrics(answers.sources(), None, answers.troubles.append, collected.provider)
        made.start()
        answers.delays = [0.1]
        assert "loopguard.up" in collected.all()
        assert [str(trouble) for trouble in answers.troubles] == ["a broken view"]
        made.abandon()

    def test_a_provider_that_fails_is_one_trouble(self, answers: Answers) -> None:
        class Broken(MeterProvider):
            def get_meter(self, *_: Any, **__: Any) -> Any:
                raise RuntimeError("a broken provider")

        made = Metrics(answers.sources(), None, answers.troubles.append, Broken())
        made.start()
        made(make_report())
        made.stop()
        assert [str(trouble) for trouble in answers.troubles] == ["a broken provider"]

    def test_a_source_that_fails_is_contained(self, collected: Collected, answers: Answers) -> None:
        sources = replace(answers.sources(), utilization=lambda: 1 / 0)
        made = Metrics(sources, None, answers.troubles.append, collected.provider)
        made.start()
        assert "loopguard.up" in collected.all()
        assert [type(trouble) for trouble in answers.troubles] == [ZeroDivisionError]
        made.abandon()


def test_the_first_words_are_kept_and_no_word_is_none() -> None:
    words = Vocabulary(2)
    assert [words.word(each) for each in ("a", None, "b", "c", "a")] == [
        "a",
        None,
        "b",
        "other",
        "a",
    ]


# A guard, in a process whose meter provider is its own.


def said_by(script: str, *arguments: str, **variables: str) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + script, *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    for word in ("Traceback", "Exception ignored", "guard.trouble"):
        assert word not in done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


PRELUDE = """
import asyncio, json, os, signal, sys, time
from opentelemetry import metrics
import loopguard
from tests.holding import hold, run
from tests.test_metrics import Collected

def say(**facts):
    os.write(1, json.dumps({"pid": os.getpid(), **facts}).encode() + b"\\n")

def counted(collected):
    return sum(collected.values("loopguard.stalls").values())
"""

EARLY_OR_LATE = """
collected = Collected()
if sys.argv[2] == "early":
    metrics.set_meter_provider(collected.provider)
guard = loopguard.install(budget=0.1, log=False)

async def main():
    await asyncio.sleep(1)
    await hold(0.5)
    await asyncio.sleep(0.3)
    if sys.argv[2] == "late":
        metrics.set_meter_provider(collected.provider)
    assert guard.flush(10)
    [delay] = collected.points("loopguard.eventloop.delay")
    [utilization] = collected.values("loopguard.eventloop.utilization").values()
    [up] = collected.values("loopguard.up").values()
    guard.pause()
    late = sum(delay.bucket_counts[place] for place, bound in enumerate(delay.explicit_bounds) if bound > 0.1)
    say(count=delay.count, late=late, utilization=utilization, up=up,
        paused=[point.value for point in collected.points("loopguard.up")], stalls=counted(collected),
        pool="loopguard.threadpool.waiting" in collected.all(), stats=guard.stats())

run(main(), sys.argv[1])
loopguard.uninstall()
say(left=sorted(collected.all()))
"""


@pytest.mark.parametrize(
    "loop, provider",
    [
        ("asyncio", "early"),
        pytest.param("uvloop", "late", marks=pytest.mark.skipif(not UVLOOP, reason="no uvloop")),
    ],
)
def test_a_guard_measures_its_loop_whenever_the_provider_is_set(loop: str, provider: str) -> None:
    """Half a second of two was held: the delay, the utilization and the count say so; uninstalled, nothing is seen."""
    during, after = said_by(EARLY_OR_LATE, loop, provider)
    assert 20 <= during["count"] <= 400
    assert during["late"] >= 6, "a beat that was 450 ms late skipped eight others"
    assert 0.1 < during["utilization"] < 0.9
    assert (during["up"], during["paused"]) == (1, [0])
    assert during["stalls"] == during["stats"]["stalls"] >= 1
    assert not during["pool"], "nothing here uses anyio"
    assert during["stats"]["troubles"] == during["stats"]["delay_samples_lost"] == 0
    assert set(after["left"]) <= {"loopguard.eventloop.delay", "loopguard.stall.duration"}


FORKED = """
collected = Collected()
metrics.set_meter_provider(collected.provider)
guard = loopguard.install(budget=0.1, log=False)
run(hold(0.3, times=2))
assert guard.flush(10)
of_parent = counted(collected)
pid = os.fork()
if pid == 0:
    signal.alarm(30)
    dormant = sorted(name for name in collected.all() if name != "loopguard.eventloop.delay")
    asyncio._set_running_loop(None)
    run(hold(0.3))
    assert guard.flush(10)
    say(dormant=dormant, stalls=counted(collected), stats=guard.stats()["stalls"])
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
say(stalls=counted(collected), before=of_parent, stats=guard.stats()["stalls"])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_a_forked_child_tells_its_own_and_its_parent_goes_on() -> None:
    child, parent = said_by(
        "import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n" + FORKED
    )
    assert child["stalls"] == child["stats"] >= 1
    assert child["dormant"] in ([], ["loopguard.stall.duration"]), "until it runs a loop"
    assert parent["stalls"] == parent["before"] == parent["stats"] >= 2


AT_EXIT = """
import atexit
collected = Collected()
metrics.set_meter_provider(collected.provider)
atexit.register(lambda: say(stalls=counted(collected), up=[p.value for p in collected.points("loopguard.up")]))
loopguard.install(budget=0.1, log=False)
run(hold(0.3))
"""


def test_what_an_sdk_collects_as_the_interpreter_exits_is_whole() -> None:
    """An SDK's last collection comes after we have ended, for it was there first."""
    [last] = said_by(AT_EXIT)
    assert last["stalls"] >= 1
    assert last["up"] == [0]


POOL = """
import anyio.to_thread, threading
collected = Collected()
metrics.set_meter_provider(collected.provider)
guard = loopguard.install(budget=0.1, log=False)

def seen():
    return [sum(collected.values(f"loopguard.threadpool.{name}").values()) for name in ("waiting", "utilization")]

async def until(expected):
    for _ in range(100):
        if seen() == expected:
            break
        await asyncio.sleep(0.1)
    return seen()

async def main():
    release = threading.Event()
    anyio.to_thread.current_default_thread_limiter().total_tokens = 4
    calls = [asyncio.create_task(anyio.to_thread.run_sync(release.wait)) for _ in range(10)]
    held = await until([6, 1.0])
    release.set()
    await asyncio.gather(*calls)
    say(held=held, after=await until([0, 0.0]), troubles=guard.stats()["troubles"])

run(main(), sys.argv[1])
"""


@pytest.mark.skipif(importlib.util.find_spec("anyio") is None, reason="anyio is not installed")
@pytest.mark.parametrize("loop", LOOPS)
def test_calls_that_wait_for_a_thread_of_anyios_are_seen(loop: str) -> None:
    """Four threads for ten calls: six wait, and all threads are taken."""
    [seen] = said_by(POOL, loop)
    assert seen["held"] == [6, 1.0]
    assert seen["after"] == [0, 0.0]
    assert seen["troubles"] == 0


def test_switched_off_it_makes_no_thread_and_the_rest_goes_on() -> None:
    guard = loopguard.install(budget=BUDGET, log=False, metrics=False)
    run(hold())
    assert guard.flush(10)
    assert guard.stats()["stalls"] >= 1
    assert "loopguard-metrics" not in {thread.name for thread in threading.enumerate()}
