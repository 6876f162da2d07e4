"""A browser for the tests of pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One for each file, and not for longer: while it is there, playwright has a loop running on this thread."""
    pytest.importorskip("playwright.sync_api")
    from tests.show.browser import CHROMIUM, chromium

    if CHROMIUM is None:
        pytest.skip("there is no chromium on the PATH")
    with chromium() as started:
        yield started
