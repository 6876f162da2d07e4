"""`loopguard report` as it is typed: forms, files, what it refuses, and what it says on stderr."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest

import loopguard
from loopguard.cli import main
from loopguard.cli.progress import Progress
from tests.show.records import STARTED_AT, stall, write


@pytest.fixture
def records(tmp_path: Path) -> str:
    return str(write(tmp_path / "stalls.jsonl", [stall(1), stall(2, duration=1.1, cause="cpu")]))


def report(
    *arguments: str, stdin: IO[str] | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loopguard", "report", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=stdin,
        env=env,
    )


@pytest.mark.parametrize(
    "name, begins",
    [
        ("out.html", "<!doctype html>"),
        ("out.json", '{\n "schema": 1,'),
        ("out.speedscope.json", '{"$schema": "https://www.speedscope.app/'),
        ("out.txt", "Held 1.500 s"),
    ],
)
def test_the_ending_says_the_form(name: str, begins: str, records: str, tmp_path: Path) -> None:
    assert main(["report", records, "-o", str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_text().startswith(begins)


def test_a_file_is_overwritten_only_by_force(
    records: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.txt"
    out.write_text("mine")
    assert main(["report", records, "-o", str(out)]) == 2
    assert capsys.readouterr().err.endswith("is there already; --force overwrites it\n")
    assert out.read_text() == "mine"
    assert main(["report", records, "-o", str(out), "--force"]) == 0
    assert out.read_text().startswith("Held")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["missing.jsonl"], "missing.jsonl: No such file"),
        (["{records}", "missing.jsonl"], "missing.jsonl: No such file"),
        (["{records}", "-o", "out.pdf"], "what form is meant?"),
        (["{records}", "-o", "no/such/folder.txt"], "No such file"),
        (["{records}", "--since", "yesterday"], "neither a time"),
        (["{records}", "--top", "0"], "no whole number"),
        (["{records}", "--cause", "bad luck"], "invalid choice"),
        (["{records}", "--trace-url", "javascript:{trace_id}"], "not an http or https address"),
        (["{records}", "--open", "-f", "json"], "--open is for a page"),
        ([], "required: FILE"),
    ],
)
def test_bad_input_ends_with_2_and_one_line(
    arguments: list[str],
    said: str,
    records: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        main(["report", *(argument.replace("{records}", records) for argument in arguments)]) == 2
    )
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_what_is_left_out_is_named_on_stderr_and_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a\x1b[31m.jsonl"
    path.write_text("no\n{}\n")
    assert main(["report", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("No stall.\n\n2 lines left out")
    assert captured.err.count("left out") == 2
    assert all(line.isprintable() for line in captured.err.splitlines())


def test_it_reads_stdin_and_writes_stdout(records: str) -> None:
    with open(records) as stdin:
        done = report("-", "-f", "json", "-o", "-", stdin=stdin)
    assert json.loads(done.stdout)["totals"]["stalls"] == 2
    assert done.stderr == ""


def test_what_was_asked_for_is_all_that_is_told(
    records: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", records, "--cause", "cpu", "--route", "/v1/*"]) == 0
    assert "in 1 stall," in capsys.readouterr().out
    assert main(["report", records, "--until", "2023-11-14T22:15:00Z"]) == 0
    assert "in 1 stall," in capsys.readouterr().out


def test_the_json_has_the_documented_shape(
    records: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", records, "-f", "json", "--title", "a night", "--top", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["schema"], told["kind"], told["title"]) == (1, "report", "a night")
    assert told["first"] == "2023-11-14T22:14:20+00:00"
    assert told["totals"]["seconds"] == 1.5
    assert told["totals"]["loop_seconds"] == 60.0
    assert told["left_out"] == {"lines": 0, "repeated": 0, "reasons": []}
    (culprit,) = told["culprits"]
    assert (culprit["stalls"], culprit["longest"]) == (2, 1.1)
    assert culprit["causes"] == {"blocking_call": 1, "cpu": 1}
    (kept,) = told["stalls"]
    assert kept == replace(stall(2), duration=1.1, cause="cpu").to_dict()
    assert kept["started_at"] == STARTED_AT + 120


def test_it_needs_no_extra(records: str) -> None:
    """Neither rich nor anything else that a bare installation lacks."""
    script = (
        "import sys\n"
        "for name in ('rich', 'fastapi', 'uvicorn', 'pyinstrument'): sys.modules[name] = None\n"
        "from loopguard.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    for form in ("text", "html", "json", "speedscope"):
        done = subprocess.run(
            [sys.executable, "-c", script, "report", records, "-f", form],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")


KILLED = """
import asyncio, time
import loopguard

async def main():
    await asyncio.sleep(0.2)
    print("now", flush=True)
    time.sleep(60)

with loopguard.install(budget=0.1, black_box="box", jsonl="stalls.jsonl"):
    asyncio.run(main())
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="the black box is looked at where it is complete"
)
def test_of_a_black_box_it_tells_what_a_killed_process_was_doing(tmp_path: Path) -> None:
    """Once, though the early record in the JSONL is of the same stall."""
    (tmp_path / "box").mkdir()
    (tmp_path / "killed.py").write_text(KILLED)
    root = Path(loopguard.__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "killed.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "now\n"
        time.sleep(1.0)
        process.kill()
    done = report(str(tmp_path / "box"), str(tmp_path / "stalls.jsonl"))
    assert done.stderr == ""
    assert "in 1 stall, 1 process," in done.stdout
    assert "killed.py:8 in main" in done.stdout
    assert "1 stall ended with the process, which did not survive it." in done.stdout


@pytest.mark.parametrize(
    "variables, coloured",
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_colours_follow_the_variables(
    variables: dict[str, str], coloured: bool, records: str
) -> None:
    clean = {key: value for key, value in os.environ.items() if "COLOR" not in key}
    done = report(records, env={**clean, **variables})
    assert ("\x1b" in done.stdout) is coloured


def test_progress_is_told_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pty.openpty()
    with open(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        clock = iter(range(100))
        with Progress(clock=lambda: next(clock)) as progress:
            progress.size = 20_000_000
            progress(5_000_000)
        said = b""
        while said.count(b"\x1b[K") < 2:  # a terminal gives what has come so far
            said += os.read(reader, 100)
        assert said == b"\r\x1b[K5 MB read, 25%\r\x1b[K"
    os.close(reader)


def test_progress_is_silent_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter(range(100))
    with Progress(clock=lambda: next(clock)) as progress:
        progress(5_000_000)
    assert capsys.readouterr().err == ""
