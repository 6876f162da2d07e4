"""Whose code is it: the user's own, a library's, or the plumbing of loop and server?"""

from __future__ import annotations

import functools
import site
import sys
import sysconfig
from collections.abc import Iterable
from contextlib import suppress
from pathlib import PurePath

from loopguard.evidence import RawFrame

_PACKAGE_FOLDERS = {"site-packages", "dist-packages"}

PLUMBING = frozenset({
    "anyio", "asgiref", "asyncio", "concurrent", "contextlib", "contextvars", "daphne", "fastapi", "functools",
    "granian", "gunicorn", "h11", "httptools", "hypercorn", "importlib", "loopguard", "opentelemetry", "runpy",
    "sniffio", "starlette", "threading", "uvicorn", "uvloop", "wrapt",
})  # fmt: skip
"""Top-level names of what carries a callback to the user's code. Never to blame while anything else is there."""


class Ownership:
    """Tells the user's own frames from others, by where their file lies.

    The user's own is everything outside the standard library and the folders of installed packages, and inside
    these the packages of the application itself (`in_app`: top-level names).
    """

    def __init__(self, in_app: Iterable[str] = ()) -> None:
        self._in_app = frozenset(in_app)
        self._standard = _standard_library()
        self.is_library = functools.lru_cache(maxsize=4096)(self._is_library)

    def library(self, frame: RawFrame) -> bool:
        return self.is_library(frame.code.co_filename, _top(frame.module))

    def plumbing(self, frame: RawFrame) -> bool:
        return _top(frame.module) in PLUMBING and self.library(frame)

    def own_frame(self, stack: Iterable[RawFrame]) -> RawFrame | None:
        """The innermost frame of the user's, of a stack with the innermost first.

        Where there is none, the innermost that is no plumbing; None where all of it is.
        """
        frames = tuple(stack)
        rules = (self.library, self.plumbing)
        own = (next((each for each in frames if not rule(each)), None) for rule in rules)
        return next((frame for frame in own if frame is not None), None)

    def _is_library(self, filename: str, package: str) -> bool:
        if package == "loopguard":
            return True
        if filename.startswith("<"):
            # Typed in or generated. `<frozen …>` is the interpreter's; what dataclasses and their like generate
            # is nobody's line to mend, but at the prompt all there is.
            return package != "__main__"
        if _PACKAGE_FOLDERS.intersection(PurePath(filename).parts) or filename.startswith(
            self._standard
        ):
            return package not in self._in_app
        return package in PLUMBING and package not in self._in_app


def _top(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _standard_library() -> tuple[str, ...]:
    paths = {str(PurePath(functools.__file__).parent)}
    packages = set(site.getsitepackages())
    # A process that has given up its rights, or its root, may be able to import nothing any more, as these two do.
    with suppress(ImportError, OSError):
        paths |= {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
        packages |= {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        packages.add(site.getusersitepackages() if site.ENABLE_USER_SITE else "")
    return tuple(
        path.rstrip("/\\") + separator
        for path in {*paths, *packages}
        if path
        for separator in ("/", "\\")[: 2 if sys.platform == "win32" else 1]
    )
