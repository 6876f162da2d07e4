"""What changed between two runs: new, gone, worse, better, by fingerprint, in blocked seconds per hour watched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from loopguard.record import Stall
from loopguard.show.document import culprit_as_json
from loopguard.show.summary import Culprit, Summary

SCHEMA = 1
# A culprit is worse or better where its figure changed by more than a quarter.
NOTABLE = 1.25

Verdict = Literal["new", "worse", "same", "better", "gone"]
VERDICTS: tuple[Verdict, ...] = ("new", "worse", "same", "better", "gone")


@dataclass(frozen=True, slots=True)
class Measure:
    """What one side's seconds are held against. `hours` watched, or None where neither side could tell."""

    hours: float | None
    requests: int

    def of(self, seconds: float) -> float:
        """Blocked seconds per hour watched, or blocked seconds where the hours are not known."""
        return seconds / self.hours if self.hours else seconds

    def per_thousand_requests(self, seconds: float) -> float | None:
        """Blocked milliseconds per 1,000 requests."""
        return 1e6 * seconds / self.requests if self.requests else None


@dataclass(frozen=True, slots=True)
class Change:
    """One culprit before and after; `before` and `after` in the unit of the comparison."""

    verdict: Verdict
    worst: Stall
    cause: str
    before: float
    after: float
    stalls_before: int
    stalls_after: int
    seconds_before: float
    seconds_after: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs side by side. `per_hour` is False where totals are compared, since the hours watched are not known."""

    before: Summary
    after: Summary
    measure_before: Measure
    measure_after: Measure
    changes: tuple[Change, ...]

    @property
    def per_hour(self) -> bool:
        return self.measure_after.hours is not None

    def of(self, verdict: Verdict) -> list[Change]:
        return [change for change in self.changes if change.verdict == verdict]


def compare(
    before: Summary,
    after: Summary,
    *,
    before_hours: float | None = None,
    after_hours: float | None = None,
) -> Comparison:
    """Compare by fingerprint. The hours are those given, else those that the processes were watched.

    Where either side's are not known, totals are compared.
    """
    hours_before = before_hours or before.loop_seconds / 3600 or None
    hours_after = after_hours or after.loop_seconds / 3600 or None
    known = hours_before is not None and hours_after is not None
    then = Measure(hours_before if known else None, before.requests)
    now = Measure(hours_after if known else None, after.requests)
    changes = _changes(_by_fingerprint(before), _by_fingerprint(after), then, now)
    return Comparison(before, after, then, now, tuple(changes))


def _by_fingerprint(summary: Summary) -> dict[str, Culprit]:
    return {each.worst.fingerprint: each for each in summary.culprits}


def _changes(
    before: dict[str, Culprit], after: dict[str, Culprit], then: Measure, now: Measure
) -> list[Change]:
    changes = [
        _change(before.get(fingerprint), after.get(fingerprint), then, now)
        for fingerprint in {**after, **before}
    ]
    return sorted(
        changes,
        key=lambda each: (VERDICTS.index(each.verdict), -abs(each.after - each.before)),
    )


def _change(before: Culprit | None, after: Culprit | None, then: Measure, now: Measure) -> Change:
    known = after or before
    assert known
    old = then.of(before.seconds) if before else 0.0
    new = now.of(after.seconds) if after else 0.0
    return Change(
        verdict=_verdict(before is not None, after is not None, old, new),
        worst=known.worst,
        cause=known.cause,
        before=old,
        after=new,
        stalls_before=before.stalls if before else 0,
        stalls_after=after.stalls if after else 0,
        seconds_before=before.seconds if before else 0.0,
        seconds_after=after.seconds if after else 0.0,
    )


def _verdict(was: bool, is_there: bool, old: float, new: float) -> Verdict:
    if not was:
        return "new"
    if not is_there:
        return "gone"
    if new > old * NOTABLE:
        return "worse"
    return "better" if new * NOTABLE < old else "same"


def comparison_as_json(comparison: Comparison) -> dict[str, Any]:
    """A shape that other programs may rely on, described in docs/report.md."""
    return {
        "schema": SCHEMA,
        "kind": "diff",
        "unit": "seconds per hour" if comparison.per_hour else "seconds",
        "before": _side(comparison.before, comparison.measure_before),
        "after": _side(comparison.after, comparison.measure_after),
        "verdicts": {verdict: len(comparison.of(verdict)) for verdict in VERDICTS},
        "changes": [_change_as_json(change) for change in comparison.changes],
    }


def _side(summary: Summary, measure: Measure) -> dict[str, Any]:
    per_thousand = measure.per_thousand_requests(summary.seconds)
    return {
        "stalls": summary.stalls,
        "seconds": round(summary.seconds, 6),
        "hours": measure.hours,
        "requests": summary.requests,
        "value": round(measure.of(summary.seconds), 6),
        "ms_per_1000_requests": None if per_thousand is None else round(per_thousand, 3),
    }


def _change_as_json(change: Change) -> dict[str, Any]:
    return {
        "verdict": change.verdict,
        **culprit_as_json(change.worst),
        "cause": change.cause,
        "before": round(change.before, 6),
        "after": round(change.after, 6),
        "stalls_before": change.stalls_before,
        "stalls_after": change.stalls_after,
        "seconds_before": round(change.seconds_before, 6),
        "seconds_after": round(change.seconds_after, 6),
    }


def github_annotations(changes: Iterable[Change]) -> str:
    """New and worse culprits as GitHub's workflow commands, which it shows beside the line."""
    lines = []
    for change in changes:
        frame = change.worst.culprit
        if change.verdict not in ("new", "worse") or frame is None:
            continue
        level = "error" if change.verdict == "new" else "warning"
        where = f"file={_property(frame.file)}" + (f",line={frame.line}" if frame.line else "")
        title = f"title={_property(f'event loop blocked: {change.verdict}')}"
        told = f"{frame.function} held the event loop {change.stalls_after} ×, {change.seconds_after:.3f} s"
        if change.worst.call:
            told += f", by {change.worst.call}"
        lines.append(f"::{level} {where},{title}::{_message(told)}\n")
    return "".join(lines)


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
