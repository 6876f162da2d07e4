"""The source of the very expression that a frame was running."""

from __future__ import annotations

import importlib.util
import inspect
import linecache
import marshal
import math
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from loopguard.evidence import RawFrame
from loopguard.explain.source import LONGEST, expression_of, line_of

pytestmark = pytest.mark.core

SEEN: list[RawFrame] = []


def see(*_arguments: object, **_options: object) -> int:
    """Note where the caller is, in mid-call."""
    frame = sys._getframe(1)
    SEEN.append(RawFrame(frame.f_code, frame.f_lasti, "shop"))
    return 1


class Manager:
    def __enter__(self) -> None:
        frame = sys._getframe(1)
        SEEN.append(RawFrame(frame.f_code, frame.f_lasti, "shop"))

    def __exit__(self, *_error: object) -> None:
        pass


Run = Callable[[str], RawFrame]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs source text as a module from a file, and returns the frame that called `see()`."""

    def _run(text: str) -> RawFrame:
        path = tmp_path / "shop.py"
        path.write_text(text, encoding="utf-8")
        SEEN.clear()
        namespace = {"see": see, "manager": Manager(), "__name__": "shop"}
        exec(compile(text, str(path), "exec"), namespace)
        return SEEN[-1]

    return _run


@pytest.mark.parametrize(
    "text, expression",
    [
        ("x = 1 + see(2)", "see(2)"),
        ("x = [see(item) for item in 'ab'] + [3]", "see(item)"),
        ("def f():\n    return not see()\nf()", "see()"),
        ("x = see(\n    1,\n    key=2,\n) + 3", "see( 1, key=2, )"),
        ("x = 'grüße', '日本', see('ö')  # ü", "see('ö')"),
        ("with manager:\n    pass", "manager"),
        ("with manager, manager as m:\n    pass", "manager"),
        ("import math; see(math.pi); y = 1", "see(math.pi)"),
    ],
)
def test_the_expression_is_the_one_that_was_running(run: Run, text: str, expression: str) -> None:
    """Over several lines it is put on one; columns count bytes of UTF-8."""
    assert expression_of(run(text), math.inf) == expression


def test_the_line_is_that_of_the_expression(run: Run) -> None:
    assert line_of(run("x = 1\ny = (\n    see()\n)\n")) == 3


def test_a_long_expression_is_cut(run: Run) -> None:
    expression = expression_of(run(f"see('{'x' * 500}')"), math.inf)
    assert expression is not None
    assert len(expression) == LONGEST
    assert expression.endswith("…")


def test_a_file_that_was_changed_since_tells_nothing(run: Run) -> None:
    """Better no source than that of other code."""
    frame = run("see(1)")
    path = Path(frame.code.co_filename)
    path.write_text("see(other)\n")
    linecache.checkcache(str(path))
    assert expression_of(frame, fresh_until=0) is None


def test_a_file_that_was_changed_but_not_there_still_counts(run: Run) -> None:
    """Only what stands after the function is new: it compiles to the same code."""
    frame = run("def f():\n    see(1)\nf()\n")
    path = Path(frame.code.co_filename)
    path.write_text(path.read_text() + "x = 'new'\n")
    linecache.checkcache(str(path))
    assert expression_of(frame, fresh_until=0) == "see(1)"


def test_a_file_whose_function_moved_tells_nothing(run: Run) -> None:
    frame = run("def f():\n    see(1)\nf()\n")
    path = Path(frame.code.co_filename)
    path.write_text("# a comment\n" + path.read_text())
    linecache.checkcache(str(path))
    assert expression_of(frame, fresh_until=0) is None


def test_a_file_that_no_longer_compiles_tells_nothing(run: Run) -> None:
    frame = run("see(1)")
    Path(frame.code.co_filename).write_text("see(1\n")
    linecache.checkcache(frame.code.co_filename)
    assert expression_of(frame, fresh_until=0) is None


def test_a_file_that_is_as_old_as_the_process_is_not_compiled_again(run: Run) -> None:
    frame = run("see(1)")
    path = Path(frame.code.co_filename)
    os.utime(path, (1, 1))
    assert expression_of(frame, fresh_until=2) == "see(1)"


def test_a_missing_file_tells_nothing_but_the_line(run: Run) -> None:
    frame = run("\n\nsee(1)")
    Path(frame.code.co_filename).unlink()
    linecache.checkcache(frame.code.co_filename)
    assert expression_of(frame, math.inf) is None
    assert line_of(frame) == 3


def test_generated_code_has_a_line_and_no_source() -> None:
    SEEN.clear()
    exec("\nsee(1)", {"see": see})
    assert expression_of(SEEN[-1], math.inf) is None
    assert line_of(SEEN[-1]) == 2


def test_a_line_that_is_no_longer_in_the_file_tells_nothing(run: Run) -> None:
    frame = run("\n\n\nsee(1)")
    Path(frame.code.co_filename).write_text("\n")
    linecache.checkcache(frame.code.co_filename)
    assert expression_of(frame, math.inf) is None


def test_code_without_columns_gives_its_whole_line(run: Run) -> None:
    """As with `python -X no_debug_ranges`."""
    frame = run("x = 1 + see(2)")
    bare = frame._replace(code=_without_columns(frame.code))
    assert expression_of(bare, math.inf) == "x = 1 + see(2)"


def _without_columns(code: CodeType) -> CodeType:
    script = (
        "import marshal, pathlib, sys; path = pathlib.Path(sys.argv[1]);"
        "sys.stdout.buffer.write(marshal.dumps(compile(path.read_text(), str(path), 'exec')))"
    )
    command = [sys.executable, "-X", "no_debug_ranges", "-c", script, code.co_filename]
    bare: CodeType = marshal.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert bare.co_code == code.co_code
    return bare


def test_a_module_whose_loader_has_the_source_is_read_from_there() -> None:
    """From a zip file, say: there is no file to have changed."""
    text = "see(1)\n"

    class Loader:
        def get_source(self, _name: str) -> str:
            return text

    name = "in_a_zip.py"
    spec = importlib.util.spec_from_loader("in_a_zip", loader=None)
    assert spec is not None
    module: Any = types.ModuleType("in_a_zip")
    module.__loader__, module.see, module.__spec__ = Loader(), see, spec
    spec.loader = module.__loader__
    linecache.lazycache(name, vars(module))
    exec(compile(text, name, "exec"), vars(module))
    assert expression_of(SEEN[-1], time.time()) == "see(1)"


def test_a_frame_that_has_not_begun_is_on_the_line_of_its_function() -> None:
    def function() -> None:
        see()

    frame = RawFrame(function.__code__, -1, None)
    assert line_of(frame) == inspect.getsourcelines(function)[1]
