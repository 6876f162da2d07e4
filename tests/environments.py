"""Virtual environments of their own with the wheel in it, made by uv from the package index."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


class Environment:
    """A fresh virtual environment with what is asked for and nothing else."""

    def __init__(self, directory: Path, uv: str, *packages: str) -> None:
        self.directory = directory
        self.python = directory / "venv" / "bin" / "python"
        directory.mkdir()
        call(uv, "venv", "-q", "--python", sys.executable, str(directory / "venv"))
        if sys.platform == "win32":
            self.python = directory / "venv" / "Scripts" / "python.exe"
        call(uv, "pip", "install", "-q", "--python", str(self.python), *packages)
        listed = call(uv, "pip", "list", "--format", "json", "--python", str(self.python))
        self.packages = {package["name"] for package in json.loads(listed)}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run its Python, far from the checkout and its environment."""
        return subprocess.run(
            [self.python, *arguments],
            cwd=self.directory,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )


def clean_environment() -> dict[str, str]:
    dropped = ("PYTHON", "VIRTUAL_ENV", "LOOPGUARD_", "OTEL_")
    return {key: value for key, value in os.environ.items() if not key.startswith(dropped)}


def call(*command: str) -> str:
    """Run a command of uv's; where the index is not to be reached the test cannot be made."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=clean_environment()
    )
    unreachable = (
        r"error sending request|dns error|failed to fetch|connection (refused|reset)|timed out"
    )
    if done.returncode != 0 and re.search(unreachable, done.stderr, re.IGNORECASE):
        pytest.skip(f"the package index is not to be reached: {done.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def uv() -> str:
    found = shutil.which("uv")
    if found is None or subprocess.run([found, "--version"], capture_output=True).returncode != 0:
        pytest.skip("uv is not installed")
    return found


@pytest.fixture(scope="session")
def wheel(uv: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    call(uv, "build", "-q", "--wheel", "--out-dir", str(directory), str(ROOT))
    (built,) = directory.glob("*.whl")
    return built
