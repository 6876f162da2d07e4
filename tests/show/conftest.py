"""One browser for all tests of pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    pytest.importorskip("playwright.sync_api")
    from tests.show.browser import CHROMIUM, chromium

    if CHROMIUM is None:
        pytest.skip("there is no chromium on the PATH")
    with chromium() as started:
        yield started
