"""The floors of the house: imports go one way only, what is pure stays pure, and no room is a mere drawer."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import loopguard

pytestmark = pytest.mark.core

ROOT = Path(__file__).parent.parent
HOUSE = ROOT / "loopguard"

DATA = {"record", "config", "evidence", "exempt", "clock"}
ENGINE = {"capture", "explain", "watch", "tell"}

# Which rooms each room may import from, besides itself. A room is a folder of `loopguard`, or a file beside them;
# "loopguard" is the front door, `loopguard/__init__.py`. Of the doors to others' worlds some stand below the
# installation, which opens them; the others install.
MAY_IMPORT: dict[str, set[str]] = {
    "record": set(),
    "config": {"record"},
    "evidence": {"record"},
    "clock": set(),
    "exempt": {"clock"},
    "lasting": set(),
    "capture": DATA,
    "explain": DATA,
    "watch": DATA | {"capture", "lasting"},
    "tell": DATA | {"lasting"},
    "black_box": DATA | {"capture", "explain", "tell"},
    "apps": DATA | {"capture", "explain"},
    "engine": DATA | ENGINE | {"apps", "black_box", "lasting"},
    "guard": DATA | {"apps", "capture", "engine", "tell", "watch"},
    "testing": DATA | {"capture", "explain", "guard", "integrations.served", "tell"},
    "show": {"record", "tell"},  # of what tells: how a name is made printable, and a line of JSON
    "integrations.asgi": DATA | {"capture", "explain", "guard"},
    "integrations.served": set(),
    "integrations.profiling": DATA,
    "installation": DATA
    | {"guard", "integrations.asgi", "integrations.served", "integrations.profiling"},
    "integrations": DATA | {"installation", "testing"},
    "loopguard": DATA | {"guard", "installation"},
    "diagnosis": DATA | {"black_box", "capture", "guard", "integrations.asgi", "watch"},
    "cli": DATA | {"tell", "show", "loopguard", "diagnosis", "black_box"},
    "__main__": {"cli"},
}

# The doors in here stand apart: none opens into another.
APART = {"integrations"}

SHOWN_PURELY = ("parse", "choose", "summary", "words", "text", "diff", "document", "speedscope")

# What decides from data alone has no clock, thread, loop or network of its own.
PURE = (
    *("explain/", "watch/detector.py", "watch/early.py", "watch/kept_waiting.py"),
    *("record.py", "evidence.py", "config.py", "tell/limits.py"),
    *("tell/pending.py", "tell/attributes.py"),
    *("black_box/remains.py", "black_box/rebuild.py"),
    *("testing/verdict.py", "testing/words.py", "testing/windows.py", "testing/baseline.py"),
    *(f"show/{name}.py" for name in SHOWN_PURELY),
)
IMPURE = {
    *("asyncio", "concurrent", "ctypes", "multiprocessing", "select", "signal", "socket"),
    *("subprocess", "threading", "time"),
}
DECIDES_IN = "watch/detector.py"  # and this one does not even know the system that it runs on
OF_THE_SYSTEM = {"os", "pathlib", "sys", "opentelemetry", "structlog"}


class Import(NamedTuple):
    """One import: which file (relative to the package) imports which module, and on which line."""

    file: str
    module: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def imports_of(source: str, file: str) -> Iterator[Import]:
    """Every import in a file, wherever in it: at the top, in a function, under TYPE_CHECKING."""
    package = ["loopguard", *Path(file).parent.parts]
    for node in ast.walk(ast.parse(source, file)):
        if isinstance(node, ast.Import):
            yield from (Import(file, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from loopguard import config` means the room, `from loopguard import install` the front door.
                inner = f"{module}.{alias.name}"
                known = module.split(".")[0] == "loopguard" and is_module(inner)
                yield Import(file, inner if known else module, node.lineno)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def room_of(file: str) -> str:
    parts = Path(file).with_suffix("").parts
    return "loopguard" if parts == ("__init__",) else _room(parts)


def room_entered(module: str) -> str | None:
    """The room that an import opens; None where it is not of this house."""
    first, _, rest = module.partition(".")
    return None if first != "loopguard" else _room(tuple(rest.split("."))) or "loopguard"


def _folder(room: str) -> str:
    return room.partition(".")[0]


def _room(parts: tuple[str, ...]) -> str:
    file = ".".join(parts[:2])
    return file if file in MAY_IMPORT else parts[0]


def violations(house: Path) -> list[str]:
    """Every import that goes up the stairs, or out of a pure room."""
    found = []
    for path in sorted(house.rglob("*.py")):
        file = path.relative_to(house).as_posix()
        for each in imports_of(path.read_text("utf-8"), file):
            found += [f"{each}: {why}" for why in forbidden(each)]
    return found


def forbidden(each: Import) -> Iterator[str]:
    """Why this import must not be."""
    room, entered = room_of(each.file), room_entered(each.module)
    if room not in MAY_IMPORT:
        yield f"no floor is known for {room}"
    elif entered is not None and _folder(entered) == _folder(room) and _folder(room) in APART:
        if Path(each.file).with_suffix("").parts[1] not in each.module.split("."):
            yield f"the doors in {_folder(room)} stand apart"
    elif entered is not None and entered != room and entered not in MAY_IMPORT[room]:
        yield f"{room} may not import {entered}"
    top = each.module.partition(".")[0]
    if each.file.startswith(PURE) and top in IMPURE:
        yield f"{each.file} is pure"
    if each.file == DECIDES_IN and top in OF_THE_SYSTEM:
        yield f"{each.file} decides from timestamps alone"


def plant(house: Path, file: str, source: str) -> None:
    planted = house / file
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(source, "utf-8")


def own_files(*patterns: str) -> list[Path]:
    """The project's own files of these names, without what tools leave behind."""
    found = [path for pattern in patterns for path in ROOT.rglob(pattern) if path.is_file()]
    made = {"dist", "build", "node_modules", "__pycache__"}
    return [
        path
        for path in found
        if not any(part.startswith(".") and part != ".ci" for part in path.relative_to(ROOT).parts)
        and not made.intersection(path.relative_to(ROOT).parts)
    ]


def test_imports_go_one_way() -> None:
    assert violations(HOUSE) == []


def test_the_table_goes_one_way_itself() -> None:
    """No room may import one that may import it, also not by a detour."""
    reached = {room: set(below) for room, below in MAY_IMPORT.items()}
    for _ in MAY_IMPORT:
        for below in reached.values():
            below |= {far for near in below for far in MAY_IMPORT[near]}
    assert [room for room, below in reached.items() if room in below] == []


def test_every_room_has_its_floor() -> None:
    rooms = {room_of(path.relative_to(HOUSE).as_posix()) for path in HOUSE.rglob("*.py")}
    assert rooms <= set(MAY_IMPORT)


@pytest.mark.parametrize(
    "file, source, named",
    [
        ("record.py", "from loopguard.config import Config", "record may not import config"),
        ("config.py", "import loopguard.evidence", "config may not import evidence"),
        ("evidence.py", "from loopguard.tell import log", "evidence may not import tell"),
        ("exempt.py", "from .record import Stall", "exempt may not import record"),
        ("capture/x.py", "import loopguard.explain.call", "capture may not import explain"),
        ("capture/x.py", "from ..watch import loops", "capture may not import watch"),
        (
            "explain/x.py",
            "from loopguard.capture.clocks import y",
            "explain may not import capture",
        ),
        ("explain/x.py", "from loopguard import capture", "explain may not import capture"),
        ("explain/x.py", "from loopguard.tell.log import x", "explain may not import tell"),
        ("watch/x.py", "from loopguard.explain import call", "watch may not import explain"),
        ("watch/x.py", "from loopguard.guard import Guard", "watch may not import guard"),
        ("tell/x.py", "from loopguard.guard import Guard", "tell may not import guard"),
        ("tell/x.py", "from loopguard.watch import timer", "tell may not import watch"),
        ("tell/x.py", "from loopguard.capture import clocks", "tell may not import capture"),
        ("tell/x.py", "from loopguard import install", "tell may not import loopguard"),
        ("black_box/x.py", "from loopguard.watch import timer", "black_box may not import watch"),
        ("black_box/remains.py", "import time", "black_box/remains.py is pure"),
        ("tell/x.py", "from loopguard.black_box import box", "tell may not import black_box"),
        ("guard.py", "import loopguard", "guard may not import loopguard"),
        ("guard.py", "from .integrations import asgi", "guard may not import integrations"),
        ("guard.py", "import loopguard.cli as c", "guard may not import cli"),
        ("integrations/x.py", "from .asgi import Layer", "the doors in integrations stand apart"),
        ("integrations/x.py", "from loopguard.integrations import asgi", "stand apart"),
        ("integrations/x.py", "import loopguard.guard", "integrations may not import guard"),
        ("integrations/asgi.py", "import loopguard.installation", "may not import installation"),
        ("integrations/asgi.py", "from . import served", "the doors in integrations stand apart"),
        ("installation.py", "import loopguard.integrations.x", "may not import integrations"),
        ("installation.py", "import loopguard.cli", "installation may not import cli"),
        ("installation.py", "from . import uninstall", "installation may not import loopguard"),
        ("__init__.py", "from loopguard.cli import main", "loopguard may not import cli"),
        ("__init__.py", "from .watch import timer", "loopguard may not import watch"),
        ("cli/x.py", "from loopguard.guard import Guard", "cli may not import guard"),
        ("cli/demo/x.py", "from loopguard.watch import timer", "cli may not import watch"),
        ("show/x.py", "from loopguard.guard import Guard", "show may not import guard"),
        ("show/page/x.py", "from loopguard.capture import clocks", "show may not import capture"),
        ("attic/x.py", "import json", "no floor is known for attic"),
        ("explain/x.py", "import threading", "explain/x.py is pure"),
        ("explain/x.py", "from time import monotonic", "explain/x.py is pure"),
        ("explain/x.py", "import concurrent.futures", "explain/x.py is pure"),
        ("watch/detector.py", "import time", "watch/detector.py is pure"),
        ("watch/detector.py", "import os.path", "decides from timestamps alone"),
        ("tell/limits.py", "import time", "tell/limits.py is pure"),
        ("config.py", "import socket", "config.py is pure"),
    ],
)
def test_a_planted_violation_is_named(file: str, source: str, named: str, tmp_path: Path) -> None:
    plant(tmp_path, file, source)
    (found,) = violations(tmp_path)
    assert found.startswith(f"{file}:1 imports ")
    assert named in found


@pytest.mark.parametrize(
    "around",
    [
        "def late():\n    {}",
        "class Within:\n    async def late(self):\n        {}",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {}",
        "try:\n    {}\nexcept ImportError:\n    pass",
    ],
)
def test_a_planted_violation_is_named_wherever_it_hides(around: str, tmp_path: Path) -> None:
    plant(tmp_path, "explain/x.py", around.format("import loopguard.capture.clocks"))
    (found,) = violations(tmp_path)
    assert "explain may not import capture" in found


@pytest.mark.parametrize(
    "file, source",
    [
        ("guard.py", "from loopguard.tell.log import x\nfrom .watch import timer"),
        ("explain/x.py", "from loopguard.explain.call import y\nfrom . import paths"),
        ("cli/demo/x.py", "import loopguard\nfrom loopguard.cli.demo import z\nimport threading"),
        ("installation.py", "from loopguard.integrations import asgi\nimport threading"),
        ("integrations/x.py", "from loopguard.installation import install\nimport threading"),
    ],
)
def test_what_is_allowed_is_not_named(file: str, source: str, tmp_path: Path) -> None:
    plant(tmp_path, file, source)
    assert violations(tmp_path) == []


def test_every_module_says_in_a_sentence_what_it_is() -> None:
    silent = [
        path.relative_to(ROOT).as_posix()
        for path in own_files("*.py")
        if path.relative_to(ROOT).parts[0] in ("loopguard", "tests", "benchmarks")
        and not (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").strip()
    ]
    assert silent == []


def test_the_front_door_shows_exactly_what_is_built() -> None:
    built = [
        *("AlreadyInstalledError", "ConfigError", "Frame", "Guard", "Stall"),
        *("allow_blocking", "install", "uninstall", "wrap"),
    ]
    assert loopguard.__all__ == built
    assert loopguard.__all__ == sorted(loopguard.__all__)
    assert all(hasattr(loopguard, name) for name in built)


def test_the_front_door_opens_no_other_door() -> None:
    """What else can be seen on it are rooms, dunders, and nothing that somebody could mistake for public."""
    seen = {name for name in vars(loopguard) if re.match("[A-Za-z]", name)}
    rooms = {name for name in seen if f"loopguard.{name}" in sys.modules}
    assert seen - set(loopguard.__all__) - rooms == {"TYPE_CHECKING"}
    assert {getattr(loopguard, name).__module__ for name in loopguard.__all__} <= set(sys.modules)
    assert not hasattr(loopguard, "guards")


def test_no_room_is_a_drawer_for_what_has_no_place() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"}
    names = {part for path in own_files("*.py") for part in path.relative_to(ROOT).parts}
    assert {name for name in names if Path(name).stem.lower() in drawers} == set()


# The words are put together here, so that this file does not hold them itself.
NOT_TO_BE_READ = {
    "an index name that belongs to another project": r"pip3? install (-U )?['\"]?" + r"loopguard\b",
    "a path of somebody's machine": "|".join(
        [re.escape(f"{path}/") for path in (ROOT, Path.home())] + [r"(?<![\w.>}])/work" + r"/\w"]
    ),
    "work left undone": r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b",
}


@pytest.mark.parametrize("what", NOT_TO_BE_READ)
def test_nowhere_is_there(what: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in own_files(
            "*.py", "*.md", "*.toml", "*.yml", "*.yaml", "*.html", "run", "jaeger"
        )
        if path != Path(__file__)
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if re.search(NOT_TO_BE_READ[what], line)
    ]
    assert found == []
