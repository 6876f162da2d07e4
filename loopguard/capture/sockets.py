"""When the data of a request came, by the kernel's account of its connection."""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from types import FunctionType, MethodType
from typing import Any

_MOST_ASKED = 50
_TCP_INFO = getattr(socket, "TCP_INFO", None)
# `tcpi_last_data_recv`: behind 8 bytes, the 12th of the 32-bit fields of Linux's `struct tcp_info`.
_AT = 8 + 11 * 4
_INTERNET = (socket.AF_INET, socket.AF_INET6)


def since_last_data_ns(receive: object) -> int | None:
    """Nanoseconds since the connection that an ASGI `receive` belongs to last got data; None where it cannot be asked.

    The kernel counts in its ticks, of 4 ms as a rule. Not to be had outside Linux, from a Unix socket, or from a
    server whose `receive` leads to no transport.
    """
    connection = _connection_of(receive)
    if connection is None or _TCP_INFO is None:
        return None
    try:
        if connection.family not in _INTERNET:
            return None
        told = connection.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _AT + 4)
    except (OSError, AttributeError):  # closed by now, or no socket of the system's
        return None
    return None if len(told) < _AT + 4 else int(struct.unpack_from("=I", told, _AT)[0]) * 1_000_000


def server_side_of(receive: object) -> Any:
    """The server's own object for the request, which knows its transport; None where nothing leads there.

    Telemetry wraps `receive`, so the one inside is sought in what each function holds. Nothing of it is called.
    """
    for owner in islice(_owners(receive), _MOST_ASKED):
        if _own(owner, "transport") is not None:
            return owner
    return None


def _connection_of(receive: object) -> Any:
    server_side = server_side_of(receive)
    get = None if server_side is None else getattr(server_side.transport, "get_extra_info", None)
    return None if get is None else get("socket")


def _owners(function: Any) -> Iterator[object]:
    """The objects to which a function, and those that it closes over or wraps around, were bound; the nearest first."""
    found, seen = deque([function]), set[int]()
    while found and len(seen) < _MOST_ASKED:
        each = found.popleft()
        if id(each) in seen or not callable(each):
            continue
        seen.add(id(each))
        if isinstance(each, MethodType):
            yield each.__self__
            found.append(each.__func__)
            found.append(_own(each.__self__, "receive"))
        elif isinstance(each, partial):
            found += [each.func, *each.args]
        found.append(_own(each, "__wrapped__"))
        found += _closed_over(each)


def _closed_over(function: object) -> Iterator[object]:
    for cell in (function.__closure__ or ()) if isinstance(function, FunctionType) else ():
        with suppress(ValueError):  # an empty one
            yield cell.cell_contents


def _own(owner: object, name: str) -> Any:
    """An attribute of the instance's own: none of the user's code runs to tell it."""
    try:
        return object.__getattribute__(owner, "__dict__").get(name)
    except (AttributeError, TypeError):
        return None
