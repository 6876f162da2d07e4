"""How a file is named: short where it is the user's own, guarded where its name may be a secret."""

from __future__ import annotations

import json
import sys
from pathlib import PurePath

import pytest

from loopguard.explain.paths import guarded, shown

pytestmark = pytest.mark.core

ROOT = PurePath("/srv/app")


@pytest.mark.parametrize(
    "path, name",
    [
        ("/srv/app/api/users.py", "api/users.py"),
        ("/srv/app", "."),
        ("/srv/apple/users.py", "/srv/apple/users.py"),
        ("/usr/lib/python3/queue.py", "/usr/lib/python3/queue.py"),
        ("<string>", "<string>"),
        ("users.py", "users.py"),
    ],
)
def test_a_source_file_is_shown_relative_to_the_root(path: str, name: str) -> None:
    assert shown(path, ROOT) == name


@pytest.mark.parametrize(
    "path, name",
    [
        ("/srv/app/data/table.csv", "data/table.csv"),
        ("/home/jane/letters/to-john.txt", "/home/jane/…"),
        ("/home/jane/letters", "/home/jane/…"),
        ("/home/jane", "/home/jane"),
        ("/tmp", "/tmp"),
        ("/", "/"),
    ],
)
def test_a_file_outside_is_named_by_its_first_two_parts(path: str, name: str) -> None:
    assert guarded(path, ROOT) == name


def test_a_file_of_the_python_installation_has_its_whole_name() -> None:
    assert guarded(json.__file__, ROOT) == json.__file__
    inside = f"{sys.prefix}/lib/some/file"
    assert guarded(inside, ROOT) == inside
