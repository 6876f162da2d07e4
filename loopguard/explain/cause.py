"""Why the loop was held: from looks and clocks to one word, or `unknown`."""

from __future__ import annotations

from collections import defaultdict

from loopguard.evidence import Callee, Held, Look, OtherThread, RawFrame, Wait
from loopguard.explain.call import name_of
from loopguard.explain.consensus import weigh
from loopguard.record import Cause

_HALF = 0.5
_WAKE_UP_NS = 20_000_000  # a machine that is merely busy wakes a thread within this
_LOCK_MODULES = {
    "threading",
    "queue",
    "_queue",
    "_thread",
    "concurrent",
    "multiprocessing",
    "_multiprocessing",
}


def cpu_seconds(held: Held) -> float | None:
    """Seconds of the stall that the loop's thread was on a CPU; None where that is not known.

    Between the looks at this callback that is known. Before the first and after the last other callbacks may have
    run since the last beat: there it is what was spent, but no more than the time that this one took.
    """
    beat = held.beat
    if beat.cpu_ns is None:
        return None
    duration = held.end_ns - held.start_ns
    looks = [(look.at_ns, look.cpu_ns) for look in held.looks if look.cpu_ns is not None]
    if not looks:
        return min(beat.cpu_ns, duration) / 1e9
    (first_ns, first_cpu), (last_ns, last_cpu) = looks[0], looks[-1]
    before = min(first_cpu - beat.cpu_start_ns, first_ns - held.start_ns)
    after = min(beat.cpu_start_ns + beat.cpu_ns - last_cpu, held.end_ns - last_ns)
    return min(max(before, 0) + (last_cpu - first_cpu) + max(after, 0), duration) / 1e9


def gc_seconds(held: Held) -> float:
    """Seconds of the stall that a collection ran on any thread."""
    return min(held.beat.gc_ns, held.end_ns - held.start_ns) / 1e9


def cause_of(held: Held, budget_ns: int, switch_ns: int) -> Cause:
    """The cause that accounts for most of the stall; `unknown` where the evidence does not reach.

    `switch_ns` is the interpreter's switch interval: the watchdog waits that long for the GIL beside any code that
    computes, so only what is beyond twice of it counts as starved.
    """
    duration = max(held.end_ns - held.start_ns, 1)
    cpu_time = cpu_seconds(held)
    if cpu_time is None:
        return "import" if _importing(held) >= _HALF else "unknown"
    probed = _probed_share(held)
    on_cpu = max(cpu_time * 1e9, probed * duration)
    starved = max(_starved_share(held, switch_ns), probed)
    if _not_run(held, duration, on_cpu, budget_ns, switch_ns):
        return "not_scheduled"
    if not any(look.stack for look in held.looks):
        return _unseen_cause(held, starved, on_cpu >= _HALF * duration, switch_ns)
    wait = wait_of(held)[0]
    waits_for_gil = wait is not None and wait.call == "futex"
    ready = on_cpu + (held.beat.run_delay_ns or 0)
    if held.beat.gc_ns >= _HALF * duration and (ready >= _HALF * duration or waits_for_gil):
        # Where another thread collects, this one waits for the GIL; in any other wait it lost nothing by it.
        return "gc"
    if _importing(held) >= _HALF:
        return "import"
    if on_cpu < _HALF * duration:
        if wait is not None and wait.call != "futex":
            return "blocking_call"
        # It would have computed, had it been given a CPU; but not while it waited, for the delay may be another's.
        waited = _seen_waiting(held, switch_ns)
        # Stopped it would have gone on as it was seen to do for the rest.
        stopped = stopped_ns(held, switch_ns) if on_cpu > waited else 0
        free = max(0.0, duration - on_cpu - waited)
        on_cpu += min(max(held.beat.run_delay_ns or 0, stopped), free)
    if on_cpu >= _HALF * duration:
        return "gil_hold" if max(starved, _let_in_share(held)) >= _HALF else "cpu"
    if starved >= _HALF:
        return _cause_off_cpu(held, switch_ns)
    return _wait_cause(held)


def _unseen_cause(held: Held, starved: float, computed: bool, switch_ns: int) -> Cause:
    """Of a time in which no look saw the thread in any callback."""
    if held.beat.gc_ns >= _HALF * (held.end_ns - held.start_ns):
        return "gc"
    if starved < _HALF:
        return "unknown"
    if computed:
        return "gil_hold"
    return "gil_wait" if _cause_off_cpu(held, switch_ns) == "gil_wait" else "unknown"


def _cause_off_cpu(held: Held, switch_ns: int) -> Cause:
    """Of a time in which the watchdog was kept from the GIL, and the loop's thread did not compute.

    Either it was kept from the GIL too, or it waited itself in a native call that keeps it. A thread that is kept from
    it wakes in every switch interval, as long as it gets a CPU; one that waits in a call hardly ever.
    """
    starved_ns = sum(_starved_of_gil(look, switch_ns) for look in held.looks)
    beat, other = held.beat, in_the_way(held, "gil_wait")
    asked_ns = None
    if beat.switches is not None:
        asked_ns = beat.switches * switch_ns + (beat.run_delay_ns or 0)
        if asked_ns < starved_ns / 4:
            return "blocking_call"
        if asked_ns < starved_ns / 2:
            return "unknown"
    if other is None:
        return "unknown"
    # A quarter will do: on a busy machine a thread that keeps the GIL has to wait for a CPU itself.
    kept_it = other.cpu_ns >= starved_ns / 4 or (other.alone and asked_ns is not None)
    return "gil_wait" if kept_it else "unknown"


def in_the_way(held: Held, cause: Cause) -> OtherThread | None:
    """The thread that kept the GIL, or had the lock; None where that is not known."""
    if cause == "lock":
        return next((look.owner for look in reversed(held.looks) if look.owner is not None), None)
    if cause != "gil_wait":
        return None
    # Who was there when the watchdog had waited longest.
    seen = [look for look in held.looks if look.other is not None]
    return max(seen, key=lambda look: look.late_ns).other if seen else None


def wait_of(held: Held) -> tuple[Wait | None, Callee | None, tuple[RawFrame, ...]]:
    """What the thread was found waiting in for most of the time, and the callee and stack of one such look."""
    seconds: defaultdict[Wait | None, float] = defaultdict(float)
    for look, weight in weigh(held):
        seconds[look.wait] += weight
    if not seconds:
        return None, None, ()
    wait = max(seconds, key=lambda key: seconds[key])
    look = next(look for look in held.looks if look.wait == wait)
    return wait, look.callee, look.stack


def waited_in(held: Held) -> Wait | None:
    """What the thread waited in; where that is not seen of most of the time, what it was seen in at the same place.

    A look behind a stop finds the thread awake for a moment, and stands for all of the stop.
    """
    wait, _, stack = wait_of(held)
    if wait is not None:
        return wait
    known = [look.wait for look in held.looks if look.stack[:1] == stack[:1]]
    return next((wait for wait in known if wait is not None), None)


def _wait_cause(held: Held) -> Cause:
    """Of a wait in a futex, or in what the system does not show."""
    wait, callee, stack = wait_of(held)
    if _is_lock(callee, stack):
        return "lock"
    # Off the CPU in a known call is a wait, also where nothing shows which; in a futex it may be one for the GIL.
    return "blocking_call" if wait is None and (callee is not None or len(stack) > 1) else "unknown"


def _is_lock(callee: Callee | None, stack: tuple[RawFrame, ...]) -> bool:
    """Whether the innermost call waits for another thread to release something."""
    called = None if callee is None else name_of(callee)
    inside = stack[0].module if stack else None
    return any((name or "").partition(".")[0] in _LOCK_MODULES for name in (called, inside))


def _probed_share(held: Held) -> float:
    """The share of the time in which the probe saw native code that kept the GIL."""
    weighed = weigh(held)
    total = sum(weight for _, weight in weighed)
    return sum(weight for look, weight in weighed if look.probed) / total if total else 0.0


def _let_in_share(held: Held) -> float:
    """The share of the time in which native code kept the GIL, but for what loopguard itself had it do."""
    weighed = weigh(held)
    total = sum(weight for _, weight in weighed)
    return sum(weight for look, weight in weighed if look.let_in) / total if total else 0.0


def _starved_share(held: Held, switch_ns: int) -> float:
    """The share of the time in which it asked that the watchdog was kept from the GIL."""
    if not held.looks:
        return 0.0
    asked = max(held.start_ns, held.looks[0].asked_ns)
    starved = sum(_starved_of_gil(look, switch_ns) for look in held.looks)
    return starved / max(held.end_ns - asked, 1)


def _starved_of_gil(look: Look, switch_ns: int) -> int:
    """Nanoseconds for which the watchdog was kept from the GIL by code that would not hand it over."""
    waited = look.late_ns - look.starved_ns
    if look.gil_waits * switch_ns < waited // 2:
        return 0
    return max(0, waited - 2 * switch_ns)


def _not_run(held: Held, duration: int, on_cpu: float, budget_ns: int, switch_ns: int) -> bool:
    """Whether the thread's own time was within the budget, and it was the system that made it longer.

    Either what the system withheld is all that is over the budget; or it is most of what nobody saw the thread do.
    """
    own = on_cpu + _seen_waiting(held, switch_ns)
    if own >= budget_ns:
        return False
    asleep = stopped_ns(held, switch_ns)
    withheld = max(held.beat.run_delay_ns or 0, asleep)
    # Where the watchdog got no CPU the loop need not have lacked one; but then nobody saw what it did.
    unwatched = min(sum(look.starved_ns for look in held.looks), duration)
    return duration - withheld < budget_ns or 2 * max(withheld, unwatched) >= duration - own


def stopped_ns(held: Held, switch_ns: int) -> float:
    """Nanoseconds for which the process was stopped, or the loop's thread alone."""
    alone = sum(seconds for look, seconds in weigh(held) if look.stopped)
    before = [None, *held.looks]
    late = sum(
        suspended_ns(look, earlier, held, switch_ns)
        for earlier, look in zip(before, held.looks, strict=False)
    )
    return alone * 1e9 + late


def _seen_waiting(held: Held, switch_ns: int) -> float:
    """Nanoseconds for which the looks saw it wait for something, other than for the GIL or a CPU.

    Between two looks at one wait it was waiting, unless all was suspended; and also then, if it was still waiting at a look
    that came after that: what it waited for would have come no sooner. Any other look tells only of as much time
    as looks are apart where the watchdog is run as it should be, and the first of that since it surely had begun.
    """
    beat = held.beat
    lateness = (beat.run_delay_ns or 0) / max(beat.at_ns - beat.last_ns, 1)
    apart = (beat.due_ns - beat.last_ns) // 6
    seen = 0.0
    looks = [look for look in held.looks if not look.stopped]
    for before, look, after, later in zip(
        [None, *looks], looks, [*looks[1:], None], [*looks[2:], None, None], strict=False
    ):
        if not _waits(look):
            continue
        if before is None:
            seen += max(0, look.asked_ns - held.start_ns - held.error_ns) * max(0.0, 1 - lateness)
        if after is None or after.wait != look.wait:
            end = held.end_ns if after is None else after.asked_ns
            seen += min(apart, max(0, end - look.at_ns))
        else:
            seen += after.at_ns - look.at_ns
            if later is None or not _same_wait(look, after, later):
                seen -= suspended_ns(after, look, held, switch_ns)
    return seen


def _same_wait(*looks: Look) -> bool:
    """Whether they saw it wait in the same call, at the same place in the code."""
    return len({(look.wait, look.stack[:1]) for look in looks}) == 1


def _waits(look: Look) -> bool:
    return look.wait is not None and (
        look.wait.call != "futex" or _is_lock(look.callee, look.stack)
    )


def suspended_ns(look: Look, earlier: Look | None, held: Held, switch_ns: int) -> int:
    """Nanoseconds for which the watchdog was late, and neither for want of the GIL nor of a CPU.

    A watchdog without a kernel timer is late by up to an interval. One that was suspended before it had asked for this
    look asked late.
    """
    punctual = held.beat.due_ns - held.beat.last_ns + _WAKE_UP_NS
    late = look.late_ns - look.starved_ns
    if late > punctual and look.gil_waits * switch_ns < late // 2:
        return late
    if earlier is None or None in (earlier.cpu_ns, look.cpu_ns):
        return 0
    # Between looks it waits for a twelfth of the budget, or for a sixteenth of the callback's age.
    asked = max(2 * punctual, (earlier.at_ns - held.start_ns) // 8)
    late = look.asked_ns - earlier.at_ns - earlier.starved_ns
    computed = (look.cpu_ns or 0) - (earlier.cpu_ns or 0)
    idle = late > asked and earlier.gil_waits * switch_ns < late // 2
    return max(0, late - computed) if idle else 0


def _importing(held: Held) -> float:
    """The share of the time that frames of the import system were on the stack."""
    weighed = weigh(held)
    total = sum(weight for _, weight in weighed)
    importing = sum(
        weight for look, weight in weighed if any(imports(frame) for frame in look.stack)
    )
    return importing / total if total else 0.0


def imports(frame: RawFrame) -> bool:
    return frame.code.co_filename.startswith("<frozen importlib._bootstrap")
