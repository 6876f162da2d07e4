"""Who owns the names that we use: the import, the script, and those of the pytest plugin."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

OURS = "asyncio-loopguard"
OTHER_PROJECT = "loopguard"
_SCRIPTS = ("loopguard", "asyncio-loopguard")
_SHORT = 4096  # a script that an installer has made is shorter


def conflicts() -> list[str]:
    """What else claims one of our names, a sentence each, with what to do."""
    return [*_distributions(metadata.distributions()), *_scripts()]


def _distributions(installed: Iterable[metadata.Distribution]) -> Iterator[str]:
    said = set()
    for each in installed:
        name = each.metadata["Name"] or "?"
        if name.lower().replace("_", "-") == OURS:
            continue
        for claim in _claims(each):
            said.add(f"{name} {each.version} {claim}")
    yield from sorted(said)


def _claims(distribution: metadata.Distribution) -> Iterator[str]:
    for entry in distribution.entry_points:
        if entry.group == "console_scripts" and entry.name in _SCRIPTS:
            yield (
                f"has a script `{entry.name}` too, and whichever was installed last has it: "
                "`asyncio-loopguard` and `python -m loopguard` are ours alone"
            )
        if entry.group == "pytest11" and entry.name == "loopguard":
            yield "has a pytest plugin `loopguard`: no harm, ours is `asyncio_loopguard`"
    if any(file.parts[:1] == ("loopguard",) for file in distribution.files or ()):
        yield "has a package `loopguard` too, in the same folder: uninstall it, then install us anew"


def _scripts() -> Iterator[str]:
    """Scripts of our names on the PATH that do not lead to us."""
    for name in _SCRIPTS:
        path = shutil.which(name)
        if path is not None and not _leads_to_us(Path(path)):
            yield f"`{name}` on the PATH is {path}, which is not ours: use `python -m loopguard`"


def _leads_to_us(script: Path) -> bool:
    try:
        with script.open("rb") as file:
            text = file.read(_SHORT)
    except OSError:
        return True  # nothing is known against it
    return b"from loopguard.cli import main" in text or not text.startswith(b"#!")
