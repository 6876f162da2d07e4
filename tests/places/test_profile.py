"""One request's profile, on demand: alone, capped, written off the loop, and rendered so that no name in it is run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import stat
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import loopguard
from loopguard.cli import main
from loopguard.clock import monotonic
from tests.holding import LOOPS, run

pytest.importorskip("pyinstrument")

from loopguard.integrations.profiling import APART, KEPT, RequestProfiler

TOKEN = "correct-horse-battery"
Message = dict[str, Any]


async def of_the_others(seconds: float) -> None:
    """What no profile of another request may show."""
    until = monotonic() + seconds
    while monotonic() < until:
        sum(range(3_000))
        await asyncio.sleep(0)


def own_work(seconds: float) -> None:
    until = monotonic() + seconds
    while monotonic() < until:
        sum(range(1_000))


class Server:
    """Calls an ASGI application, as a server does."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def get(self, path: str = "/", token: str | None = TOKEN, **scope: Any) -> list[Message]:
        headers = [] if token is None else [(b"X-Loopguard-Profile".lower(), token.encode())]
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        asked = {"type": "http", "method": "GET", "path": path, "headers": headers, **scope}
        await self.app(asked, receive, send)
        return sent


def answer(sent: list[Message]) -> str | None:
    headers = dict(sent[0]["headers"])
    word = headers.pop(b"x-loopguard-profile", None)
    assert headers == {b"content-type": b"text/plain"}  # nothing else is changed
    assert b"".join(message["body"] for message in sent[1:]) == b"whole"
    return None if word is None else word.decode()


async def of_a_child_task() -> None:
    own_work(0.05)
    await asyncio.sleep(0.1)


async def app(scope: Message, receive: Any, send: Any) -> None:
    headers = [(b"content-type", b"text/plain")]
    if scope["path"] == "/others":
        await of_the_others(0.4)
    elif scope["path"] == "/raises":
        own_work(0.05)
        raise ValueError("of the application's own")
    else:
        own_work(0.1)
        await asyncio.create_task(of_a_child_task())
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"wh", "more_body": True})
    own_work(0.02)
    await send({"type": "http.response.body", "body": b"ole"})


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def profiler(tmp_path: Path, clock: Clock) -> RequestProfiler:
    return RequestProfiler(TOKEN, tmp_path, clock=clock)


def written(folder: Path) -> list[Path]:
    """The files, once the threads that write them have ended."""
    for thread in threading.enumerate():
        if thread.name == "loopguard-profile":
            thread.join(10)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("kind", LOOPS)
def test_one_request_is_profiled_and_nobody_else(
    kind: str, profiler: RequestProfiler, tmp_path: Path
) -> None:
    server = Server(profiler.around(app))

    async def all_of_them() -> list[list[Message]]:
        others = (server.get("/others", token=None) for _ in range(20))
        return await asyncio.gather(server.get(), *others)

    first, *others = run(all_of_them(), kind)
    name = answer(first)
    assert name is not None
    assert re.fullmatch(r"[0-9a-f]{16}", name)
    assert [answer(each) for each in others] == [None] * 20
    (path,) = written(tmp_path)
    assert name in path.name
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert "own_work" in text
    assert "of_a_child_task" in text
    assert "of_the_others" not in text
    assert sys.getprofile() is None
    assert profiler.counts() == {"profiles": 1, "profiles_refused": 0}


def test_a_second_one_at_once_or_soon_after_is_told_that_it_is_busy(
    profiler: RequestProfiler, clock: Clock, tmp_path: Path
) -> None:
    server = Server(profiler.around(app))

    async def two() -> list[str | None]:
        return [answer(each) for each in await asyncio.gather(server.get(), server.get())]

    names = asyncio.run(two())
    assert names[1] == "busy"
    clock.now += APART - 1
    assert answer(asyncio.run(server.get())) == "busy"
    clock.now += 2
    assert answer(asyncio.run(server.get())) not in ("busy", "unavailable", None)
    assert len(written(tmp_path)) == 2


@pytest.mark.parametrize("token", ["wrong", TOKEN[:-1], TOKEN + "x", "", "ä" * 20])
def test_a_wrong_token_is_as_none_and_counted(
    token: str, profiler: RequestProfiler, tmp_path: Path
) -> None:
    assert answer(asyncio.run(Server(profiler.around(app)).get(token=token))) is None
    assert profiler.counts() == {"profiles": 0, "profiles_refused": 1}
    assert written(tmp_path) == []


def test_a_token_in_the_query_is_none(profiler: RequestProfiler, tmp_path: Path) -> None:
    query = f"X-Loopguard-Profile={TOKEN}".encode()
    sent = asyncio.run(Server(profiler.around(app)).get(token=None, query_string=query))
    assert answer(sent) is None
    assert written(tmp_path) == []


def test_a_hook_of_somebody_elses_is_left_alone(profiler: RequestProfiler) -> None:
    def hook(*_: object) -> None:
        pass

    async def hooked() -> list[Message]:
        sys.setprofile(hook)
        try:
            sent = await Server(profiler.around(app)).get()
            assert sys.getprofile() is hook
        finally:
            sys.setprofile(None)
        return sent

    assert answer(asyncio.run(hooked())) == "unavailable"


def test_an_error_and_a_client_that_has_gone_leave_no_hook(
    profiler: RequestProfiler, clock: Clock, tmp_path: Path
) -> None:
    server = Server(profiler.around(app))
    with pytest.raises(ValueError, match="of the application's own"):
        asyncio.run(server.get("/raises"))
    assert sys.getprofile() is None
    clock.now += APART

    async def gone() -> None:
        task = asyncio.create_task(server.get())
        await asyncio.sleep(0.05)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(gone())
    assert sys.getprofile() is None
    assert len(written(tmp_path)) == 2


def test_it_ends_at_its_cap_and_the_request_goes_on(tmp_path: Path) -> None:
    profiler = RequestProfiler(TOKEN, tmp_path, longest=0.15)

    async def long(scope: Message, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.3)
        assert sys.getprofile() is None
        await app(scope, receive, send)

    name = answer(asyncio.run(Server(profiler.around(long)).get()))
    (path,) = written(tmp_path)
    assert name is not None
    assert name in path.name
    assert json.loads(path.read_text())["duration"] == pytest.approx(0.15, abs=0.1)


def test_the_newest_files_are_kept(profiler: RequestProfiler, tmp_path: Path) -> None:
    for number in range(KEPT + 5):
        (tmp_path / f"profile-20200101T0000{number:02}-x.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("of somebody else's")
    name = answer(asyncio.run(Server(profiler.around(app)).get()))
    files = [path.name for path in written(tmp_path)]
    assert len(files) == KEPT + 1
    assert "notes.txt" in files
    assert any(str(name) in file for file in files)


def test_a_directory_that_is_gone_costs_the_profile_only(tmp_path: Path) -> None:
    troubles: list[BaseException] = []
    profiler = RequestProfiler(TOKEN, tmp_path / "gone")
    profiler.trouble = troubles.append
    assert answer(asyncio.run(Server(profiler.around(app)).get())) is not None
    written(tmp_path)
    assert [type(error) for error in troubles] == [FileNotFoundError]


def test_the_record_of_a_stall_names_the_profile(tmp_path: Path) -> None:
    fastapi: Any = pytest.importorskip("fastapi")
    httpx = pytest.importorskip("httpx")
    service = fastapi.FastAPI()

    async def slow() -> str:
        time.sleep(0.4)
        return "done"

    service.get("/slow")(slow)

    async def twice() -> list[Any]:
        transport = httpx.ASGITransport(service)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            await client.get("/slow")
            await asyncio.sleep(0.1)
            answer = await client.get("/slow", headers={"X-Loopguard-Profile": TOKEN})
            await asyncio.sleep(0.1)
            await client.get("/slow", headers={"X-Loopguard-Profile": "wrong"})
            await asyncio.sleep(0.1)
            return [answer.headers.get("x-loopguard-profile"), answer.json()]

    options: dict[str, Any] = {"profile_token": TOKEN, "profile_dir": tmp_path, "log": False}
    with loopguard.install(service, budget=0.1, **options) as guard:
        name, body = asyncio.run(twice())
        assert guard.flush(10)
        stalls = [stall for stall in guard.stalls if stall.duration > 0.3]
        assert [stall.profile for stall in stalls] == [None, name, None]
        assert guard.stats()["profiles"] == guard.stats()["profiles_refused"] == 1
    assert body == "done"
    assert len(written(tmp_path)) == 1


HOSTILE = "</script><script>document.title='run'</script><img src=x onerror=document.title='run'>"


@pytest.fixture
def hostile(profiler: RequestProfiler, tmp_path: Path) -> Path:
    """A profile in which a function has a name that is made to run."""
    asyncio.run(Server(profiler.around(app)).get())
    (path,) = written(tmp_path)
    path.write_text(path.read_text().replace("own_work", json.dumps(HOSTILE)[1:-1]))
    return path


def test_it_is_rendered_in_three_ways(
    profiler: RequestProfiler, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(Server(profiler.around(app)).get())
    (path,) = written(tmp_path)
    assert main(["profile", str(path)]) == 0
    assert "own_work" in capsys.readouterr().out
    for ending, said in ((".speedscope.json", '"unit": "seconds"'), (".html", "Content-Security")):
        output = tmp_path / f"out{ending}"
        assert main(["profile", str(path), "-o", str(output)]) == 0
        assert said in output.read_text()
        assert "own_work" in output.read_text()
        assert main(["profile", str(path), "-o", str(output)]) == 2  # never overwrites
        assert "--force" in capsys.readouterr().err
        assert main(["profile", str(path), "-o", str(output), "--force"]) == 0


def test_what_is_no_profile_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "other.json"
    for content in ("{}", "no json", "[1, 2]", "null"):
        file.write_text(content)
        assert main(["profile", str(file)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["profile", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_hostile_name_is_data_in_the_page(hostile: Path, tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    assert main(["profile", str(hostile), "-o", str(output)]) == 0
    page = output.read_text()
    assert HOSTILE[:9] + HOSTILE[9:17] not in page
    assert page.count("<script>") == page.count("</script>") == 2
    assert "fonts.googleapis" not in page
    assert "script-src 'sha256-" in page
