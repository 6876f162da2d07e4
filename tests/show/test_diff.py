"""What changed: by fingerprint, per hour watched, and said with its limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loopguard.cli import main
from loopguard.record import Frame, Stall
from loopguard.show.choose import Choice
from loopguard.show.diff import Comparison, compare, github_annotations
from loopguard.show.read import Whole
from loopguard.show.summary import Summary, summarize
from tests.show.records import in_process, stall, write


def run(*stalls: Stall) -> Summary:
    return summarize(map(Whole, stalls), Choice(), 0)


def held(fingerprint: str, duration: float, hours: float = 1.0, **changes: Any) -> Stall:
    number = int.from_bytes(fingerprint.encode()) * 1000 + int(duration * 100)
    process = in_process("a", hours * 3600)
    return stall(number, fingerprint=fingerprint, duration=duration, process=process, **changes)


def verdicts(comparison: Comparison) -> dict[str, str]:
    return {change.worst.fingerprint: change.verdict for change in comparison.changes}


def test_each_culprit_gets_its_verdict() -> None:
    before = run(held("gone", 1.0), held("worse", 1.0), held("better", 1.0), held("same", 1.0))
    after = run(held("new", 1.0), held("worse", 1.3), held("better", 0.7), held("same", 1.2))
    assert verdicts(compare(before, after)) == {
        name: name for name in ("new", "worse", "same", "better", "gone")
    }


def test_twice_as_much_in_twice_the_time_is_the_same() -> None:
    after = run(held("a", 1.0, hours=2.0), held("a", 1.01, hours=2.0))
    compared = compare(run(held("a", 1.0)), after)
    assert verdicts(compared) == {"a": "same"}
    assert compared.changes[0].after == pytest.approx(1.005)


def test_the_hours_given_win_over_those_recorded() -> None:
    compared = compare(run(held("a", 1.0)), run(held("a", 1.0)), after_hours=0.5)
    assert verdicts(compared) == {"a": "worse"}
    assert (compared.changes[0].before, compared.changes[0].after) == (1.0, 2.0)


def test_where_one_side_knows_no_hours_totals_are_compared() -> None:
    compared = compare(run(held("a", 1.0, hours=0)), run(held("a", 1.0, hours=9)))
    assert not compared.per_hour
    assert (compared.changes[0].before, compared.changes[0].after) == (1.0, 1.0)


def test_what_the_system_did_is_no_culprit() -> None:
    after = run(held("a", 1.0, cause="not_scheduled"))
    assert compare(run(), after).changes == ()


def test_github_is_told_of_new_and_worse_at_their_lines() -> None:
    frame = Frame("app/a,b.py", 7, None, "f%", None, library=False)
    compared = compare(run(held("old", 1.0)), run(held("new", 1.0, culprit=frame, call=None)))
    assert github_annotations(compared.changes) == (
        "::error file=app/a%2Cb.py,line=7,title=event loop blocked%3A new::"
        "f%25 held the event loop 1 ×, 1.000 s\n"
    )


def test_the_gate_closes_only_for_what_is_new(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = str(write(tmp_path / "a.jsonl", [held("a", 1.0)]))
    worse = str(write(tmp_path / "b.jsonl", [held("a", 9.0)]))
    new = str(write(tmp_path / "c.jsonl", [held("b", 0.2)]))
    assert main(["diff", before, worse, "--fail-on-new"]) == 0
    assert main(["diff", before, new]) == 0
    assert main(["diff", before, new, "--fail-on-new"]) == 1
    assert "Gone may also mean that it was not exercised" in capsys.readouterr().out


def test_as_json_it_has_the_documented_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = str(write(tmp_path / "a.jsonl", [held("a", 1.0)]))
    after = str(write(tmp_path / "b.jsonl", [held("a", 2.0)]))
    assert main(["diff", before, after, "-f", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["schema"], told["kind"], told["unit"]) == (1, "diff", "seconds per hour")
    assert told["verdicts"] == {"new": 0, "worse": 1, "same": 0, "better": 0, "gone": 0}
    assert told["after"] == {
        "stalls": 1,
        "seconds": 2.0,
        "hours": 1.0,
        "requests": 17,
        "value": 2.0,
        "ms_per_1000_requests": 117647.059,
    }
    (change,) = told["changes"]
    assert (change["before"], change["after"], change["culprit"]["line"]) == (1.0, 2.0, 42)
