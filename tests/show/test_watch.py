"""`loopguard watch` as it is typed: a view in a terminal, lines elsewhere, a page for its owner alone."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from loopguard.cli import main
from loopguard.tell.jsonl import json_line
from tests.show.browser import needs_chromium, opened
from tests.show.records import stall, write

PATIENCE = 10.0


def put(path: Path, **changes: Any) -> None:
    """Append a record of a stall that began as long ago as it has lasted."""
    lasted = changes.get("duration", 0.4)
    record = stall(**{"number": 1, "started_at": time.time() - lasted, **changes}).to_dict()
    with path.open("a") as file:
        file.write(f"{json_line(record)}\n")


@contextlib.contextmanager
def watching(*arguments: str, **streams: Any) -> Iterator[subprocess.Popen[str]]:
    """A watch, which Ctrl-C ends with 0."""
    clean = {key: value for key, value in os.environ.items() if "COLOR" not in key}
    process = subprocess.Popen(
        [sys.executable, "-m", "loopguard", "watch", *arguments],
        text=True,
        env={**clean, "TERM": "xterm-256color"},
        # A job in the background of a shell ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **streams,
    )
    try:
        yield process
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def test_where_there_is_no_terminal_each_stall_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "late.jsonl"
    with watching(str(path), stdout=subprocess.PIPE) as process:
        assert process.stdout
        put(path, ongoing=True, duration=0.5)
        put(path, duration=0.713, call="a\x1b[31m\nb")
        early, final = process.stdout.readline(), process.stdout.readline()
    place = "app/users.py:42 in list_users"
    assert re.match(rf"\d\d:\d\d:\d\d\.\d  still held 500 ms  blocking_call  {place}", early)
    assert re.match(rf"\d\d:\d\d:\d\d\.\d  713 ms  blocking_call  {place}", final)
    assert final[:-1].isprintable()


class Terminal:
    """A pseudo-terminal of 24 lines and 80 columns."""

    def __init__(self) -> None:
        self._reader, self.writer = pty.openpty()
        fcntl.ioctl(self.writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.seen = ""

    def wait_for(self, condition: Callable[[str], object]) -> str:
        """What is on the screen, once that is so."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if select.select([self._reader], [], [], 0.1)[0]:
                self.seen += os.read(self._reader, 65536).decode(errors="replace")
            shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.seen.rpartition("\x1b[H")[2])
            if condition(shown):
                return shown
        raise AssertionError(self.seen[-2000:])

    def close(self) -> None:
        os.close(self._reader)
        os.close(self.writer)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    pytest.importorskip("rich")
    made = Terminal()
    yield made
    made.close()


def test_in_a_terminal_a_stall_grows_until_it_ends(tmp_path: Path, terminal: Terminal) -> None:
    path = write(tmp_path / "a.jsonl", [])
    out = terminal.writer
    with watching(str(path), stdin=out, stdout=out, stderr=out):
        terminal.wait_for(lambda shown: "nothing holds a loop now" in shown)
        put(path, ongoing=True, duration=0.5, severity="error")
        seen = terminal.wait_for(
            lambda shown: re.search(r"^ +(\d+ ms|\d\.\d+ s)  blocking", shown, re.MULTILINE)
        )
        assert "app/users.py:42 in list_users" in seen
        terminal.wait_for(
            lambda shown: re.search(r"^ +1\.[5-9]\d\d s  blocking_call", shown, re.MULTILINE)
        )
        put(path, duration=1.9)
        ended = terminal.wait_for(lambda shown: "held 1.900 s in 1 stall" in shown)
        assert "nothing holds a loop now" in ended
        assert all(len(line.rstrip("\r")) <= 80 for line in ended.splitlines())
        # What was printed before must not end the writing: the rest is read until the process has ended.
        terminal.seen = ""


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("live") / "a.jsonl", [stall(7), stall(8, cause="cpu")])


@pytest.fixture(scope="module")
def live(records: Path) -> Iterator[str]:
    """The address of a live page, token and all."""
    with watching(str(records), "--web", "--no-open", stdout=subprocess.PIPE) as process:
        assert process.stdout
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found
        yield found[0]


def ask(
    live: str, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, str], str]:
    port = int(re.findall(r":(\d+)", live)[0])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request(method, path, headers=dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()


@pytest.mark.parametrize(
    "path, method, headers, status",
    [
        ("/", "GET", {}, 403),
        ("/events", "GET", {}, 403),
        ("/?token=", "GET", {}, 403),
        ("/?token=wrong", "GET", {}, 403),
        ("/?token=%ff%00", "GET", {}, 403),
        ("/", "GET", {"Cookie": "loopguard-{port}=wrong"}, 403),
        ("/", "GET", {"Cookie": "\x00=;;="}, 403),
        ("{good}", "GET", {"Host": "evil.example"}, 403),
        ("{good}", "GET", {"Host": "127.0.0.1.evil.example:{port}"}, 403),
        ("{good}", "GET", {"Host": "127.0.0.1:1"}, 403),
        ("{good}", "POST", {}, 405),
        ("{good}", "HEAD", {}, 405),
        ("{good}", "OPTIONS", {"Origin": "https://evil.example"}, 405),
        ("/../../etc/passwd", "GET", {}, 403),
        ("//evil.example/", "GET", {}, 403),
        ("http://evil.example/", "GET", {}, 403),
    ],
)
def test_whoever_was_not_invited_is_refused(
    path: str, method: str, headers: dict[str, str], status: int, live: str
) -> None:
    port = re.findall(r":(\d+)", live)[0]
    good = live.partition(port)[2]
    sent = {name: value.replace("{port}", port) for name, value in headers.items()}
    answer, told, body = ask(live, path.replace("{good}", good), method=method, headers=sent)
    assert answer == status
    assert "list_users" not in body
    assert not any(name.lower().startswith("access-control") for name in told)
    assert told["Cache-Control"] == "no-store"


def test_it_listens_on_loopback_only(live: str) -> None:
    assert re.match(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}$", live)


@needs_chromium
def test_the_live_page_shows_a_stall_while_it_lasts_and_when_it_ends(
    live: str, records: Path, browser: Any
) -> None:
    """The one visit that the token is good for; then every claim about the page that it leads to."""
    expect = pytest.importorskip("playwright.sync_api").expect
    with opened(browser, live) as (page, seen):
        assert "token" not in page.url
        expect(page.locator("h1")).to_contain_text("in 2 stalls")

        began = time.monotonic()
        put(records, number=9, ongoing=True, duration=0.5)
        page.wait_for_selector(".lasting")
        assert time.monotonic() - began < 0.5 + SLACK
        first = page.locator(".lasting strong").inner_text()
        expect(page.locator(".lasting strong")).not_to_have_text(first)
        put(records, number=9, duration=1.25, cause="gil_hold")
        page.wait_for_selector(".lasting", state="detached")
        page.wait_for_selector("#cause-gil_hold")
        assert page.locator("#cause-gil_hold .figure").inner_text() == "1.250 s"

        page.locator("#cause-gil_hold").click()
        page.reload()
        page.wait_for_selector("main[data-ready]")
        assert "1.250 s" in page.locator("h1").inner_text()

        (cookie,) = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        headers = page.request.get(page.url).headers
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
        assert page.request.get(page.url.partition("#")[0] + "etc/passwd").status == 404
        assert page.request.post(page.url).status == 405
    assert seen.complaints == []
    status, _, body = ask(live, live.partition(re.findall(r":(\d+)", live)[0])[2])
    assert (status, "good for one visit" in body) == (403, True)


# A busy machine may be late with a process, a poll and a frame.
SLACK = 1.0


@pytest.mark.parametrize("port", ["x", "-1", "65536"])
def test_a_port_that_is_none_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "a.jsonl", "--web", "--port", port]) == 2
    assert "is no port" in capsys.readouterr().err
