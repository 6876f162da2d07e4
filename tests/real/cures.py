"""Reads the blocks of code out of docs/fixing.md, and from each what it claims to be reported as."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "fixing.md"

_HEADING_OR_BLOCK = re.compile(
    r"^#{2,3} (?P<heading>[^\n]+)$|^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
_MARK = re.compile(r"^(?P<before>.*)# stalls: (?P<cause>\w+)(?:, (?P<call>\S+))?$")


@dataclass(frozen=True)
class Mark:
    """The line of its block that is to be named, the cause, and the call if one is claimed."""

    line: int
    cause: str
    call: str | None


@dataclass(frozen=True)
class Block:
    """One block of Python; without a mark it claims to leave no stall."""

    section: str
    module: str
    code: str
    mark: Mark | None


def read_blocks(page: str) -> list[Block]:
    """All blocks in their order; each has a module's name of its own."""
    blocks: list[Block] = []
    section = ""
    for found in _HEADING_OR_BLOCK.finditer(page):
        if found["code"] is None:
            section = found["heading"]
        else:
            module = f"fixing_{len(blocks)}"
            blocks.append(Block(section, module, found["code"], _mark(found["code"])))
    return blocks


def _mark(code: str) -> Mark | None:
    marks = [
        # A mark on a line of its own is for the next.
        Mark(number if found["before"].strip() else number + 1, found["cause"], found["call"])
        for number, line in enumerate(code.splitlines(), 1)
        if (found := _MARK.search(line))
    ]
    assert len(marks) <= 1, code
    return marks[0] if marks else None
