"""The frames of other threads: to look at them crashes nothing, and changes nothing for the collector."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from loopguard.capture.frames import UNCOLLECTED

pytestmark = pytest.mark.core

ROOT = Path(__file__).parent.parent

# Frames of many sizes come and go on two threads, and each collection on the one that looks lets the GIL go.
UNDER_FIRE = """
import gc, random, threading, time
from loopguard.capture import stacks
from loopguard.capture.frames import UNCOLLECTED, frames_of_others

sizes = {}
for size in range(12):
    variables = "; ".join(f"v{each} = None" for each in range(3 * size + 1))
    text = f"def run(n):\\n    if n > 0:\\n        functions[(7 * n + 5 * {size} + n // 3) % 12](n - 1)\\n    {variables}"
    exec(text, sizes)
    sizes.setdefault("functions", []).append(sizes["run"])

def rush():
    while not done:
        random.choice(sizes["functions"])(random.randrange(5, 40))

def let_go(phase, info):
    if threading.current_thread() is threading.main_thread():
        time.sleep(0.0003)

done = False
threads = [threading.Thread(target=rush) for _ in range(2)]
for thread in threads:
    thread.start()
gc.callbacks.append(let_go)
gc.set_threshold(20)
try:
    until = time.monotonic() + 3
    while time.monotonic() < until:
        with UNCOLLECTED:
            for frame in frames_of_others(threading.get_ident(), None).values():
                stack, _ = stacks.walk(frame, None)
                assert stack[-1].code.co_name == "_bootstrap", stack
finally:
    done = True
"""


def test_they_are_walked_unharmed_while_collections_let_the_gil_go() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", UNDER_FIRE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_is_afterwards_as_it_was(on: bool) -> None:
    """Also where two threads are in there, and the first to come is the first to go."""
    was_on = gc.isenabled()
    (gc.enable if on else gc.disable)()
    try:
        with UNCOLLECTED:
            entered, leave = threading.Event(), threading.Event()

            def second() -> None:
                with UNCOLLECTED:
                    entered.set()
                    leave.wait(10)

            thread = threading.Thread(target=second)
            thread.start()
            entered.wait(10)
        if sys.version_info < (3, 12):
            assert not gc.isenabled()
        leave.set()
        thread.join()
        assert gc.isenabled() is on
    finally:
        (gc.enable if was_on else gc.disable)()
