"""The look that the probe took, beside the one that the watchdog took when it was served."""

from __future__ import annotations

import sys
from dataclasses import replace

from loopguard.capture.callee import callee_among, callee_of
from loopguard.capture.probe import Dump
from loopguard.capture.resolve import Resolved, Standing, only_call_on, resolve
from loopguard.capture.stacks import bounded
from loopguard.evidence import Callee, Look, RawFrame

TICK_NS = 10_000_000  # the time of a dump is known to within a tick of the kernel


def missed(dumps: list[Dump], asked_ns: int, until_ns: int, base_depth: int) -> list[Look]:
    """What the probe saw of a callback that was over, at `until_ns`, before there was time to look."""
    over = Look(asked_ns=asked_ns, at_ns=until_ns, key=None, stack=())
    return looks(dumps, over, base_depth, [])[:-1]


def looks(dumps: list[Dump], look: Look, base_depth: int, standing: list[Standing]) -> list[Look]:
    """The look with what the probe saw before it, in order of time.

    `standing` are the thread's frames, innermost first, as they were when the look was taken.

    Where the same callback still runs, both are of that one. Where it is over, the watchdog was kept waiting by what
    the probe saw, until shortly before it was served.
    """
    if not dumps:
        return [look]
    dump = dumps[-1]
    resolved = resolve(dump, standing)
    depth = base_depth if dump.whole else 0
    stack = resolved.stack[: len(resolved.stack) - depth]
    at_ns = max(look.asked_ns, min(dump.at_ns, look.at_ns))
    if not stack:
        return [look]
    seen = replace(
        look,
        at_ns=at_ns,
        stack=bounded(list(stack)),
        callee=_callee(resolved, stack[0]),
        cpu_ns=None,
        wait=None,
        probed=True,
    )
    if look.key is not None and resolved.standing > depth and not _began_after(look, at_ns):
        return [seen, replace(look, asked_ns=at_ns)]
    seen = replace(
        seen,
        key=("probe", dump.at_ns),
        context=None,
        task=None,
        coroutine=None,
        request=None,
        iteration=None,
    )
    until_ns = max(at_ns, look.at_ns - int(2e9 * sys.getswitchinterval()))
    still = replace(seen, asked_ns=at_ns, at_ns=until_ns)
    return [seen, still, replace(look, asked_ns=look.at_ns)]


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
