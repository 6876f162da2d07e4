"""The command line: one line for bad input, and nothing imported before it is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata

import pytest

from loopguard.cli import main


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loopguard", *arguments], capture_output=True, text=True, timeout=60
    )


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "demo" in capsys.readouterr().out


def test_python_dash_m_is_the_same_command_line() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: loopguard ")


def test_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    try:
        version = metadata.version("asyncio-loopguard")
    except metadata.PackageNotFoundError:
        version = "(not installed, run from its source)"
    assert capsys.readouterr().out == f"loopguard {version}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["no-such-command"]])
def test_nothing_heavy_is_imported_before_a_command_runs(arguments: list[str]) -> None:
    """Help comes at once, and also where the extras are missing."""
    script = (
        "import sys; from loopguard.cli import main; main(sys.argv[1:]);"
        "print([name for name in ('fastapi', 'uvicorn', 'requests') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["--no-such-option"],
        ["demo", "--no-such-option"],
        ["demo", "too", "much"],
        ["demo", "--jsonl"],
        ["demo", "--trace-url", "http://localhost:16686/trace/"],
        ["demo", "--trace-url", "localhost/{trace_id}"],
        ["demo", "--trace-url", "javascript:alert('{trace_id}')"],
        ["demo", "--trace-url", "http://[{trace_id}"],
        ["demo", "--trace-url", "http://localhost/\x1b[31m{trace_id}"],
        ["two\nlines\x1b[31m"],
    ],
)
def test_bad_input_ends_with_2_and_one_printable_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.endswith("\n")
    assert said.err[:-1].isprintable()


def test_output_that_nobody_reads_any_more_is_no_error() -> None:
    """As in `loopguard … | head -1`: no traceback, and the exit code of a broken pipe."""
    script = (
        "import os, sys; from loopguard import cli\n"
        "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1)\n"
        "sys.exit(cli.main(['--help']))"
    )
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(
        [sys.executable, "-c", script], env=buffered, stderr=subprocess.PIPE, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (141, "")
