"""Suites of their own, run with the plugin inside of this process."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import pytest

# Imported here, so that a run inside of this process does not import it anew each time.
from loopguard.integrations.pytest_stalls import plugin as _already_imported  # noqa: F401

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Writes a suite to `test_suite.py`, and runs it with the plugin and these arguments."""
    # With `CI`, pytest ends with each message once more, whole.
    for name in ("CI", "BUILD_NUMBER", "GITHUB_ACTIONS", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)

    def run_suite(source: str, *arguments: str, on: bool = True) -> pytest.RunResult:
        pytester.makepyfile(test_suite=textwrap.dedent(source))
        return again(*arguments, on=on)

    def again(*arguments: str, on: bool = True) -> pytest.RunResult:
        return pytester.runpytest_inprocess(
            *("-p", "asyncio_loopguard", "-p", "no:cacheprovider", "-W", "ignore"),
            # In each process it leaves a thread and a socket, which last as long as that does.
            *("-p", "no:rerunfailures"),
            *(("--stalls",) if on else ()),
            *arguments,
        )

    run_suite.again = again  # type: ignore[attr-defined]
    return run_suite
