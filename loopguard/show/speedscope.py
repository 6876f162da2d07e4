"""The report for https://www.speedscope.app: one profile a process, whose weights are blocked seconds, not CPU time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from loopguard.record import Frame, Stall
from loopguard.show.summary import process_key

FORMAT = "https://www.speedscope.app/file-format-schema.json"


def speedscope(stalls: Iterable[Stall], *, title: str) -> dict[str, Any]:
    """A file of Speedscope's own format; a stall whose stack nobody saw stands under its cause."""
    frames: dict[tuple[str, str, int | None], int] = {}
    by_process: dict[tuple[str, str, int], list[Stall]] = {}
    for stall in sorted(stalls, key=lambda stall: stall.started_at):
        by_process.setdefault(process_key(stall), []).append(stall)
    profiles = [_profile(key, group, frames) for key, group in by_process.items()]
    return {
        "$schema": FORMAT,
        "name": title,
        "exporter": "loopguard",
        "activeProfileIndex": 0,
        "shared": {"frames": [_frame(*key) for key in frames]},
        "profiles": profiles or [_empty()],
    }


def _profile(
    key: tuple[str, str, int], stalls: list[Stall], frames: dict[tuple[str, str, int | None], int]
) -> dict[str, Any]:
    host, instance, pid = key
    weights = [round(stall.duration, 6) for stall in stalls]
    return {
        "type": "sampled",
        "name": f"blocked time, {host} {instance} pid {pid}",
        "unit": "seconds",
        "startValue": 0,
        "endValue": round(sum(weights), 6),
        "samples": [[_index(frames, each) for each in _keys(stall)] for stall in stalls],
        "weights": weights,
    }


def _keys(stall: Stall) -> Iterable[tuple[str, str, int | None]]:
    if not stall.stack:
        return [("", stall.cause, None)]
    return [(frame.file, _name(frame), frame.line) for frame in stall.stack]


def _name(frame: Frame) -> str:
    return f"{frame.module}.{frame.function}" if frame.module else frame.function


def _index(frames: dict[tuple[str, str, int | None], int], key: tuple[str, str, int | None]) -> int:
    return frames.setdefault(key, len(frames))


def _frame(file: str, name: str, line: int | None) -> dict[str, Any]:
    frame: dict[str, Any] = {"name": name}
    if file:
        frame["file"] = file
    if line is not None:
        frame["line"] = line
    return frame


def _empty() -> dict[str, Any]:
    """Speedscope refuses a file without any profile."""
    return {
        "type": "sampled",
        "name": "no stall",
        "unit": "seconds",
        "startValue": 0,
        "endValue": 0,
        "samples": [],
        "weights": [],
    }
