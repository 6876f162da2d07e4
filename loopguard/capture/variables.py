"""One variable of a running frame, read from another thread."""

from __future__ import annotations

import ctypes
import sys
from types import FrameType
from typing import Any

UNKNOWN = object()


def local(frame: FrameType, name: str) -> Any:
    """The value of a local or closure variable; UNKNOWN where it is unbound.

    On CPython 3.11 `f_locals` copies all locals into a dict that lives as long as the frame; 3.12 can ask for one
    alone, and from 3.13 (PEP 667) `f_locals` is a view that copies nothing.
    """
    if _get_variable is None:
        return frame.f_locals.get(name, UNKNOWN)
    try:
        return _get_variable(frame, name)
    except NameError:
        return UNKNOWN


def _find() -> Any:
    if not (3, 12) <= sys.version_info < (3, 13):
        return None
    try:
        get = ctypes.PyDLL(None).PyFrame_GetVar
    except (OSError, AttributeError, TypeError):
        return None
    get.restype = ctypes.py_object
    get.argtypes = (ctypes.py_object, ctypes.py_object)
    return get


_get_variable = _find()
