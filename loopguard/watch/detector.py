"""Was a callback over its budget? Timestamps in, verdicts out: no clock, no thread.

Between two heartbeats the loop may have run any number of callbacks. The looks in between tell which; each callback
gets an interval in which it must have begun and one in which it must have ended. The verdict holds against it the
time that is certain; the record tells the time that is most likely.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from loopguard.evidence import Held, Iteration, LateBeat, Look

# From the first step of a request's task to our layer a server and its telemetry take well under this.
_LEAD_NS = 4_000_000
_NOISE_NS = 2_500_000
_WAITER_NS = 1_000_000
# What ran before a request's callback in its iteration: handlers that do not block take less.
_BEFORE_NS = 7_000_000
# Of the time that no look saw before and behind a callback, half is held against it, but no more than these shares of
# the budget: what looks leave unseen even where the system runs the watchdog somewhat late. Whatever runs for less
# than the rest of the budget is never held, however late that was.
_AHEAD, _BEHIND = 0.6, 0.3
_COMPUTES = (
    0.25  # a callback that was on a CPU for this share of its time, however loaded the system
)


class _Start(NamedTuple):
    """When a callback began: not before `earliest`, likely not after `likely`, surely not after `latest`.

    The verdict counts its time from `counted`.
    """

    earliest_ns: int
    likely_ns: int
    latest_ns: int
    counted_ns: int


def find_stalls(
    beat: LateBeat, looks: Sequence[Look], budget_ns: int, switch_ns: int
) -> list[Held]:
    """The callbacks that were over budget between a late beat and the beat before it, in order of time.

    `looks` are those taken in between; `switch_ns` is the interpreter's switch interval.
    """
    seen = [tuple(group) for _, group in groupby(looks, key=lambda look: look.key)]
    if all(group[0].key is None for group in seen):
        return _unseen(beat, looks, budget_ns)
    starts = [
        _start(group, beat, previous, budget_ns, switch_ns)
        for group, previous in zip(seen, [None, *seen], strict=False)
    ]
    held = []
    for place, (group, start) in enumerate(zip(seen, starts, strict=True)):
        after = starts[place + 1] if place + 1 < len(seen) else None
        following = seen[place + 1][0] if place + 1 < len(seen) else None
        certain_end, end = _end(group[-1], following, after, beat, budget_ns)
        if group[0].key is None or certain_end - start.counted_ns < budget_ns:
            continue
        likely = (start.earliest_ns + start.likely_ns) // 2
        error = max(_reach(start, likely, group[0], beat), _least_error(beat))
        held.append(Held(likely, error, end, group, beat))
    return held or _stopped(beat, looks, budget_ns, switch_ns)


def _stopped(beat: LateBeat, looks: Sequence[Look], budget_ns: int, switch_ns: int) -> list[Held]:
    """Where no callback was over its budget: the time for which the watchdog itself was stopped, if that was; one or none.

    What the first look after it saw may have begun since, and is told of nothing here.
    """
    for before, look in zip([None, *looks], looks, strict=False):
        late = look.late_ns - look.starved_ns
        if late >= budget_ns and look.gil_waits * switch_ns < late // 2:
            alive = beat.last_ns if before is None else before.at_ns
            start = (alive + look.asked_ns) // 2
            nobodys = Look(
                asked_ns=look.asked_ns,
                at_ns=look.at_ns,
                key=None,
                stack=(),
                gil_waits=look.gil_waits,
                starved_ns=look.starved_ns,
            )
            return [Held(start, start - alive, look.at_ns, (nobodys,), beat)]
    return []


def find_congestion(beat: LateBeat, looks: Sequence[Look], limit_ns: int) -> list[Held]:
    """The iteration that took longer than its limit, where no callback in it was over the budget; none or one.

    Time in which the system withheld the CPU does not count.
    """
    seen = [look for look in looks if look.key is not None]
    turns = [tuple(turn) for _, turn in groupby(seen, key=_turn)]
    found = []
    for turn in turns:
        end = _end_of(turn[-1], beat, looks)
        began = turn[0].iteration
        start, error = beat.due_ns, (beat.due_ns - beat.last_ns) // 2
        if began is not None and began.started_ns <= turn[0].at_ns:
            # The last beat may have been the first callback of this iteration.
            start, error = max(began.started_ns, beat.last_ns), began.error_ns
        if len({look.key for look in turn}) > 1 and end - start - _withheld(beat) >= limit_ns:
            found.append(
                Held(start, max(error, _least_error(beat)), end, turn, beat, together=True)
            )
    return sorted(found, key=lambda held: held.start_ns - held.end_ns)[:1]


def _end_of(last: Look, beat: LateBeat, looks: Sequence[Look]) -> int:
    """When the iteration was over that was last seen in that look.

    libuv reckons how long it may wait by the time at which the iteration began: behind a long one it waits for a beat
    that is long due, with nothing to do.
    """
    after = next((look for look in looks if look.at_ns > last.at_ns), None)
    if after is None:
        return beat.at_ns
    return _idle_since(last, after, beat) if after.key is None else after.at_ns


def _end(
    last: Look, following: Look | None, after: _Start | None, beat: LateBeat, budget_ns: int
) -> tuple[int, int]:
    """When the callback was over that was last seen in that look: the verdict counts its time until the one, and most
    likely it was the other.

    `following` is the next look, which saw another callback, that began at `after`, or a loop that had none.
    """
    unknown_until = beat.at_ns if after is None else after.counted_ns
    counted = last.at_ns + _half(unknown_until - last.at_ns, round(_BEHIND * budget_ns))
    if following is None or after is None:
        return counted, beat.at_ns
    if following.key is None:
        idle = _idle_since(last, following, beat)
        return min(counted, idle), idle
    return counted, max(counted, (after.earliest_ns + after.likely_ns) // 2)


def _idle_since(last: Look, idle: Look, beat: LateBeat) -> int:
    """When what ran in the one look was over, where the loop had nothing to do in the next.

    asyncio goes on to an overdue beat at once, so there it was just over. libuv waits first: it reckons for how long by
    the time at which the iteration began. Where that is not known, and it computed, what was left of the CPU time says
    when it was over, at the rate until then; else that was in mid-time.
    """
    earliest = max(last.at_ns, idle.at_ns - (beat.due_ns - beat.last_ns))
    middle = (earliest + idle.at_ns) // 2
    if last.iteration is not None:
        if last.iteration.index is not None:
            return idle.at_ns
        reckoned = beat.at_ns - max(0, beat.due_ns - last.iteration.started_ns)
        if reckoned < earliest - last.iteration.error_ns:
            return middle  # something has woken it before
        return max(earliest, min(reckoned, idle.at_ns))
    if last.cpu_ns is None or beat.cpu_ns is None:
        return middle
    before, after = last.cpu_ns - beat.cpu_start_ns, beat.cpu_start_ns + beat.cpu_ns - last.cpu_ns
    watched = last.at_ns - beat.last_ns
    if before < _COMPUTES * watched:
        return middle
    return max(earliest, min(last.at_ns + after * watched // before, idle.at_ns))


def _turn(look: Look) -> int | None:
    return None if look.iteration is None else look.iteration.started_ns


def _withheld(beat: LateBeat) -> int:
    return beat.run_delay_ns or 0


def _reach(start: _Start, likely: int, first: Look, beat: LateBeat) -> int:
    """How far from the likely start the true one may be; always less than a beat.

    A callback may have come behind one that waited unseen. Of one that serves a request that is not assumed: what
    runs beside it in its iteration seldom takes long, and an error that covered it would say nothing any more.
    """
    until = start.likely_ns if first.request is not None else start.latest_ns
    return min(max(likely - start.earliest_ns, until - likely), beat.due_ns - beat.last_ns - 1)


def _least_error(beat: LateBeat) -> int:
    """No start is known better than this: a loaded system takes as long between two lines of code."""
    return min(_NOISE_NS, (beat.due_ns - beat.last_ns) // 4)


def _unseen(beat: LateBeat, looks: Sequence[Look], budget_ns: int) -> list[Held]:
    """The loop's thread was late but never seen in a callback: not run at all, or waiting to go on."""
    if beat.at_ns - beat.due_ns < budget_ns:
        return []
    middle = (beat.last_ns + beat.due_ns) // 2
    return [Held(middle, middle - beat.last_ns, beat.at_ns, tuple(looks), beat)]


def _half(unseen_ns: int, most_ns: int) -> int:
    return min(max(0, unseen_ns) // 2, most_ns)


def _start(
    group: tuple[Look, ...],
    beat: LateBeat,
    previous: tuple[Look, ...] | None,
    budget_ns: int,
    switch_ns: int,
) -> _Start:
    first = group[0]
    earliest = beat.last_ns if previous is None else previous[-1].at_ns
    withheld = _withheld_before(first, None if previous is None else previous[-1], beat)
    latest = max(earliest, min(first.at_ns, _starved_since(first, switch_ns) + withheld))
    iteration = _iteration(group)
    called = _call_of_request(first, earliest, latest)
    if called is not None:
        began = earliest if iteration is None else min(iteration.started_ns, called)
        return _Start(max(earliest, began, called - _LEAD_NS), called, called, called)
    if first.probed and (iteration is None or first.iteration is None):
        # Had it begun when the beat was due, that would have come first, but for what was ready before it.
        return _Start(earliest, max(earliest, min(latest, beat.due_ns)), latest, latest)
    if iteration is None:
        return _by_request(first, earliest, latest)
    exactly = iteration.started_ns + iteration.error_ns
    if exactly > latest:
        return _by_request(first, earliest, latest)
    if exactly < earliest:  # the iteration of the callback before it, or of the last beat
        start = _by_request(first, earliest, latest)
        after_beat = first.request is not None and previous is None
        likely = min(latest, start.earliest_ns + _BEFORE_NS) if after_beat else latest
        return _among_others(start._replace(likely_ns=likely), budget_ns)
    earliest = max(earliest, iteration.started_ns)
    if iteration.index == 0:
        exactly = max(earliest, exactly)
        return _Start(earliest, exactly, exactly, exactly)
    likely = latest
    if first.wait is not None and first.cpu_ns is not None:
        # What ran before it in this iteration took some of the CPU time; the one that waits took next to none.
        likely = min(latest, exactly + first.cpu_ns - beat.cpu_start_ns + _WAITER_NS)
    if first.request is not None:
        likely = min(likely, exactly + _BEFORE_NS)
    return _among_others(_Start(earliest, max(earliest, likely), latest, latest), budget_ns)


def _among_others(start: _Start, budget_ns: int) -> _Start:
    """Of a callback that others may have run before in its iteration, and no look saw them."""
    counted = start.latest_ns - _half(
        start.latest_ns - start.earliest_ns, round(_AHEAD * budget_ns)
    )
    return start._replace(counted_ns=counted)


def _call_of_request(first: Look, earliest: int, latest: int) -> int | None:
    """When this very callback called our layer, which noted the time; None where an earlier one did.

    A task takes one step in an iteration. Where `loop.time()` refreshed the time of the iteration before that call,
    the iteration began even earlier, and it holds all the same. What the request's handler began runs in a later one,
    which uvloop's clock may date before the call.
    """
    if first.request is None or first.iteration is None or not first.serves:
        return None
    called = first.request.started_ns
    within = max(earliest, first.iteration.started_ns) <= called <= latest
    return called if within else None


def _by_request(first: Look, earliest: int, latest: int) -> _Start:
    """Without the iteration's start: a callback of a request began when that was called, or later."""
    if first.request is not None:
        earliest = max(earliest, min(first.request.started_ns - _LEAD_NS, latest))
    return _Start(earliest, latest, latest, latest)


def _starved_since(look: Look, switch_ns: int) -> int:
    """Since when, at the latest, the thread has run this very callback.

    Had it come to a place where the interpreter hands over the GIL, the watchdog would have been served there. So
    if it waited for the GIL, and not for a CPU, then one native call filled the time.
    """
    if look.gil_waits * switch_ns < (look.late_ns - look.starved_ns) // 2:
        return look.at_ns
    return look.asked_ns + look.starved_ns + 2 * switch_ns


def _withheld_before(look: Look, before: Look | None, beat: LateBeat) -> int:
    """For how long, at most, the system kept the loop's thread from a CPU before that look, since the one before it.

    Who has the GIL may be kept from a CPU with it, in the midst of many short callbacks: nobody is served then either.
    """
    since, cpu = (
        (beat.last_ns, beat.cpu_start_ns) if before is None else (before.at_ns, before.cpu_ns)
    )
    if look.cpu_ns is None or cpu is None:
        return 0
    return max(0, min(_withheld(beat), look.at_ns - since - (look.cpu_ns - cpu)))


def _iteration(group: tuple[Look, ...]) -> Iteration | None:
    """The iteration in which a callback runs, if all looks at it agree that could tell.

    On uvloop the user's own `loop.time()` refreshes the cached time, which then says nothing.
    """
    known = [look.iteration for look in group if look.iteration is not None]
    return known[0] if len({each.started_ns for each in known}) == 1 else None
