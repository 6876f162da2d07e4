"""One request's profile on demand, under uvicorn: whatever becomes of the request, the rest is as it was."""

from __future__ import annotations

import asyncio
import json
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.places.servers import serve
from tests.real.conftest import LOOPS
from tests.real.server import Server, wait_until

pytest.importorskip("pyinstrument")
pytest.importorskip("fastapi")

TOKEN = "correct-horse-battery"
HEADER = "x-loopguard-profile"
KEPT = 20


@dataclass(frozen=True)
class Profiled:
    """A server, and where it writes its profiles."""

    server: Server
    folder: Path

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.server.url, trust_env=False, timeout=30)

    def get(self, path: str, token: str | None = TOKEN) -> httpx.Response:
        return asyncio.run(self._get(path, token))

    async def _get(self, path: str, token: str | None) -> httpx.Response:
        async with self.client() as client:
            return await client.get(path, headers=header(token))

    def profile(self, name: str) -> str:
        """The file of that profile, as soon as it is there."""
        assert wait_until(lambda: any(self.folder.glob(f"profile-*-{name}.json")), 10)
        (path,) = self.folder.glob(f"profile-*-{name}.json")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        return path.read_text()

    def left(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.get("/left", None).json()
        return answer


def header(token: str | None) -> dict[str, str]:
    return {} if token is None else {HEADER: token}


def name_in(answer: httpx.Response) -> str:
    name: str = answer.headers[HEADER]
    assert re.fullmatch(r"[0-9a-f]{16}", name)
    return name


@pytest.fixture(scope="module", params=LOOPS)
def profiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Profiled]:
    directory = tmp_path_factory.mktemp("profiled")
    folder = directory / "profiles"
    folder.mkdir()
    variables = {"PROFILED_TOKEN": TOKEN, "PROFILED_DIR": str(folder)}
    application = "tests.places.profiled_app:app"
    with serve(
        directory, application, f"uvicorn-httptools-{request.param}", variables=variables
    ) as server:
        yield Profiled(server, folder)


@pytest.fixture(autouse=True)
def _nothing_is_left(profiled: Profiled) -> Iterator[None]:
    """After each: no hook on the loop's thread, no trouble of ours, no half a file."""
    yield
    assert wait_until(lambda: profiled.left()["hook"] == "None", 10)
    assert (profiled.left()["troubles"], profiled.left()["sink_errors"]) == (0, 0)
    assert wait_until(lambda: not list(profiled.folder.glob("*.part")), 10)


def while_one_is_profiled(
    profiled: Profiled, *asked: tuple[str, str | None]
) -> tuple[httpx.Response, list[httpx.Response]]:
    """The answer to a request that is profiled, and those to requests that came and were answered meanwhile."""

    async def all_of_them(before: int) -> tuple[httpx.Response, list[httpx.Response]]:
        async with profiled.client() as client:
            held = asyncio.create_task(client.get("/held", headers=header(TOKEN)))
            while (await client.get("/left")).json()["profiles"] == before:
                await asyncio.sleep(0.01)
            requests = (client.get(path, headers=header(token)) for path, token in asked)
            answers = await asyncio.gather(*requests)
            while not held.done():
                await client.get("/ring")
            return held.result(), answers

    return asyncio.run(all_of_them(profiled.left()["profiles"]))


def test_nothing_of_twenty_others_is_in_it(profiled: Profiled) -> None:
    held, others = while_one_is_profiled(profiled, *[("/others", None)] * 20)
    assert [HEADER in other.headers for other in others] == [False] * 20
    text = profiled.profile(name_in(held))
    assert "own_work" in text
    assert "of_the_others" not in text


def test_the_second_of_two_at_once_is_told_that_it_is_busy(profiled: Profiled) -> None:
    before = profiled.left()["profiles"]
    held, [second] = while_one_is_profiled(profiled, ("/own", TOKEN))
    assert (second.text, second.headers[HEADER]) == ('"own"', "busy")
    assert "own_work" in profiled.profile(name_in(held))
    assert profiled.left()["profiles"] == before + 1


@pytest.mark.parametrize("token", ["wrong", TOKEN[:-1]])
def test_a_wrong_token_is_as_none_and_counted(profiled: Profiled, token: str) -> None:
    before = profiled.left()
    assert HEADER not in profiled.get("/own", token).headers
    after = profiled.left()
    assert after["profiles_refused"] == before["profiles_refused"] + 1
    assert after["profiles"] == before["profiles"]


def test_a_token_in_the_query_is_none(profiled: Profiled) -> None:
    before = profiled.left()
    assert HEADER not in profiled.get(f"/own?{HEADER}={TOKEN}", None).headers
    counts = ("profiles", "profiles_refused")
    assert [profiled.left()[each] for each in counts] == [before[each] for each in counts]


def test_a_stream_is_whole_and_profiled_to_its_end(profiled: Profiled) -> None:
    answer = profiled.get("/stream")
    assert answer.text == "part " * 3
    assert "of_the_stream" in profiled.profile(name_in(answer))


def test_what_goes_on_in_the_background_is_in_it(profiled: Profiled) -> None:
    answer = profiled.get("/background")
    assert answer.text == "background"
    assert "in_the_background" in profiled.profile(name_in(answer))


def test_an_exception_is_the_applications_own(profiled: Profiled) -> None:
    """The answer is the server's, as without us; the profile is written all the same."""
    before = set(profiled.folder.iterdir())
    assert profiled.get("/raises").status_code == 500
    assert wait_until(lambda: any(each.suffix == ".json" for each in new(profiled, before)), 10)
    (path,) = new(profiled, before)
    assert "own_work" in path.read_text()


def new(profiled: Profiled, before: set[Path]) -> set[Path]:
    return set(profiled.folder.iterdir()) - before


def test_a_client_that_goes_ends_it(profiled: Profiled) -> None:
    """In the middle of a stream that would last for a minute."""

    async def go_away() -> str:
        async with (
            profiled.client() as client,
            client.stream("GET", "/stream?endless=1", headers=header(TOKEN)) as answer,
        ):
            await anext(answer.aiter_raw())
            return name_in(answer)

    profile = json.loads(profiled.profile(asyncio.run(go_away())))
    assert profile["duration"] < 30


def test_no_more_than_so_many_files_are_kept(profiled: Profiled) -> None:
    for number in range(KEPT + 5):
        (profiled.folder / f"profile-20200101T0000{number:02}-old.json").write_text("{}")
    newest = name_in(profiled.get("/stream"))
    assert "of_the_stream" in profiled.profile(newest)
    assert wait_until(lambda: len(list(profiled.folder.iterdir())) <= KEPT, 10)
    assert profiled.profile(newest)
