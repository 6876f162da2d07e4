"""No test leaves a guard behind; and the tests of faults write a page of the documentation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import loopguard
from tests.environments import uv, wheel  # noqa: F401 - pytest finds these here
from tests.reliability import (  # noqa: F401 - pytest finds these here
    at_length,
    pytest_addoption,
    pytest_runtest_logreport,
    pytest_sessionfinish,
    row,
)


@pytest.fixture(autouse=True)
def _uninstalled() -> Iterator[None]:
    """Also where a test fails half-way."""
    yield
    loopguard.uninstall()
