"""From looks and clocks to one word: every cause, and `unknown` where the evidence does not reach."""

from __future__ import annotations

import _thread
import functools
import threading
import time
from typing import Any

import pytest

from loopguard.evidence import Callee, Held, OtherThread, Wait
from loopguard.explain.cause import cause_of, cpu_seconds, gc_seconds, wait_of, waited_in
from tests.evidence import BUDGET, MS, STACK, SWITCH, WORK, frame, held, idle, look

pytestmark = pytest.mark.core

SLEEP = Wait("clock_nanosleep", "")
FUTEX = Wait("futex", "")
LOCK: Any = threading.Lock()
IMPORTING = (WORK, frame("_load", "importlib._bootstrap", "<frozen importlib._bootstrap>"))
IN_QUEUE = (frame("get", "queue", "/usr/lib/python3/queue.py"), WORK)


def cause(verdict: Held) -> str:
    return cause_of(verdict, BUDGET, SWITCH)


def looks(*times: float, **evidence: Any) -> list[Any]:
    return [look(at, **evidence) for at in times]


def test_off_the_cpu_in_a_system_call_is_a_blocking_call() -> None:
    assert cause(held(looks(60, 200, 390, wait=SLEEP, cpu=1), cpu=1)) == "blocking_call"


def test_on_the_cpu_while_the_watchdog_is_served_is_cpu() -> None:
    seen = [look(at, cpu=at) for at in (60, 200, 390)]
    assert cause(held(seen, cpu=398)) == "cpu"


def test_on_the_cpu_while_the_watchdog_starves_for_the_gil_is_gil_hold() -> None:
    seen = [look(399, late=340, gil_waits=68, cpu=398)]
    assert cause(held(seen, cpu=398)) == "gil_hold"


def test_a_watchdog_that_waits_its_turn_beside_python_code_does_not_starve() -> None:
    """It gets the GIL after one switch interval: that is `cpu`."""
    seen = [look(at, late=6, gil_waits=1, cpu=at) for at in range(60, 400, 20)]
    assert cause(held(seen, cpu=398)) == "cpu"


def test_ready_to_run_without_a_cpu_counts_as_computing() -> None:
    """Three loops share a core: each waits for its turn, and none of them is stuck."""
    seen = [look(at, cpu=at / 3) for at in (60, 200, 390)]
    assert cause(held(seen, cpu=130, run_delay=260)) == "cpu"


def test_a_wait_has_not_computed_though_another_of_its_iteration_was_kept_from_a_cpu() -> None:
    callee = Callee(LOCK.acquire, None, "acquire")
    waiting = looks(720, 800, 890, wait=FUTEX, callee=callee, cpu=100)
    assert cause(held(waiting, start=700, end=1000, cpu=101, run_delay=200)) == "lock"


@pytest.mark.parametrize(
    "callee",
    [
        Callee(LOCK.acquire, None, "acquire"),
        Callee(vars(_thread.LockType)["acquire"], _thread.LockType, "acquire"),
        Callee(threading.Event.wait, None, "wait"),
    ],
    ids=["kept method", "method", "function"],
)
def test_a_futex_under_a_lock_is_a_lock(callee: Callee) -> None:
    assert cause(held(looks(60, 200, 390, wait=FUTEX, callee=callee))) == "lock"


def test_a_futex_inside_the_queue_module_is_a_lock() -> None:
    assert cause(held(looks(60, 200, 390, wait=FUTEX, stack=IN_QUEUE))) == "lock"


def test_a_futex_under_who_knows_what_is_unknown() -> None:
    """Native code may wait for its own threads, that compute for it."""
    callee = Callee(functools.partial(print), None, "work")
    assert cause(held(looks(60, 200, 390, wait=FUTEX, callee=callee))) == "unknown"


def test_where_the_system_shows_no_calls_a_wait_is_told_by_its_callee() -> None:
    sleeping = looks(60, 200, 390, callee=Callee(time.sleep, None, "sleep"))
    locked = looks(60, 200, 390, callee=Callee(LOCK.acquire, None, "acquire"))
    assert cause(held(sleeping)) == "blocking_call"
    assert cause(held(locked)) == "lock"


def test_off_the_cpu_in_nothing_that_is_known_is_unknown() -> None:
    assert cause(held(looks(60, 200, 390))) == "unknown"


def test_native_code_that_let_the_watchdog_in_by_our_own_callback_only_keeps_the_gil() -> None:
    """Without us it would not have handed it over."""
    let_in = [look(at, cpu=at, let_in=at != 60) for at in (60, 200, 390)]
    assert cause(held(let_in, cpu=390)) == "gil_hold"
    for_once = [look(at, cpu=at, let_in=at == 60) for at in (60, 200, 390)]
    assert cause(held(for_once, cpu=390)) == "cpu"


def test_half_of_it_in_the_collector_is_gc() -> None:
    seen = [look(at, cpu=at) for at in (60, 200, 390)]
    assert cause(held(seen, cpu=390, gc=210)) == "gc"
    assert cause(held(seen, cpu=390, gc=190)) == "cpu"


def test_a_collection_that_had_to_wait_for_a_cpu_is_gc() -> None:
    seen = [look(at, cpu=at / 3) for at in (60, 200, 390)]
    assert cause(held(seen, cpu=130, gc=390, run_delay=250)) == "gc"


def test_a_collection_of_another_thread_takes_nothing_from_a_wait() -> None:
    assert cause(held(looks(60, 200, 390, wait=SLEEP), gc=300)) == "blocking_call"


def test_a_collection_of_another_thread_that_keeps_the_gil_from_this_one_is_gc() -> None:
    assert cause(held(looks(60, 200, 390, wait=FUTEX), gc=300)) == "gc"


def test_half_of_it_under_import_frames_is_import() -> None:
    seen = [look(at, cpu=at, stack=IMPORTING) for at in (60, 200)]
    assert cause(held([*seen, look(390, cpu=390)], cpu=390)) == "import"


def test_a_thread_that_got_no_cpu_was_not_scheduled() -> None:
    """What is left of it beside the wait for a CPU is within the budget."""
    seen = looks(60, 200, 390, cpu=2)
    assert cause(held(seen, cpu=40, run_delay=350)) == "not_scheduled"


def test_a_process_that_was_suspended_was_not_scheduled() -> None:
    """The watchdog too was late, neither for want of the GIL nor of a CPU."""
    assert cause(held([look(5000, late=4940)], end=5001, cpu=20)) == "not_scheduled"


def test_late_without_any_look_was_not_scheduled_only_if_the_system_says_so() -> None:
    """It may as well have waited in a call that keeps the GIL."""
    assert cause(held([], start=25, end=5000, cpu=1, run_delay=4900)) == "not_scheduled"
    assert cause(held([], start=25, end=5000, cpu=1)) == "unknown"
    assert cause(held([], start=25, end=5000, cpu=1, run_delay=None)) == "unknown"


def test_late_without_any_look_but_computing_is_unknown() -> None:
    assert cause(held([], start=25, end=500, cpu=450)) == "unknown"


def test_a_stop_in_the_midst_of_a_long_call_does_not_excuse_the_call() -> None:
    """Of 1,000 ms it was suspended for 600: the 400 that are left are over the budget."""
    seen = [
        *looks(60, 200, 300, wait=SLEEP),
        look(920, late=600, wait=SLEEP),
        look(990, wait=SLEEP),
    ]
    assert cause(held(seen, end=1000)) == "blocking_call"


def test_one_look_at_a_wait_does_not_prove_that_it_went_on_while_the_watchdog_got_no_cpu() -> None:
    """A sleep of 60 ms on a starved machine: it was over long before anybody could look again."""
    seen = [look(55, wait=SLEEP, cpu=8, starved=237)]
    assert cause(held(seen, start=22, end=348, cpu=9, run_delay=None)) == "not_scheduled"
    assert cause(held([look(55, wait=SLEEP, cpu=8)], start=22, end=348, cpu=9)) == "blocking_call"


def test_a_wait_that_two_looks_saw_went_on_between_them_however_starved_the_watchdog_was() -> None:
    seen = [look(55, wait=SLEEP, cpu=8), look(300, late=236, wait=SLEEP, cpu=8, starved=236)]
    assert cause(held(seen, start=22, end=348, cpu=9, run_delay=40)) == "blocking_call"


def test_a_lock_that_two_looks_saw_is_one_on_a_starved_machine_too() -> None:
    callee = Callee(LOCK.acquire, None, "acquire")
    seen = looks(55, 300, wait=FUTEX, callee=callee, cpu=8, starved=150)
    assert cause(held(seen, start=22, end=348, cpu=9, run_delay=40)) == "lock"


def test_what_began_nobody_knows_when_is_not_known_to_have_waited_before_it_was_seen() -> None:
    """Others ran before it in its iteration, without a CPU; of its own 60 ms of sleep were seen."""
    seen = looks(62, 80, 97, 120, wait=SLEEP, cpu=13)
    last = look(131, cpu=13, late=4, starved=4)
    verdict = held([*seen, last], start=4, end=140, error=58, cpu=14, run_delay=40)
    assert cause(verdict) == "not_scheduled"
    assert cause(held([*seen, last], start=4, end=140, cpu=14, run_delay=20)) == "blocking_call"


def test_where_the_system_withheld_most_of_what_nobody_saw_it_do_it_was_not_scheduled() -> None:
    """It computed for 60 of 200 ms, and was kept from a CPU for 80 that are known."""
    seen = looks(60, 150, 190, cpu=30)
    assert cause(held(seen, end=200, cpu=60, run_delay=80)) == "not_scheduled"
    assert cause(held(seen, end=200, cpu=60, run_delay=20)) != "not_scheduled"


def test_a_wait_that_a_look_saw_go_on_after_a_stop_went_on_during_it() -> None:
    """What it waits for had not come by then: without the stop it would have waited as long."""
    stopped = [look(60, wait=SLEEP), look(360, late=290, wait=SLEEP)]
    assert cause(held(stopped, end=370)) == "not_scheduled"
    assert cause(held([*stopped, look(368, wait=SLEEP)], end=376)) == "blocking_call"
    elsewhere = look(368, wait=SLEEP, stack=IN_QUEUE)
    assert cause(held([*stopped, elsewhere], end=376)) == "not_scheduled"


def test_a_thread_that_a_debugger_stops_alone_was_not_scheduled() -> None:
    """In a callback or in none; but a wait that is seen on both sides went on."""
    standing = looks(*range(70, 360, 10), cpu=30, stopped=True)
    assert cause(held([look(60, cpu=30), *standing], cpu=40)) == "not_scheduled"
    at_rest = [look(at, key=None, stack=(), stopped=True) for at in range(60, 390, 10)]
    assert cause(held(at_rest)) == "not_scheduled"
    waiting = looks(*range(70, 360, 10), wait=SLEEP, stopped=True)
    around = [look(60, wait=SLEEP), *waiting, *looks(370, 380, wait=SLEEP)]
    assert cause(held(around)) == "blocking_call"


def test_what_computed_over_budget_did_so_though_it_was_stopped_for_longer() -> None:
    """Also where the stop fell between two looks, so that neither was late."""
    late = [look(60, cpu=55), look(100, cpu=95), look(550, late=440, cpu=100), look(600, cpu=150)]
    assert cause(held(late, end=650, cpu=200)) == "cpu"
    between = [look(60, cpu=55), look(100, cpu=95), look(550, cpu=100), look(600, cpu=150)]
    assert cause(held(between, end=650, cpu=200)) == "cpu"


def test_what_waited_over_budget_did_not_compute_while_it_was_stopped() -> None:
    """Though the look that came late, of which most of the time is, does not tell in what it waited."""
    callee = Callee(time.sleep, None, "sleep")
    late = look(310, late=255, callee=callee)
    waiting = looks(*range(320, 495, 10), wait=SLEEP, callee=callee)
    assert cause(held([late, *waiting], end=500)) == "blocking_call"


def test_a_watchdog_that_polls_and_so_comes_late_is_no_sign_of_a_suspended_process() -> None:
    seen = looks(80, 130, 180, 230, 280, 330, 380, late=24, wait=SLEEP, cpu=1)
    assert cause(held(seen, cpu=1)) == "blocking_call"


def test_in_no_callback_while_another_thread_keeps_the_gil_is_gil_wait() -> None:
    """The loop woke, and waits for the GIL to go on."""
    busy = OtherThread("greedy", 4711, STACK, 330 * MS, 0)
    seen = [look(399, late=340, gil_waits=68, key=None, stack=(), other=busy)]
    assert cause(held(seen)) == "gil_wait"


def test_a_thread_that_keeps_the_gil_without_computing_is_told_where_the_loop_asked_for_it_too() -> (
    None
):
    """In a callback or in none: it woke in every switch interval, as only those do that are kept from the GIL."""
    sleeper = OtherThread("sleeper", 4711, STACK, 0, 0, alone=True)
    for where in ({"key": None, "stack": ()}, {"wait": FUTEX, "cpu": 1}):
        seen = [look(399, late=340, gil_waits=68, other=sleeper, **where)]
        assert cause(held(seen, switches=70)) == "gil_wait"
        assert cause(held(seen, switches=25)) == "unknown"
        assert cause(held(seen, switches=None)) == "unknown"


def test_a_thread_that_did_not_ask_for_the_gil_waited_itself_and_kept_it() -> None:
    """Whatever another computed meanwhile without it."""
    busy = OtherThread("busy", 4711, STACK, 330 * MS, 0)
    seen = [look(399, late=340, gil_waits=68, wait=FUTEX, cpu=1, other=busy)]
    assert cause(held(seen, cpu=2, switches=2)) == "blocking_call"
    assert cause(held(seen, cpu=2, switches=70)) == "gil_wait"
    assert cause(held([look(399, late=340, gil_waits=68, key=None, stack=())], switches=2)) == (
        "unknown"
    )


def test_where_no_other_thread_computed_who_kept_the_gil_is_unknown() -> None:
    idler = OtherThread("idler", 4711, STACK, 30 * MS, 0)
    for other in (None, idler):
        seen = [look(399, late=340, gil_waits=68, key=None, stack=(), other=other)]
        assert cause(held(seen)) == "unknown"


def test_in_no_callback_while_another_thread_collects_is_gc() -> None:
    """Also where the watchdog was let in meanwhile."""
    kept = [look(399, late=340, gil_waits=68, key=None, stack=())]
    assert cause(held(kept, gc=300)) == "gc"
    assert cause(held([idle(60), idle(200), idle(390)], gc=300)) == "gc"


def test_in_no_callback_for_no_reason_that_shows_is_unknown() -> None:
    assert cause(held([idle(60), idle(200), idle(390)])) == "unknown"


def test_a_wait_that_keeps_the_gil_is_a_blocking_call_where_the_system_shows_it() -> None:
    seen = [look(399, late=340, gil_waits=68, wait=SLEEP, cpu=1)]
    assert cause(held(seen, cpu=2)) == "blocking_call"


def test_off_the_cpu_while_the_watchdog_starves_is_unknown() -> None:
    """This thread or another may have had the GIL."""
    seen = [look(399, late=340, gil_waits=68, wait=FUTEX, cpu=1)]
    assert cause(held(seen, cpu=2)) == "unknown"


def test_the_wait_is_the_one_that_most_of_the_time_was_spent_in() -> None:
    short, long = look(10, wait=FUTEX), look(300, wait=SLEEP, stack=IN_QUEUE)
    assert wait_of(held([short, long])) == (SLEEP, None, IN_QUEUE)
    assert wait_of(held([])) == (None, None, ())


def test_where_most_of_the_time_does_not_show_the_wait_a_look_at_the_same_place_does() -> None:
    behind_a_stop = [look(60, wait=SLEEP), look(360, late=290), look(380)]
    assert waited_in(held(behind_a_stop)) == SLEEP
    elsewhere = [look(10, wait=SLEEP, stack=IN_QUEUE), look(300), look(380)]
    assert waited_in(held(elsewhere)) is None


def test_cpu_time_is_that_of_the_callback_and_not_of_its_neighbours() -> None:
    """Between the beats 300 ms were computed; of these at most the 30 before its first look can be its own."""
    waiting = [look(at, cpu=300, wait=SLEEP) for at in (350, 450)]
    assert cpu_seconds(held(waiting, start=320, end=500, cpu=301)) == pytest.approx(0.03, abs=0.005)
    computing = [look(at, cpu=at) for at in (350, 450)]
    assert cpu_seconds(held(computing, start=320, end=500, cpu=500)) == pytest.approx(0.18)


def test_no_clock_gives_more_than_the_stall_is_long() -> None:
    verdict = held(looks(60, 100), start=50, end=150, cpu=900, gc=900)
    assert cpu_seconds(verdict) == pytest.approx(0.1)
    assert gc_seconds(verdict) == pytest.approx(0.1)
