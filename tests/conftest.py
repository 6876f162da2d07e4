"""No test leaves a guard behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import loopguard


@pytest.fixture(autouse=True)
def _uninstalled() -> Iterator[None]:
    """Also where a test fails half-way."""
    yield
    loopguard.uninstall()
