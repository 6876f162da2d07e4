"""`loopguard doctor` says what is to be had here and why the rest is not, who claims our names, and what a guard costs."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest

import loopguard
from loopguard.cli import main
from loopguard.cli.doctor import lines
from loopguard.diagnosis.cost import idle_costs, layer_us
from loopguard.diagnosis.evidence import kinds
from loopguard.diagnosis.names import conflicts
from tests.holding import changes_since, left_in_process, run

ROOT = Path(__file__).resolve().parents[1]


def without_ours() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if not name.startswith("LOOPGUARD_")}


def doctor(**variables: str) -> str:
    """What it prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "loopguard", "doctor", "--seconds", "0.3"],
        cwd=ROOT,
        env={**without_ours(), **variables},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def without_cost() -> str:
    """What it says in this process, but for the figures, which take their time."""
    return "\n".join(takewhile(lambda line: not line.startswith("Cost"), lines(seconds=1)))


def test_it_prints_facts_and_figures() -> None:
    said = doctor(LOOPGUARD_BUDGET="0.2", LOOPGUARD_PROFILE_TOKEN="")
    assert "\n  LOOPGUARD_BUDGET, LOOPGUARD_PROFILE_TOKEN\n" in said
    assert "at a budget of 0.2 s" in said
    [layer] = re.findall(r"^  (-?[\d.]+) µs a request, in the ASGI layer$", said, re.MULTILINE)
    assert -5 < float(layer) < 50
    idle = re.findall(
        r"^  ([\d.]+) % of a core when idle on (\w+) \(bare ([\d.]+) %\)", said, re.MULTILINE
    )
    assert idle[0][1] == "asyncio"
    assert {
        line.split()[0]
        for line in said.partition("Evidence\n")[2].partition("\n\n")[0].splitlines()
    } <= {"yes", "no", "not"}


def test_options_that_install_would_refuse_are_told_without_their_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOOPGUARD_BUDGET", "soon")
    monkeypatch.setenv("LOOPGUARD_PROFILE_TOKEN", "hunter2-correct-horse")
    said = without_cost()
    assert re.search(
        r"install\(\) would refuse them: \w+=.* \(from environment variable LOOPGUARD_", said
    )
    assert "hunter2" not in said


def test_it_tells_of_nobodys_death_and_leaves_a_black_box_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tries the directory that is meant, and does not take for itself what the next start is to tell."""
    (tmp_path / "loopguard-1-a.stalls").write_text('{"ended":"x"}\n')
    monkeypatch.setenv("LOOPGUARD_BLACK_BOX", str(tmp_path))
    said = without_cost()
    assert "  yes black_box" in said
    assert [file.name for file in tmp_path.iterdir()] == ["loopguard-1-a.stalls"]


@pytest.mark.parametrize("seconds", ["0", "never", "61", "nan"])
def test_a_time_that_is_none_is_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--seconds", seconds]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# Evidence


def test_its_kinds_are_those_of_the_guard_and_as_it_finds_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "loopguard"):
        guard = loopguard.install(black_box=tmp_path)
        assert guard.flush(10)
        loopguard.uninstall()
    [event] = [each for each in caplog.records if each.message == "event_loop.guard"]
    fields = vars(event)
    found = {kind.name: kind.missing is None for kind in kinds() if kind.name != "uvloop"}
    assert [name for name, here in found.items() if here] == [
        name for name in found if name in fields["evidence"]
    ]
    assert sorted(found) == sorted([*fields["evidence"], *(fields.get("evidence_missing") or ())])


def test_to_try_it_changes_nothing_in_the_process() -> None:
    kinds()
    before = left_in_process()
    kinds()
    assert changes_since(before) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="breaks what only Linux has")
@pytest.mark.parametrize(
    "name, broken, why",
    [
        ("kernel_timer", "import select; del select.epoll", "has no attribute 'epoll'"),
        ("thread_cpu", "import time; del time.clock_gettime_ns", "cannot be read from outside"),
        ("system_calls", "import platform; platform.machine = lambda: 'mips'", "not known for mips"),
        ("contexts", "import ctypes; ctypes.PyDLL = None", "not to be found in the thread state"),
        ("probe", "import signal\nfor n in range(signal.SIGRTMIN, signal.SIGRTMAX + 1): signal.signal(n, signal.SIG_IGN)", "no real-time signal is free"),
        ("uvloop", "import importlib.util; importlib.util.find_spec = lambda _: None", "it is not installed"),
        ("black_box", "import sys; sys.modules['fcntl'] = None", "this system has no flock"),
    ],
)  # fmt: skip
def test_of_what_is_not_to_be_had_it_says_why(name: str, broken: str, why: str) -> None:
    show = "from loopguard.diagnosis.evidence import kinds\nfor kind in kinds(): print(kind.name, kind.missing, sep=': ')"
    done = subprocess.run(
        [sys.executable, "-c", f"{broken}\n{show}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    missing = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert why in missing[name]


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere"
)
def test_a_black_box_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    [box] = [kind for kind in kinds(tmp_path) if kind.name == "black_box"]
    assert "cannot be read and written" in (box.missing or "")


# Names


def install_other(directory: Path, name: str, scripts: str, files: str = "") -> None:
    folder = directory / f"{name.replace('-', '_')}-1.2.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (folder / "entry_points.txt").write_text(scripts)
    (folder / "RECORD").write_text(files)


def test_who_else_claims_our_names_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `fastapi-loopguard` does, which is another project, and as the one that is called `loopguard` may."""
    theirs = (
        "[console_scripts]\nloopguard = fastapi_loopguard.cli:main\n[pytest11]\nloopguard = x\n"
    )
    install_other(tmp_path, "fastapi-loopguard", theirs)
    install_other(tmp_path, "loopguard", "", "loopguard/__init__.py,,\n")
    install_other(tmp_path, "harmless", "[console_scripts]\nharmless = x:y\n", "harmless.py,,\n")
    (tmp_path / "loopguard").mkdir()
    (tmp_path / "loopguard" / "__init__.py").touch()
    script = tmp_path / "bin" / "loopguard"
    script.parent.mkdir()
    script.write_text("#!/usr/bin/python3\nfrom fastapi_loopguard.cli import main\n")
    script.chmod(0o755)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PATH", str(script.parent))
    said = conflicts()
    assert [line.split(" ")[0] for line in said] == [
        *("fastapi-loopguard", "fastapi-loopguard", "loopguard", "`loopguard`"),
    ]
    assert "script `loopguard`" in "".join(said[:2])
    assert "pytest plugin `loopguard`" in "".join(said[:2])
    assert "package `loopguard`" in said[2]
    assert str(script) in said[3]
    script.write_text("#!/usr/bin/python3\nfrom loopguard.cli import main\n")
    assert len(conflicts()) == 3


# Cost


def test_the_cost_is_measured_and_leaves_nothing_behind() -> None:

    with loopguard.install(log=False):
        run(asyncio.sleep(0))
    before = left_in_process()
    costs = list(idle_costs(budget=0.05, seconds=0.4))
    assert -5 < layer_us() < 50
    assert changes_since(before) == {}
    assert costs[0].loop == "asyncio"
    for cost in costs:
        assert 0 <= cost.bare.percent < 100
        if cost.bare.wakeups is not None and cost.guarded.wakeups is not None:
            # A beat every 25 ms; a machine that is busy serves fewer of them.
            assert cost.bare.wakeups + 5 < cost.guarded.wakeups < cost.bare.wakeups + 80
