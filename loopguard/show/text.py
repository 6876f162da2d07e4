"""The report as text for a terminal of 80 columns: the sentence, the culprits, the victims."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from loopguard.show import words
from loopguard.show.diff import Comparison
from loopguard.show.read import LeftOut
from loopguard.show.summary import Culprit, Summary, Victim

WIDTH = 80
_INDENT = " " * 5
BOLD, DIM, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


def text_report(summary: Summary, left_out: LeftOut, *, top: int, title: str, colour: bool) -> str:
    """The lines, each at most 80 columns wide, and no control character in them but the colours' own."""
    lines = [*_head(summary, title), *_culprits(summary, top), *_victims(summary, top)]
    lines += _foot(summary, left_out)
    return _joined(lines, colour)


def text_diff(comparison: Comparison, *, colour: bool) -> str:
    """What changed, in lines as those of the report."""
    lines = [*_sides(comparison), *_changed(comparison)]
    return _joined(lines, colour)


def fold(text: str, indent: str = "") -> list[str]:
    """The text in lines of at most 80 columns, broken at spaces where there are any."""
    lines, line = [], ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if columns(indent + joined) <= WIDTH:
            line = joined
            continue
        if line:
            lines.append(line)
        *full, line = _pieces(word, WIDTH - len(indent))
        lines += full
    return [f"{indent}{each}" for each in [*lines, line]]


def columns(text: str) -> int:
    """How many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    return sum(_columns_of(char) for char in text)


def _columns_of(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "FW" else 1


def _pieces(word: str, width: int) -> Iterator[str]:
    piece, used = "", 0
    for char in word:
        needed = _columns_of(char)
        if used + needed > width:
            yield piece
            piece, used = "", 0
        piece += char
        used += needed
    yield piece


def _joined(lines: list[str], colour: bool) -> str:
    return "".join(f"{line}\n" for line in (lines if colour else map(_bare, lines)))


def _bare(line: str) -> str:
    for code in (BOLD, DIM, PLAIN):
        line = line.replace(code, "")
    return line


def _styled(style: str, lines: list[str]) -> list[str]:
    return [f"{style}{line}{PLAIN}" for line in lines]


def _head(summary: Summary, title: str) -> list[str]:
    return [*_styled(BOLD, fold(title) if title else []), *fold(words.sentence(summary))]


def _culprits(summary: Summary, top: int) -> list[str]:
    culprits = summary.culprits
    if not culprits:
        return []
    lines = ["", *_styled(BOLD, [_right("blocked", "stalls", "longest", "delayed") + "  cause"])]
    for culprit in culprits[:top]:
        lines += _culprit(culprit)
    return lines + _more(len(culprits) - top, "culprit")


def _culprit(culprit: Culprit) -> list[str]:
    worst = culprit.worst
    delayed = "-" if culprit.delayed_requests is None else f"{culprit.delayed_requests:,}"
    figures = words.seconds(culprit.seconds), f"{culprit.stalls:,}", words.seconds(worst.duration)
    lines = [f"{_right(*figures, delayed)}  {culprit.cause}"]
    lines += _styled(BOLD, fold(words.blamed(worst), _INDENT))
    if worst.call:
        lines += fold(f"calls {worst.call}", _INDENT)
    if worst.request:
        lines += fold(words.route(worst.request.method, worst.request.route), _INDENT)
    if worst.advice:
        lines += _styled(DIM, fold(worst.advice, _INDENT))
    return lines


def _victims(summary: Summary, top: int) -> list[str]:
    victims = summary.victims
    if not victims:
        return []
    lines = [
        "",
        *_styled(BOLD, [_right("waited", "requests", "longest") + "  route that had to wait"]),
    ]
    for victim in victims[:top]:
        lines += _victim(victim)
    return lines + _more(len(victims) - top, "route")


def _victim(victim: Victim) -> list[str]:
    figures = words.seconds(victim.seconds), f"{victim.requests:,}", words.seconds(victim.longest)
    left = _right(*figures)
    first, *rest = fold(words.route(victim.method, victim.route), " " * (len(left) + 2))
    return [left + first[len(left) :], *rest]


def _right(*figures: str) -> str:
    """The figures one under the other, aligned at their right."""
    return "".join(f"{figure:>10}" for figure in figures)


def _more(count: int, noun: str) -> list[str]:
    return [f"{_INDENT}and {words.number(count, f'{noun}')} more"] if count > 0 else []


def _foot(summary: Summary, left_out: LeftOut) -> list[str]:
    notes = [words.fatal(summary), words.not_scheduled(summary)]
    if left_out.lines:
        notes.append(f"{words.number(left_out.lines, 'line')} left out (see stderr).")
    if summary.ungrouped:
        notes.append(f"{words.number(summary.ungrouped, 'stall')} more than can be told apart.")
    return [line for note in notes if note for line in ["", *fold(note)]]


def _sides(comparison: Comparison) -> list[str]:
    sides = (
        ("before", comparison.before, comparison.measure_before),
        ("after", comparison.after, comparison.measure_after),
    )
    return [line for side in sides for line in fold(words.side(*side))]


def _changed(comparison: Comparison) -> list[str]:
    changes = [change for change in comparison.changes if change.verdict != "same"]
    unit = "blocked seconds per hour watched" if comparison.per_hour else "blocked seconds in all"
    same = len(comparison.changes) - len(changes)
    lines = ["", *_styled(BOLD, [f"{_right('before', 'after')}  {unit}"])] if changes else [""]
    for change in changes:
        lines.append(f"{_right(f'{change.before:,.3f}', f'{change.after:,.3f}')}  {change.verdict}")
        lines += _styled(BOLD, fold(words.blamed(change.worst), _INDENT))
        detail = f"{change.cause}, {change.stalls_before:,} → {words.number(change.stalls_after, 'stall')}"
        lines += fold(
            f"{detail}, calls {change.worst.call}" if change.worst.call else detail, _INDENT
        )
    lines.append(f"{words.number(same, 'culprit')} within a quarter of what they were.")
    return lines + [line for note in words.caveats(comparison) for line in ["", *fold(note)]]
