"""All cases of the corpus, by name, and the marks of those that block."""

from __future__ import annotations

import importlib

from tests.corpus import label
from tests.real.marks import Mark, read_marks
from tests.real.server import ROOT

FAMILIES = (
    *("waits", "locks", "computing", "gil", "collector", "imports", "crowds", "suspended"),
    "innocent",
)


def _marks() -> dict[str, Mark]:
    found: dict[str, Mark] = {}
    for family in FAMILIES:
        module = f"tests.corpus.{family}"
        importlib.import_module(module)
        found |= read_marks(module, ROOT)
    return found


MARKS = _marks()
CASES = {case.name: case for case in label.declared}
