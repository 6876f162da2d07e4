"""The cost of a CPU limit, read from trees as containers see them."""

from __future__ import annotations

from pathlib import Path

import pytest

from loopguard.capture.cgroup import Throttling, groups, parse
from loopguard.evidence import Throttled

pytestmark = pytest.mark.core

SECOND = "nr_periods 8\nnr_throttled 3\nthrottled_usec 250000\n"
FIRST = "nr_periods 8\nnr_throttled 3\nthrottled_time 250000000\n"
COST = Throttled(8, 3, 250_000_000, 100_000_000)


def test_both_versions_tell_the_same() -> None:
    assert parse(SECOND, "20000 100000\n") == COST
    assert parse(FIRST, "20000 100000\n") == COST


@pytest.mark.parametrize("limit", ["max 100000", "-1 100000"])
def test_where_nothing_is_limited_nothing_is_told(limit: str) -> None:
    assert parse(SECOND, limit) is None


def test_all_groups_up_to_the_mount_are_found() -> None:
    mounts = "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate"
    assert list(groups("0::/pod/box", mounts)) == [
        "/sys/fs/cgroup/pod/box",
        "/sys/fs/cgroup/pod",
        "/sys/fs/cgroup",
    ]


def test_a_container_that_is_mounted_as_the_root_is_found() -> None:
    """As without a namespace of its own: its path is the host's, and so is the root of the mount."""
    membership = "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n"
    mounts = (
        "31 30 0:27 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
        r"32 30 0:28 /docker/abc /sys/fs/c\040group/cpu ro - cgroup cgroup rw,cpu,cpuacct"
    )
    assert list(groups(membership, mounts)) == ["/sys/fs/c group/cpu"]


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """A process whose pod is limited, and whose own group is not."""
    proc, group = tmp_path / "proc", tmp_path / "groups" / "pod" / "box"
    proc.mkdir()
    group.mkdir(parents=True)
    (proc / "cgroup").write_text("0::/pod/box\n")
    (proc / "mountinfo").write_text(f"30 24 0:26 / {tmp_path}/groups rw - cgroup2 none rw\n")
    (group / "cpu.stat").write_text("nr_periods 0\nnr_throttled 0\nthrottled_usec 0\n")
    (group / "cpu.max").write_text("max 100000\n")
    (group.parent / "cpu.stat").write_text(SECOND)
    (group.parent / "cpu.max").write_text("20000 100000\n")
    return tmp_path


def test_what_it_cost_is_told_since_it_was_last_noted(box: Path) -> None:
    throttling = Throttling(box / "proc")
    assert throttling.since_noted() == Throttled(0, 0, 0, 100_000_000)
    stat = box / "groups" / "pod" / "cpu.stat"
    stat.write_text("nr_periods 12\nnr_throttled 6\nthrottled_usec 350000\n")
    cost = Throttled(4, 3, 100_000_000, 100_000_000)
    assert [throttling.since_noted(), throttling.since_noted()] == [cost, cost]
    throttling.note()
    assert throttling.since_noted() == Throttled(0, 0, 0, 100_000_000)


def test_a_group_that_is_gone_costs_nothing(box: Path) -> None:
    throttling = Throttling(box / "proc")
    (box / "groups" / "pod" / "cpu.stat").unlink()
    assert throttling.since_noted() is None
    throttling.note()
    assert throttling.since_noted() is None


def test_where_there_are_no_groups_nothing_is_told(tmp_path: Path) -> None:
    assert Throttling(tmp_path).since_noted() is None
