"""What a watchdog that was kept from the GIL may say of the time that it did not see: pure, no clock, no thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from loopguard.evidence import Look


def share(looks: Sequence[Look], gil_waits: int, starved_ns: int) -> list[Look]:
    """Each look with its part of what the watchdog waited for, by how long it was waited."""
    late_ns = sum(look.late_ns for look in looks) or 1
    return [
        replace(
            look,
            gil_waits=round(gil_waits * look.late_ns / late_ns),
            starved_ns=starved_ns * look.late_ns // late_ns,
        )
        for look in looks
    ]


def with_what_went_on(
    look: Look, looks: Sequence[Look], budget_ns: int, switch_ns: int
) -> list[Look]:
    """A look at a loop in no callback that had to wait for the GIL, with what went on before it; any other as it is."""
    if look.key is not None or not looks or not _for_the_gil(look, switch_ns):
        return [look]
    before = what_went_on(look, looks, budget_ns, switch_ns)
    return [*before, replace(look, asked_ns=look.at_ns, gil_waits=0)]


def what_went_on(
    too_late: Look, looks: Sequence[Look], budget_ns: int, switch_ns: int
) -> list[Look]:
    """What is known of the time until a look that came too late; `looks` are those before it.

    Where another thread kept the GIL from the watchdog, it kept it from the callback too that had just been seen to
    begin. One that had run for long may have come to its end before: of that nothing more is known.
    """
    if not looks:
        return [too_late]
    waited_ns = too_late.late_ns - too_late.starved_ns
    last = looks[-1]
    seen_ns = last.at_ns - next(look.at_ns for look in looks if look.key == last.key)
    other = too_late.other
    kept_it = other is not None and (other.alone or other.cpu_ns >= waited_ns // 4)
    if not _for_the_gil(too_late, switch_ns) or seen_ns > budget_ns // 2 or not kept_it:
        return []
    return [
        replace(
            too_late,
            at_ns=too_late.at_ns - 2 * switch_ns,
            key=last.key,
            iteration=last.iteration,
            request=last.request,
            serves=last.serves,
        )
    ]


def _for_the_gil(look: Look, switch_ns: int) -> bool:
    waited_ns = look.late_ns - look.starved_ns
    return waited_ns >= 4 * switch_ns and look.gil_waits * switch_ns >= waited_ns // 2
