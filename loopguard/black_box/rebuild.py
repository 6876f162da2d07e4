"""From JSON back to the record that it was written from: what is no such record is refused as a whole."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def rebuild(kind: type[T], value: object) -> T:
    """The dataclass `kind` from a dict of its fields; keys that it does not know are passed over.

    Raises:
        ValueError, OverflowError: a field is missing that has no default and may not be None, or is of another type.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"no {kind.__name__}")
    hashable: Any = kind
    hints = _hints(hashable)
    known = {
        field.name: _checked(hints[field.name], value.get(field.name))
        for field in fields(kind)  # type: ignore[arg-type]
        if field.name in value or field.default is MISSING
    }
    return kind(**known)


def _checked(kind: Any, value: object) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return _checked(next(each for each in inner if each is not type(None)), value)
    if origin is Literal:
        return _one_of(inner, value)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError("no list")
        return tuple(_checked(inner[0], item) for item in value)
    if hasattr(kind, "__dataclass_fields__"):
        return rebuild(kind, value)
    return _plain(kind, value)


def _one_of(words: tuple[Any, ...], value: object) -> Any:
    if not isinstance(value, str) or value not in words:
        raise ValueError("no word that is known")
    return value


def _plain(kind: type[Any], value: object) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):  # type: ignore[arg-type]
        raise ValueError(f"no {kind.__name__}")
    return value


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
