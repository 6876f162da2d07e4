"""What the probe saw, as looks among those that the watchdog took."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from loopguard.capture.callee import callee_among, callee_of
from loopguard.capture.probe import Dump
from loopguard.capture.resolve import Resolved, Standing, only_call_on, resolve
from loopguard.capture.stacks import bounded
from loopguard.evidence import Callee, Look, RawFrame

TICK_NS = 10_000_000  # the time of a dump is known to within a tick of the kernel


def before(
    look: Look, dumps: Sequence[Dump], base_depth: int, standing: list[Standing]
) -> list[Look]:
    """The look with what the probe saw before it, in order of time.

    `standing` are the thread's frames, innermost first, as they were when the look was taken. Where the same callback
    still runs, both are of that one. Where it is over, the watchdog was kept waiting by what the probe saw.
    """
    if not dumps:
        return [look]
    dump = dumps[-1]
    at_ns = min(dump.at_ns, look.at_ns)
    resolved = resolve(dump, standing)
    depth = base_depth if dump.whole else 0
    stack = resolved.stack[: len(resolved.stack) - depth]
    if not stack:
        return [look]
    asked_ns = min(look.asked_ns, at_ns)
    if look.key is not None and resolved.standing > depth and not _began_after(look, at_ns):
        seen = _seen(look, resolved, stack, asked_ns, at_ns)
        return [seen, replace(look, asked_ns=max(look.asked_ns, at_ns))]
    seen = _seen(_nobodys(dump), resolved, stack, asked_ns, at_ns)
    return [seen, *_until(seen, look.at_ns), replace(look, asked_ns=look.at_ns)]


def among(
    looks: Sequence[Look], dumps: Sequence[Dump], overdue_ns: int, over_ns: int, base_depth: int
) -> list[Look]:
    """The looks of a time that is over, at `over_ns`, with what the probe saw in it and no look has told of.

    The beat was overdue from `overdue_ns` on.
    """
    found = list(looks)
    for dump in dumps:
        earlier = [look for look in found if look.at_ns <= dump.at_ns]
        later = found[len(earlier) :]
        until_ns = later[0].at_ns if later else over_ns
        found = [*earlier, *_missed(dump, earlier, overdue_ns, until_ns, base_depth), *later]
    return found


def _missed(
    dump: Dump, earlier: list[Look], overdue_ns: int, until_ns: int, base_depth: int
) -> list[Look]:
    """Of the callback that was seen before the dump, if that stood there too."""
    last = earlier[-1] if earlier else _nobodys(dump)
    own = dump._replace(frames=dump.frames[: len(dump.frames) - base_depth] if dump.whole else ())
    resolved = resolve(own, [(None, frame) for frame in last.stack])
    if not resolved.stack:
        return []
    at_ns = min(dump.at_ns, until_ns)
    asked_ns = min(max(last.at_ns, overdue_ns), at_ns)
    whose = last if resolved.standing else _nobodys(dump)
    seen = _seen(whose, resolved, resolved.stack, asked_ns, at_ns)
    return [seen, *_until(seen, until_ns)]


def _nobodys(dump: Dump) -> Look:
    return Look(asked_ns=0, at_ns=0, key=("probe", dump.at_ns), stack=())


def _seen(
    whose: Look, resolved: Resolved, stack: tuple[RawFrame, ...], asked_ns: int, at_ns: int
) -> Look:
    return replace(
        whose,
        asked_ns=asked_ns,
        at_ns=at_ns,
        stack=bounded(list(stack)),
        callee=_callee(resolved, stack[0]),
        through=None,
        cpu_ns=None,
        wait=None,
        stopped=False,
        gil_waits=0,
        starved_ns=0,
        other=None,
        owner=None,
        probed=True,
        let_in=False,
    )


def _until(seen: Look, until_ns: int) -> list[Look]:
    """It stood there until shortly before somebody else was served: two switch intervals at most."""
    until_ns -= int(2e9 * sys.getswitchinterval())
    return [replace(seen, asked_ns=seen.at_ns, at_ns=until_ns)] if until_ns > seen.at_ns else []


def _began_after(look: Look, at_ns: int) -> bool:
    """Whether the callback that the look shows began after the probe went off."""
    began = [look.iteration.started_ns] if look.iteration is not None else []
    if look.request is not None:
        began.append(look.request.started_ns)
    return any(time > at_ns + TICK_NS for time in began)


def _callee(resolved: Resolved, innermost: RawFrame) -> Callee | None:
    """What the line called, if it makes one call only: a dump tells the line and no more."""
    code, lasti, module = innermost
    if resolved.live is not None and resolved.at_look:
        return callee_of(resolved.live, lasti)
    line = next((line for start, end, line in code.co_lines() if start <= lasti < end), None)
    if line is None or not only_call_on(code, line):
        return None
    if resolved.live is not None:
        return callee_of(resolved.live, lasti)
    names = None if module is None else sys.modules.get(module)
    return None if names is None else callee_among(vars(names), code, lasti)
