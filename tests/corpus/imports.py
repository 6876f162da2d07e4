"""Imports that take long, on a loop that runs."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.corpus.label import BLOCK, amount, case, held, rest


def module(name: str, text: str) -> None:
    """Have a module that is nobody's own code: it lies where packages are installed."""
    site = Path(tempfile.mkdtemp(prefix="corpus-")) / "site-packages"
    file = site.joinpath(*name.split(".")).with_suffix(".py")
    file.parent.mkdir(parents=True)
    file.write_text(text)
    sys.path.insert(0, str(site))
    for known in [
        known for known in sys.modules if known.partition(".")[0] == name.partition(".")[0]
    ]:
        del sys.modules[known]
    importlib.invalidate_caches()


def waits() -> None:
    module("waits_as_it_is_imported", f"import time\ntime.sleep({BLOCK})\n")


@case(given=waits, served=True, core=True)
async def import_that_waits(_: object) -> None:
    await rest()
    with held():
        # blocks import_that_waits: importlib._bootstrap._find_and_load, import
        import waits_as_it_is_imported  # type: ignore[import-not-found] # noqa: F401


def source(n: int) -> str:
    return "\n".join(f"def f{i}(a, b):\n    return [a + {i}, b * a]\n" for i in range(n))


def compiling(n: int) -> Callable[[], object]:
    return partial(compile, source(n), "source", "exec")


def large() -> None:
    module("large_and_not_compiled", source(amount(compiling, 200)))


@case(given=large)
async def import_that_compiles(_: object) -> None:
    """Its source has to be compiled first."""
    await rest()
    with held():
        # blocks import_that_compiles: importlib.import_module, import
        importlib.import_module("large_and_not_compiled")


COMPUTES = """
def squares(n):
    return sum(i * i for i in range(n))

table = squares({n})
"""


def squares(n: int) -> int:
    return sum(i * i for i in range(n))


def computes() -> None:
    n = amount(lambda n: partial(squares, n), 50_000)
    module("computes_as_it_is_imported", COMPUTES.format(n=n))


@case(given=computes)
async def import_that_computes(_: object) -> None:
    await rest()
    with held():
        # blocks import_that_computes: importlib.import_module, import
        importlib.import_module("computes_as_it_is_imported")


def nested() -> None:
    module("outer_package.inner", f"import time\ntime.sleep({BLOCK})\n")
    package = Path(sys.path[0]) / "outer_package"
    (package / "__init__.py").write_text("from outer_package import inner\n")


@case(given=nested, served=True)
async def import_of_a_package(_: object) -> None:
    await rest()
    with held():
        # blocks import_of_a_package: importlib.import_module, import
        importlib.import_module("outer_package")
