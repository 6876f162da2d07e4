"""The page of one request's profile, in a browser: names that are made to run do not, and it asks nobody."""

from __future__ import annotations

import asyncio
import threading
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from loopguard.cli import main

pytest.importorskip("pyinstrument")
pytest.importorskip("playwright.sync_api")

from loopguard.clock import monotonic
from loopguard.integrations.profiling import RequestProfiler
from tests.show.browser import address_of, opened

TOKEN = "correct-horse-battery"
ELSEWHERE = "http://192.0.2.1/"  # an address that stands for none
HOSTILE = (
    "</script><script>document.title='ran'</script>"
    f"<img src={ELSEWHERE} onerror=\"document.title='ran'\">${{document.title='ran'}}"
)
WORK = """
class Worker:
    def work(self, seconds, clock):
        until = clock() + seconds
        while clock() < until:
            pass
"""


def hostile_work() -> Callable[..., None]:
    """Computes; its function, its class and its file have a name that is made to run."""
    namespace: dict[str, Any] = {}
    exec(compile(WORK, f"/srv/{HOSTILE}.py", "exec"), namespace)
    worker = namespace["Worker"]
    worker.__name__ = HOSTILE
    code: types.CodeType = worker.work.__code__
    worker.work.__code__ = code.replace(co_name=HOSTILE, co_qualname=HOSTILE)
    work: Callable[..., None] = worker().work
    return work


@pytest.fixture(scope="module")
def profile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a request that was really profiled."""
    work = hostile_work()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        work(0.2, monotonic)

    async def nothing(*_: Any) -> None:
        pass

    folder = tmp_path_factory.mktemp("profile")
    headers = [(b"x-loopguard-profile", TOKEN.encode())]
    request = RequestProfiler(TOKEN, folder).around(app)(
        {"type": "http", "headers": headers}, nothing, nothing
    )
    with ThreadPoolExecutor(1) as elsewhere:  # the browser has a loop running on this thread
        elsewhere.submit(asyncio.run, request).result()
    for thread in threading.enumerate():
        if thread.name == "loopguard-profile":
            thread.join(10)
    (profile,) = folder.iterdir()
    page = folder / "page.html"
    assert main(["profile", str(profile), "-o", str(page)]) == 0
    return page


def test_such_a_name_runs_where_a_page_lets_it(tmp_path: Path, browser: Any) -> None:
    """Else the test below would show nothing."""
    page = tmp_path / "careless.html"
    page.write_text(f"<title></title><script>const name = '{HOSTILE}'</script><p>drawn")
    with opened(browser, address_of(page), drawn="p") as (opened_page, seen):
        opened_page.wait_for_function("document.title === 'ran'")
    assert ELSEWHERE in seen.requests


def test_no_name_runs_and_no_request_leaves_the_machine(profile_page: Path, browser: Any) -> None:
    """In both of its views, whose rows are opened and pointed at."""
    with opened(browser, address_of(profile_page), drawn="#app .frame") as (page, seen):
        title, shown = page.title(), page.locator("#app").inner_text()
        for row in page.locator("#app .frame-description").all():
            row.hover()
        page.get_by_text("View options").click()
        page.get_by_text("Timeline", exact=True).click()
        page.locator("#app canvas").first.hover()
        assert page.locator("#app img, #app script, body > img").count() == 0
        assert page.title() == title
    assert HOSTILE in shown
    assert "ran" not in title
    outside = [url for url in seen.requests if not url.startswith(("file:", "data:"))]
    assert outside == []
    assert seen.complaints == []
