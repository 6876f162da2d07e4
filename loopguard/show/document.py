"""The report as JSON: a shape that other programs may rely on, described in docs/report.md."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from loopguard.record import Stall
from loopguard.show.read import LeftOut
from loopguard.show.summary import Culprit, Summary, Victim, Watched

SCHEMA = 1


def document(
    summary: Summary, left_out: LeftOut, *, title: str, written_at: float
) -> dict[str, Any]:
    """The report; the longest stalls in it are whole records."""
    return {
        "schema": SCHEMA,
        "kind": "report",
        "title": title,
        "written_at": _time(written_at),
        "first": _time(summary.first),
        "last": _time(summary.last),
        "totals": {
            "stalls": summary.stalls,
            "seconds": _round(summary.seconds),
            "fatal": summary.fatal,
            "not_scheduled": summary.not_scheduled,
            "not_scheduled_seconds": _round(summary.not_scheduled_seconds),
            "delayed_requests": summary.delayed_requests,
            "ungrouped": summary.ungrouped,
            "loop_seconds": _round(summary.loop_seconds),
            "requests": summary.requests,
        },
        "left_out": left_out_as_json(left_out),
        "processes": [_process(each) for each in summary.processes.values()],
        "culprits": [_culprit(each) for each in summary.culprits],
        "victims": [_victim(each) for each in summary.victims],
        "stalls": [stall.to_dict() for stall in summary.longest],
    }


def left_out_as_json(left_out: LeftOut) -> dict[str, Any]:
    return {
        "lines": left_out.lines,
        "repeated": left_out.repeated,
        "reasons": [
            {"file": each.file, "reason": each.reason, "lines": each.lines, "first": each.first}
            for each in left_out.skipped.values()
        ],
    }


def culprit_as_json(worst: Stall) -> dict[str, Any]:
    """Who is to blame: the same in report and diff."""
    shown = worst.to_dict()
    return {
        "fingerprint": worst.fingerprint,
        **{key: shown[key] for key in ("culprit", "call", "advice", "contributors")},
    }


def _culprit(culprit: Culprit) -> dict[str, Any]:
    return {
        **culprit_as_json(culprit.worst),
        "cause": culprit.cause,
        "causes": dict(culprit.causes.most_common()),
        "stalls": culprit.stalls,
        "seconds": _round(culprit.seconds),
        "longest": _round(culprit.worst.duration),
        "delayed_requests": culprit.delayed_requests,
        "worst": culprit.worst.id,
    }


def _victim(victim: Victim) -> dict[str, Any]:
    return {
        "method": victim.method,
        "route": victim.route,
        "requests": victim.requests,
        "seconds": _round(victim.seconds),
        "longest": _round(victim.longest),
        "by": {key: _round(value) for key, value in victim.by.most_common()},
    }


def _process(watched: Watched) -> dict[str, Any]:
    process = watched.process
    return {
        "instance": process.instance,
        "host": process.host,
        "pid": watched.pid,
        "service": process.service,
        "version": process.version,
        "started_at": _time(process.started_at),
        "loop_seconds": _round(process.loop_seconds),
        "requests": process.requests,
        "stalls": watched.stalls,
        "seconds": _round(watched.seconds),
    }


def _round(seconds: float) -> float:
    return round(seconds, 6)


def _time(unix: float | None) -> str | None:
    return None if unix is None else datetime.fromtimestamp(unix, UTC).isoformat()
