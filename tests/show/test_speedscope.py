"""Speedscope's file: as its published schema has it, and drawn by Speedscope itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from loopguard.show.speedscope import speedscope
from tests.show.records import in_process, stall

RELEASE = "1.25.0"
STALLS = [
    stall(1),
    stall(2, duration=1.25, process=in_process("other")),
    stall(3, stack=(), cause="unknown"),
]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Speedscope's own app, with its schema, from the package registry."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm")
    folder = tmp_path_factory.mktemp("speedscope")
    done = subprocess.run(
        [npm, "pack", "--silent", f"speedscope@{RELEASE}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        pytest.skip("npm cannot fetch Speedscope")
    with tarfile.open(folder / f"speedscope-{RELEASE}.tgz") as package:
        package.extractall(folder, filter="data")
    return folder / "package" / "dist" / "release"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture
def served(app: Path) -> Iterator[str]:
    (app / "loopguard.speedscope.json").write_text(json.dumps(speedscope(STALLS, title="a night")))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=app)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("stalls", [STALLS, []])
def test_it_is_as_the_published_schema_has_it(stalls: list[Any], app: Path) -> None:
    schema = json.loads((app / "file-format-schema.json").read_text())
    jsonschema.validate(speedscope(stalls, title="a night"), schema)


def test_the_weights_are_the_durations_of_each_process() -> None:
    made = speedscope(STALLS, title="")
    assert [profile["weights"] for profile in made["profiles"]] == [[0.4, 0.4], [1.25]]
    assert [profile["unit"] for profile in made["profiles"]] == ["seconds", "seconds"]
    names = [made["shared"]["frames"][at]["name"] for at in made["profiles"][1]["samples"][0]]
    assert names == ["starlette.routing.Route.handle"] * 2 + ["app.users.list_users"]


def test_speedscope_draws_it(served: str, browser: Any) -> None:
    """Its own app says the name and the number of profiles, and complains of nothing."""
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{served}/#profileURL={served}/loopguard.speedscope.json")
    page.get_by_text("blocked time, web-1 5f9c pid 4711 (1/2)").wait_for()
    assert page.title() == "a night - speedscope"
    assert errors == []
    page.close()
