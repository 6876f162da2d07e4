"""Which stalls of a loop are told of while they still last, and kept in the black box. No clock, no thread."""

from __future__ import annotations

from typing import NamedTuple
from uuid import uuid4

# What lasts this many budgets is told of while it lasts, and again whenever it has doubled.
_TOLD_FROM = 5
# The black box has it from the budget on, and anew whenever it has lasted half as long again. Not earlier than this: at
# a low budget most of the work of telling would be for what hardly ever is the end of a process.
_KEPT_FROM_NS = 50_000_000
_KEPT_ANEW = 1.5
_NEVER_NS = 1 << 62


class _Lasting(NamedTuple):
    """A stall that lasts: under which id it is told of, and how long it must be to be told of, or kept, the next time."""

    id: str
    told_ns: int
    kept_ns: int


class Early:
    """The callbacks of one loop since its last beat, each by the key of its looks. `boxed`: there is a black box."""

    def __init__(self, boxed: bool) -> None:
        self._boxed = boxed
        self._lasting: dict[object, _Lasting] = {}
        self._kept: object = None

    def id_of(self, key: object) -> str | None:
        """Under which id that callback was told of or kept; None where it was neither."""
        lasting = self._lasting.get(key)
        return None if lasting is None else lasting.id

    def may_be_due(self, key: object, most_ns: int, budget_ns: int) -> bool:
        """Whether anything is to be done about it, if it has held the loop for all of that time."""
        lasting = self._of(key, budget_ns)
        return most_ns >= min(lasting.told_ns, lasting.kept_ns)

    def due(self, key: object, held_ns: int, budget_ns: int) -> tuple[bool, bool]:
        """Whether it is to be kept now, and whether it is to be told of: not again for this length."""
        lasting = self._of(key, budget_ns)
        keep, tell = held_ns >= lasting.kept_ns, held_ns >= lasting.told_ns
        if keep:
            self._kept = key
            lasting = lasting._replace(kept_ns=round(_KEPT_ANEW * held_ns))
        if tell:
            doublings = (held_ns // lasting.told_ns).bit_length()
            lasting = lasting._replace(told_ns=lasting.told_ns << doublings)
        if keep or tell:
            self._lasting[key] = lasting
        return keep, tell

    def let_go(self, key: object) -> str | None:
        """The id of what is kept, unless it is that callback, which still runs; None where nothing is."""
        if self._kept is None or self._kept == key:
            return None
        kept, self._kept = self._kept, None
        return self._lasting[kept].id

    def clear(self) -> None:
        """The loop has beaten: what comes next is another stall."""
        self._lasting.clear()

    def _of(self, key: object, budget_ns: int) -> _Lasting:
        kept_ns = max(budget_ns, _KEPT_FROM_NS) if self._boxed else _NEVER_NS
        return self._lasting.get(key) or _Lasting(uuid4().hex, _TOLD_FROM * budget_ns, kept_ns)
