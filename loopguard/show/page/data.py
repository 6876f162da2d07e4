"""What a page carries: the longest stalls, with each text, frame and stack written once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from loopguard.record import Delayed, Frame, Stall
from loopguard.show import words
from loopguard.show.summary import process_key

SCHEMA = 1
# A request that had to wait is some 60 bytes, of which a stall may have a hundred: the longest stalls name theirs.
_MOST_VICTIMS = 1_500


class Payload:
    """Stalls in rows, as `data.js` reads them. `base` is the moment, in unix seconds, from which they count time.

    `to_dict()` gives the tables, each item of which is named by its index: of texts (0 is none), of frames, of the
    nodes of all stacks (two numbers each: its parent's index, -1 for none, and its frame's), and of processes.
    """

    def __init__(self, stalls: Sequence[Stall]) -> None:
        self._texts: dict[str | None, int] = {None: 0}
        self._frames: dict[Frame, int] = {}
        self._nodes: dict[tuple[int, int], int] = {}
        self._processes: dict[tuple[str, str, int], tuple[int, Stall]] = {}
        self._victims_left = _MOST_VICTIMS
        self._base = min((stall.started_at for stall in stalls), default=0.0)
        self._rows = [self._row(stall) for stall in stalls]

    def to_dict(self) -> dict[str, Any]:
        frames = [self._frame_row(frame) for frame in self._frames]  # they name texts in their turn
        return {
            "schema": SCHEMA,
            "base": self._base,
            "texts": list(self._texts),
            "frames": frames,
            "nodes": [index for node in self._nodes for index in node],
            "processes": [_process(stall) for _, stall in self._processes.values()],
            "stalls": self._rows,
        }

    def _row(self, stall: Stall) -> list[Any]:
        request, text = stall.request, self._text
        return [
            _short(stall.id),
            round(stall.started_at - self._base, 3),
            round(stall.duration, 4),
            text(stall.cause),
            text(stall.fingerprint),
            self._process(stall),
            self._frame(stall.culprit),
            text(stall.call),
            text(stall.waited_on),
            self._node(stall.stack),
            text(words.route(request.method, request.route) if request else None),
            stall.trace_id or (request and request.trace_id) or 0,
            _brief(stall.cpu_time),
            _brief(stall.gc_time),
            text(stall.task),
            text(stall.coroutine),
            text(stall.advice),
            stall.delayed_requests,
            stall.samples,
            stall.confidence and round(stall.confidence, 2),
            self._rare(stall) or 0,
        ]

    def _rare(self, stall: Stall) -> dict[str, Any]:
        """What few stalls have."""
        rare: dict[str, Any] = {}
        if stall.ongoing:
            rare["ongoing"] = True
        if stall.request and stall.request.background:
            rare["background"] = True
        if stall.holder:
            rare["holder"] = [
                self._text(stall.holder.thread),
                self._frame(stall.holder.culprit),
                self._node(stall.holder.stack),
            ]
        if stall.phases:
            rare["phases"] = [
                [self._frame(each.culprit), round(each.share, 2)] for each in stall.phases
            ]
        if stall.contributors:
            rare["contributors"] = [
                [self._text(each.name), round(each.share, 2)] for each in stall.contributors
            ]
        if stall.delayed and len(stall.delayed) <= self._victims_left:
            rare["victims"] = [self._victim(each) for each in stall.delayed]
            self._victims_left -= len(stall.delayed)
        elif stall.delayed:
            rare["routes"] = self._delayed_routes(stall.delayed)
        return rare

    def _victim(self, delayed: Delayed) -> list[Any]:
        route = self._text(words.route(delayed.method, delayed.route))
        flags = 2 * delayed.queued + delayed.exact
        return [route, _milliseconds(delayed.delay), flags, delayed.trace_id or 0]

    def _delayed_routes(self, delayed: Iterable[Delayed]) -> list[int]:
        """By route, one after the other: route, requests, their milliseconds in all, those of the longest."""
        routes: dict[str, list[float]] = {}
        for each in delayed:
            routes.setdefault(words.route(each.method, each.route), []).append(each.delay)
        return [
            figure
            for route, delays in routes.items()
            for figure in (
                self._text(route),
                len(delays),
                _milliseconds(sum(delays)),
                _milliseconds(max(delays)),
            )
        ]

    def _text(self, text: str | None) -> int:
        return self._texts.setdefault(text, len(self._texts))

    def _frame(self, frame: Frame | None) -> int:
        return -1 if frame is None else self._frames.setdefault(frame, len(self._frames))

    def _frame_row(self, frame: Frame) -> list[Any]:
        return [
            self._text(frame.file),
            frame.line,
            self._text(frame.function),
            self._text(frame.module),
            self._text(frame.code),
            int(frame.library),
        ]

    def _node(self, stack: Iterable[Frame]) -> int:
        node = -1
        for frame in stack:
            node = self._nodes.setdefault((node, self._frame(frame)), len(self._nodes))
        return node

    def _process(self, stall: Stall) -> int:
        """Its index; the latest record tells how long it was watched."""
        key = process_key(stall)
        index, latest = self._processes.setdefault(key, (len(self._processes), stall))
        if stall.process.loop_seconds > latest.process.loop_seconds:
            self._processes[key] = index, stall
        return index


def _process(stall: Stall) -> dict[str, Any]:
    process = stall.process
    return {
        "instance": process.instance,
        "host": process.host,
        "service": process.service,
        "version": process.version,
        "pid": stall.pid,
        "loop": stall.loop,
        "loop_seconds": _brief(process.loop_seconds),
        "requests": process.requests,
    }


def _brief(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _short(identity: str) -> str:
    """What stands for the id on a page: shorter, and as unlikely to be another's whatever the ids look like."""
    return hashlib.blake2b(identity.encode(), digest_size=6).hexdigest()
