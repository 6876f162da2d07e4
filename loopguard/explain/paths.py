"""How a file is named: short where it is ours to name, and no more than that where it is not."""

from __future__ import annotations

import functools
import sys
from pathlib import PurePath


@functools.lru_cache(maxsize=4096)
def shown(path: str, root: PurePath) -> str:
    """A source file's path, relative to `root` where it lies below."""
    try:
        return str(PurePath(path).relative_to(root))
    except ValueError:
        return path


def guarded(path: str, root: PurePath) -> str:
    """The path of a file that was waited on. Outside `root` and Python itself its name may be a user's secret:
    then its first two parts only."""
    if PurePath(path).is_relative_to(root):
        return shown(path, root)
    if any(PurePath(path).is_relative_to(home) for home in {sys.prefix, sys.base_prefix}):
        return path
    parts = PurePath(path).parts
    return path if len(parts) <= 3 else str(PurePath(*parts[:3], "…"))
