"""A real Chromium, and what went on in it while a page was open."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

playwright_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")


@dataclass
class Seen:
    """What the page asked for besides itself, and what it complained of."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@contextmanager
def chromium() -> Iterator[Any]:
    with playwright_api.sync_playwright() as playwright:
        # Without its sandbox: it needs rights that a container does not give, and the pages are our own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Any,
    address: str,
    *,
    width: int = 1400,
    scheme: str = "light",
    touch: bool = False,
    drawn: str = "main[data-ready]",
) -> Iterator[tuple[Any, Seen]]:
    """The page at that address, in a context of its own, once what is `drawn` last is there."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=touch
    )
    context.set_default_timeout(8_000)
    page, seen = context.new_page(), Seen()
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("console", lambda message: seen.complaints.append(message.text))
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.goto(address)
    page.wait_for_selector(drawn)
    yield page, seen
    context.close()


def address_of(path: Path, fragment: str = "") -> str:
    return path.as_uri() + fragment
