"""More stalls than anybody could want: memory, CPU and output stay bounded, and the counts are exact."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.faults.script import ran
from tests.holding import LOOPS
from tests.reliability import NOTHING, Say

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads its size from /proc")

# What all of these scripts need: how much memory they take, and what a run cost.
MEASURE = """
import gc, resource

def size():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6

class Cost:
    def __init__(self):
        self.size, self.cpu, self.began = size(), time.process_time(), time.monotonic()
    def so_far(self):
        cpu = (time.process_time() - self.cpu) / (time.monotonic() - self.began)
        return dict(cpu=cpu, grown=size() - self.size)
"""

FASTEST = """
loop, path, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
injected = 0

async def main():
    global injected
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.015)
        injected += 1
        await asyncio.sleep(0)

guard = loopguard.install(budget=0.005, jsonl=path)
run(hold(0.05, times=5), loop)
assert guard.flush(20)
cost, before = Cost(), guard.stats()["stalls"]
run(main(), loop)
cost = cost.so_far()
flushed = guard.flush(60)
say(injected=injected, counted=guard.stats()["stalls"] - before, stats=guard.stats(), flushed=flushed, **cost)
"""


@pytest.mark.fault(
    "stalls as fast as one loop can make them",
    "budget 5 ms, blocks of 15 ms without a pause, for a minute",
)
@pytest.mark.parametrize("loop", LOOPS)
def test_stalls_as_fast_as_one_loop_can_make_them_are_all_counted(
    loop: str, tmp_path: Path, row: Say, at_length: bool
) -> None:
    path = tmp_path / "stalls.jsonl"
    seconds = 60 if at_length else 3
    done = ran(MEASURE + FASTEST, loop, path, seconds)
    [said] = done.said
    stats = said["stats"]
    assert said["flushed"]
    assert said["injected"] > 20 * seconds
    # On a busy machine two may run into one another, and the system itself may take 5 ms.
    assert 0.9 * said["injected"] <= said["counted"] <= 1.1 * said["injected"] + 5
    assert stats["stalls"] == stats["logged"] + stats["suppressed"]
    assert stats["dropped"] == stats["sink_errors"] == stats["troubles"] == 0
    assert (
        len([line for line in path.read_text().splitlines() if '"ongoing":false' in line])
        == stats["stalls"]
    )
    assert done.stderr.count('"event":"event_loop.stall"') == stats["logged"]
    assert stats["logged"] <= 100 * (seconds // 60 + 1)
    assert said["grown"] < 15
    unseen = said["injected"] - said["counted"]
    row(
        f"{said['injected']} injected, {said['counted']} counted, all in the JSONL file, {stats['logged']} in the log, "
        f"the others `suppressed`; {said['grown']:.1f} MB more memory, {100 * said['cpu']:.0f} % of a core",
        f"{unseen} that no look told from the one before: the machine was busy with other work"
        if unseen > 0
        else NOTHING,
    )


EIGHT = """
guard = loopguard.install(budget=0.1, log=False)
threads = [
    threading.Thread(target=run, args=(hold(0.3, times=3), kind), name=f"{kind}-{n}")
    for kind in sys.argv[1:] for n in range(8 // len(sys.argv[1:]))
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert guard.flush(20)
told = {thread.name: 0 for thread in threads}
for stall in guard.stalls:
    if stall.culprit and stall.culprit.function == "hold" and stall.call == "time.sleep":
        told[stall.thread] += 1
say(told=told, stats=guard.stats())
"""


@pytest.mark.fault("eight loops in eight threads", "three stalls on each, all at the same time")
def test_eight_loops_in_eight_threads_are_told_apart(row: Say) -> None:
    loops = ["asyncio", "uvloop"] if "uvloop" in repr(LOOPS) else ["asyncio"]
    [said] = ran(EIGHT, *loops).said
    assert len(said["told"]) == 8
    assert set(said["told"].values()) == {3}
    assert said["stats"]["troubles"] == said["stats"]["dropped"] == 0
    row("each of the 24 is told, with its thread and its line")


FLOOD = """
from dataclasses import replace
from loopguard.evidence import Incident
from tests.evidence import frame, held, look

path, seconds = sys.argv[1], int(sys.argv[2])
stacks = [tuple(frame(f"work_{n}_{depth}") for depth in range(30)) for n in range(200)]
first = Incident(
    id="", ongoing=False, held=held([]), budget_ns=100_000_000, thread="MainThread", thread_id=threading.get_ident(),
    loop="asyncio.Loop", phase=None, in_flight=0, wall_offset_ns=time.time_ns() - time.monotonic_ns())
guard = loopguard.install(jsonl=path)
reporter = guard._engine.reporter
put = 0

def flood(seconds):
    global put
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        for _ in range(50):
            stack = stacks[put % len(stacks)]
            looks = [look(at, stack=stack, cpu=at) for at in range(110, 400, 20)]
            reporter.put(replace(first, id=f"{put:032x}", held=held(looks, cpu=400)))
            put += 1
        time.sleep(max(0, 0.05 - (time.monotonic() - began)))

flood(1)
assert guard.flush(60)
cost = Cost()
flood(seconds)
cost = cost.so_far()
flushed = guard.flush(60)
say(put=put, stats=guard.stats(), kept=len(guard.stalls), flushed=flushed, **cost)
"""


@pytest.mark.fault(
    "1,000 records a second",
    "straight into the reporter's queue, 30 frames deep, of 200 kinds, for 30 s",
)
def test_a_flood_of_records_is_counted_exactly(tmp_path: Path, row: Say, at_length: bool) -> None:
    path = tmp_path / "stalls.jsonl"
    seconds = 30 if at_length else 2
    done = ran(MEASURE + FLOOD, path, seconds)
    [said] = done.said
    stats = said["stats"]
    assert said["flushed"]
    assert (
        stats["stalls"] == said["put"] == stats["logged"] + stats["suppressed"] + stats["dropped"]
    )
    lost = stats["dropped"] + stats["sink_errors"]
    lines = path.read_text().count("\n")
    assert lines <= said["put"] <= lines + lost
    assert done.stderr.count('"event":"event_loop.stall"') == stats["logged"] <= 200  # 100 a minute
    assert said["kept"] == 256
    assert said["grown"] < 30
    row(
        f"{said['put']} put, {stats['stalls']} counted, {lines} in the JSONL file, {stats['logged']} in the log; "
        f"{said['grown']:.1f} MB more memory, {100 * said['cpu']:.0f} % of a core",
        f"{lost}, counted as `dropped` or `sink_errors`" if lost else NOTHING,
    )
