"""The report of another project, `fastapi-loopguard`, whose script is called `loopguard` too.

Its users close a gate with `loopguard report loopguard.json`. Where that finds our script in the place of theirs, it must
not let pass what theirs would have refused: ours finds no stall in such a file.
"""

from __future__ import annotations

import re
from pathlib import Path

_BEGINNING = re.compile(rb'\s*\{\s*"schema_version"\s*:')


def is_theirs(path: str) -> bool:
    """Whether a file is such a report. What can be read only once, as a pipe, is not looked into."""
    file = Path(path)
    try:
        if not file.is_file():
            return False
        with file.open("rb") as opened:
            return _BEGINNING.match(opened.read(64)) is not None
    except (OSError, ValueError):
        return False


def refusal(path: str) -> str:
    """What to do instead."""
    return (
        f"{path} is a report of fastapi-loopguard, whose script has our name too: "
        f"python -m fastapi_loopguard.cli report {path}"
    )
