"""The README is true: its code runs, its example is a real record, its options and links exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from loopguard.config import Config
from loopguard.record import Frame, Request, Stall

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
SHELL = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines()]


def _names(record: type[Any]) -> set[str]:
    return {field.name for field in fields(record)}


@pytest.mark.parametrize("code", PYTHON)
def test_each_block_of_python_runs_as_it_stands(code: str, tmp_path: Path) -> None:
    """In a process of its own, in a folder of its own, warnings as errors."""
    script = tmp_path / "readme.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "trouble" not in done.stderr


def test_the_block_that_blocks_prints_its_own_line(tmp_path: Path) -> None:
    """What the reader would see is the line of `time.sleep`, and nothing else on stdout."""
    (code,) = (text for text in PYTHON if "on_stall" in text)
    script = tmp_path / "readme.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        check=True,
    )
    line = next(n for n, text in enumerate(code.splitlines(), 1) if "time.sleep" in text)
    assert done.stdout == f"readme.py:{line} in main time.sleep\n"


def test_the_two_commands_stand_alone_on_their_lines() -> None:
    assert "uv run loopguard demo" in SHELL
    assert "uv run pytest" in SHELL


def test_the_example_has_fields_of_the_record_only() -> None:
    (example,) = (json.loads(text) for language, text in BLOCKS if language == "json")
    assert set(example) <= _names(Stall)
    assert set(example["culprit"]) <= _names(Frame)
    assert set(example["request"]) <= _names(Request)


def test_the_options_are_those_that_install_takes() -> None:
    table = README.partition("| option | default |")[2].partition("\n\n")[0]
    named = {
        name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert named == _names(Config)


def test_links_lead_to_files_of_the_project() -> None:
    targets = [
        link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link
    ]
    assert targets
    assert [target for target in targets if not (ROOT / target).is_file()] == []
