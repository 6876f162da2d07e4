"""Reads from a module's source what each of its marked lines is expected to be reported as."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

_MARK = re.compile(r"# blocks (?P<case>\w+): (?P<calls>\S+), (?P<cause>\w+)$")


@dataclass(frozen=True)
class Mark:
    """What a stall on one marked line is to be reported as.

    A loop is a whole statement, any line and expression of which may be the one that was running:
    then `loop` is its source, and `code` and `calls` are empty. Else `line` is also `last_line`.
    """

    case: str
    file: str
    module: str
    line: int
    last_line: int
    function: str
    code: tuple[str, ...]
    calls: tuple[str, ...]
    cause: str
    loop: str | None


def read_marks(module: str, root: Path) -> dict[str, Mark]:
    """The marks of a module under root, by case."""
    file = module.replace(".", "/") + ".py"
    text = (root / file).read_text()
    tree = ast.parse(text)
    lines = text.splitlines()
    code = compile(text, file, "exec")
    marks = {}
    for number, line in enumerate(lines, 1):
        if found := _MARK.search(line):
            marked = number + 1 if line.lstrip().startswith("#") else number
            calls = () if found["calls"] == "-" else tuple(found["calls"].split("|"))
            statement = _statement(tree, marked)
            loop = _source(text, statement) if isinstance(statement, ast.For | ast.While) else None
            marks[found["case"]] = Mark(
                case=found["case"],
                file=file,
                module=module,
                line=marked,
                last_line=(loop and statement.end_lineno) or marked,
                function=_innermost(code, marked),
                code=() if loop else _expressions(statement, calls),
                calls=calls,
                cause=found["cause"],
                loop=loop,
            )
    return marks


def normal(code: str) -> str:
    """Source text without its layout, so that only the words count."""
    try:
        return ast.unparse(ast.parse(code))
    except SyntaxError:  # no expression of its own, as the head of a `with`
        return " ".join(code.split())


def _source(text: str, statement: ast.stmt) -> str:
    return " ".join((ast.get_source_segment(text, statement) or "").split())


def _statement(tree: ast.Module, line: int) -> ast.stmt:
    found = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and node.lineno == line]
    return found[-1]


def _expressions(statement: ast.stmt, calls: tuple[str, ...]) -> tuple[str, ...]:
    """The call of that name; of a `with`, what is entered, alone or as the statement shows it."""
    if isinstance(statement, ast.With) and calls[0].endswith(".__enter__"):
        entered = ast.unparse(statement.items[0].context_expr)
        return entered, f"with {entered}:"
    names = {call.rpartition(".")[2] for call in calls}
    return tuple(
        ast.unparse(node)
        for node in ast.walk(statement)
        if isinstance(node, ast.Call) and re.split(r"\W", ast.unparse(node.func))[-1] in names
    )


def _innermost(code: CodeType, line: int) -> str:
    """The qualified name of the innermost code that has that line, as this Python compiles it."""
    *_, (_, name) = sorted(_owners(code, line, 0))
    return name


def _owners(code: CodeType, line: int, depth: int) -> Iterator[tuple[int, str]]:
    if any(number == line for _, _, number in code.co_lines()):
        yield depth, code.co_qualname
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _owners(inner, line, depth + 1)
