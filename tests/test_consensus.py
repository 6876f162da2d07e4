"""What the looks agree on: whom to blame, on which line, how surely."""

from __future__ import annotations

import pytest

from loopguard.evidence import RawFrame
from loopguard.explain.consensus import Verdict, agree, weigh
from loopguard.explain.ownership import Ownership
from tests.evidence import frame, held, look

pytestmark = pytest.mark.core

OWN = frame("handler", "app.api")
HELPER = frame("helper", "app.api")
OTHER = frame("other", "app.api")
LIBRARY = frame("send", "requests.api", "/venv/lib/site-packages/requests/api.py")
ENGINE = frame("run", "starlette.routing", "/venv/lib/site-packages/starlette/routing.py")


def verdict(*looks: object, start: float = 0, end: float = 400) -> Verdict | None:
    return agree(held(looks, start, end), Ownership())  # type: ignore[arg-type]


def culprit(found: Verdict | None) -> str | None:
    return None if found is None else found.look.stack[found.place].code.co_name


def test_the_innermost_frame_of_the_users_own_is_blamed() -> None:
    found = verdict(look(100, stack=(LIBRARY, HELPER, OWN, ENGINE)))
    assert culprit(found) == "helper"
    assert found is not None
    assert (found.place, found.confidence) == (1, 1.0)


def test_what_most_of_the_time_agrees_on_wins_over_what_one_look_saw_deeper() -> None:
    looks = [look(at, stack=(OWN, ENGINE)) for at in (60, 200, 300)]
    found = verdict(*looks, look(390, stack=(HELPER, OWN, ENGINE)))
    assert culprit(found) == "handler"
    assert found is not None
    assert found.confidence == pytest.approx(1.0)  # it was on the stack all the time
    assert found.look in looks


def test_a_function_that_calls_several_in_turn_is_blamed_itself() -> None:
    """None of the two was there for most of the time; what called them was."""
    found = verdict(look(100, stack=(HELPER, OWN)), look(300, stack=(OTHER, OWN)))
    assert culprit(found) == "handler"


def test_looks_count_by_the_time_that_each_stands_for() -> None:
    """Three looks in the first 30 ms are less than one in the middle of the rest."""
    early = [look(at, stack=(HELPER,)) for at in (10, 20, 30)]
    found = verdict(*early, look(250, stack=(OTHER,)))
    assert culprit(found) == "other"
    assert found is not None
    assert found.confidence == pytest.approx(0.65)


def test_the_weights_of_all_looks_are_the_length_of_the_stall() -> None:
    verdicts = held([look(60), look(100), look(300)], 20, 420)
    assert [weight for _, weight in weigh(verdicts)] == pytest.approx([0.06, 0.12, 0.22])


def test_the_line_is_the_one_that_was_seen_longest() -> None:
    """And every look that saw it there is named."""
    code = compile("def f():\n a()\n b()\n", "/srv/app.py", "exec").co_consts[0]
    offsets = {line: start for start, _, line in code.co_lines() if line}
    first = OWN._replace(code=code, lasti=offsets[2])
    second = OWN._replace(code=code, lasti=offsets[3])
    looks = [look(50, stack=(first,)), look(200, stack=(second,)), look(300, stack=(second,))]
    found = verdict(*looks)
    assert found is not None
    assert found.look.stack[found.place] is second
    assert [seen for seen, _, _ in found.on_line] == looks[1:]


def test_where_nothing_is_the_users_own_the_innermost_that_is_no_plumbing_is_blamed() -> None:
    assert culprit(verdict(look(100, stack=(ENGINE, LIBRARY, ENGINE)))) == "send"


def test_where_all_is_plumbing_the_innermost_is_blamed() -> None:
    found = verdict(look(100, stack=(ENGINE,)))
    assert culprit(found) == "run"


def test_looks_without_a_stack_agree_on_nothing() -> None:
    assert verdict() is None
    assert verdict(look(100, key=None, stack=())) is None


def test_a_recursive_function_is_blamed_at_its_innermost_frame() -> None:
    found = verdict(look(100, stack=(LIBRARY, OWN, OWN, OWN, ENGINE)))
    assert found is not None
    assert found.place == 1
    assert found.confidence == 1.0


def entered(function: str, module: str) -> RawFrame:
    """A frame whose function was called, and has done nothing yet."""
    frame_in_it = frame(function, module)
    return frame_in_it._replace(lasti=0)


def test_a_function_that_was_only_just_called_leaves_the_blame_to_its_caller() -> None:
    found = verdict(look(100, stack=(entered("quick", "app"), OWN, ENGINE)))
    assert found is not None
    assert found.look.stack[found.place] is OWN


def test_a_callback_that_was_only_just_called_is_blamed_itself() -> None:
    assert culprit(verdict(look(100, stack=(entered("tick", "app"), ENGINE)))) == "tick"
