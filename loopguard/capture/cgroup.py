"""What a CPU limit has cost this process: cpu.stat of its cgroup and of those above it (Linux, cgroups v1 and v2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from loopguard.capture.small_files import read_small
from loopguard.evidence import Throttled

_LONGEST = 4096
_SELF = Path("/proc/self")


class Throttling:
    """Reads what throttling has cost since it was last noted. It keeps no file open, and nothing where there is no limit.

    A container's limit may be set on any group above that of the process; the one that costs most is told of.
    """

    def __init__(self, proc: Path = _SELF) -> None:
        try:
            membership, mounts = (proc / "cgroup").read_text(), (proc / "mountinfo").read_text()
        except (OSError, ValueError):
            membership = mounts = ""
        self._groups = [Path(group) for group in groups(membership, mounts)]
        self._noted: dict[Path, Throttled] = {}
        self.note()

    def note(self) -> None:
        """From now on."""
        self._noted = {group: seen for group in self._groups if (seen := _read(group)) is not None}

    def since_noted(self) -> Throttled | None:
        """What it has cost since then; None where there is no limit."""
        costs = [
            _between(before, now)
            for group, before in self._noted.items()
            if (now := _read(group)) is not None
        ]
        return max(costs, key=lambda cost: cost.throttled_ns, default=None)


def groups(membership: str, mounts: str) -> Iterator[str]:
    """The folders of the group of a process and of those above it, innermost first, as far as they are to be seen.

    `membership` is /proc/pid/cgroup (cgroups(7)), `mounts` is /proc/pid/mountinfo (proc(5)).
    """
    member_of: dict[str, str] = {}
    for line in membership.splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            member_of["cgroup2"] = path
        elif "cpu" in controllers.split(","):
            member_of["cgroup"] = path
    for line in mounts.splitlines():
        mount, _, of = line.partition(" - ")
        kind, options = of.partition(" ")[0], of.rpartition(" ")[2]
        if kind in member_of and (kind == "cgroup2" or "cpu" in options.split(",")):
            root, point = (_unescaped(field) for field in mount.split(" ")[3:5])
            group = PurePosixPath(member_of[kind])
            below = group.relative_to(root) if group.is_relative_to(root) else PurePosixPath()
            inside = PurePosixPath(point) / below
            while inside.is_relative_to(point):
                yield str(inside)
                if str(inside) == point:
                    break
                inside = inside.parent


def parse(stat: str, limit: str) -> Throttled | None:
    """From the text of cpu.stat and that of cpu.max (`20000 100000`: microseconds of quota and of period).

    None where nothing is limited, or where it tells of no periods.
    """
    try:
        figures = {name: int(value) for name, value in map(str.split, stat.splitlines())}
        quota, period = limit.split()
        if quota in ("max", "-1"):
            return None
        nanoseconds = figures.get("throttled_time", 1000 * figures.get("throttled_usec", 0))
        return Throttled(
            figures["nr_periods"], figures["nr_throttled"], nanoseconds, 1000 * int(period)
        )
    except (ValueError, KeyError):
        return None


def _read(group: Path) -> Throttled | None:
    stat = _text(group / "cpu.stat")
    if "nr_periods" not in stat:  # the root has no limit
        return None
    return parse(stat, _limit(group))


def _limit(group: Path) -> str:
    """As v2 has it."""
    v1 = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    return _text(group / "cpu.max") or " ".join(_text(group / name) for name in v1)


def _text(file: Path) -> str:
    """The watchdog reads it between two looks, and must not have to ask for the GIL again."""
    return read_small(str(file), _LONGEST).decode("ascii", "replace")


def _between(before: Throttled, now: Throttled) -> Throttled:
    return Throttled(
        now.periods - before.periods,
        now.throttled - before.throttled,
        now.throttled_ns - before.throttled_ns,
        now.period_ns,
    )


def _unescaped(field: str) -> str:
    r"""mountinfo writes a space as `\040`."""
    return field.encode("latin-1", "backslashreplace").decode("unicode_escape")
