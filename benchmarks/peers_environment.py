"""The peers, and an environment for each, which uv makes outside the checkout and keeps there."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.overhead import ROOT, plain_environment

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loopguard-peers"


@dataclass(frozen=True)
class Peer:
    """`packages` are installed for it; of a `module` alone, the wheel is unpacked and no more."""

    title: str
    packages: tuple[str, ...] = ()
    module_of: str | None = None


PEERS = {
    "bare": Peer("nobody"),
    "debug_mode": Peer("asyncio's debug mode"),
    "cprofile": Peer("cProfile"),
    "yappi": Peer("yappi 1.7.6", ("yappi==1.7.6",)),
    "pyspy": Peer("py-spy 0.4.3", ("py-spy==0.4.3",)),
    "pyinstrument": Peer("pyinstrument 5.1.3", ("pyinstrument==5.1.3",)),
    "aiocop": Peer("aiocop 1.2.1", ("aiocop==1.2.1",)),
    "blockbuster": Peer("blockbuster 1.5.29", ("blockbuster==1.5.29",)),
    "pyleak": Peer("pyleak 0.2.0", ("pyleak==0.2.0",)),
    "livekit": Peer("LiveKit's monitor (livekit-agents 1.8.9)", module_of="livekit-agents==1.8.9"),
    "loopguard": Peer("loopguard"),
}


class CannotRunError(Exception):
    """The peer, with the reason that it gave."""


def environment(names: Sequence[str], group: str = "dev") -> tuple[list[str], dict[str, str]]:
    """The command for a Python that has these peers, and its variables; this one, where they need no package."""
    peers = [PEERS[name] for name in names]
    variables = plain_environment()
    variables.pop("PYTHONDONTWRITEBYTECODE", None)  # to compile a module takes more memory than it
    for peer in peers:
        if peer.module_of is not None:
            variables["LIVEKIT"] = str(_unpacked(peer.module_of))
    packages = [part for peer in peers for package in peer.packages for part in ("--with", package)]
    if not packages:
        return [sys.executable], variables
    if shutil.which("uv") is None:
        raise SystemExit("it takes uv to make an environment for each peer")
    variables["UV_PROJECT_ENVIRONMENT"] = str(CACHE / platform.python_version())
    options = ("--quiet", "--frozen", "--python", sys.executable, "--group", group)
    return ["uv", "run", *options, *packages, "python"], variables


def _unpacked(wheel: str) -> Path:
    directory = CACHE / wheel
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
            python = ("--python", sys.executable, "--target", f"{temporary}/wheel")
            command = ["uv", "pip", "install", "--quiet", "--no-deps", *python, wheel]
            subprocess.run(command, check=True)
            Path(temporary, "wheel").rename(directory)
    return directory


class Server:
    """An app that is served under one watcher, in the watcher's environment."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process = process
        self.port = port

    def end(self) -> list[dict[str, Any]]:
        """See it end, and give what the watcher told."""
        output, _ = self._process.communicate()
        told: list[dict[str, Any]] = json.loads(output)
        return told


@contextmanager
def serving(name: str, loop: str, app: str) -> Iterator[Server]:
    python, variables = environment([name])
    command = [*python, "-m", "benchmarks.peers_serve", name, loop, app]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, cwd=ROOT, env=variables, stdin=pipe, stdout=pipe, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdin
        assert process.stdout
        if not (port := process.stdout.readline()):
            process.wait()
            errors.seek(0)
            raise CannotRunError(errors.read().strip().rpartition("\n")[2])
        try:
            yield Server(process, int(port))
        finally:
            if not process.stdin.closed:
                process.stdin.close()
