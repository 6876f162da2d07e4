"""Control groups to put a process of a test into; where this machine grants none, the test is skipped."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def frozen_at_will() -> Iterator[Path]:
    """A group of version 2, which has `cgroup.freeze`."""
    mount = _mount("cgroup2", "")
    if mount is None:
        pytest.skip("no cgroup v2 is mounted here")
    with _made(mount) as group:
        if not (group / "cgroup.freeze").exists():
            pytest.skip("this kernel freezes no cgroup v2")
        yield group


@contextmanager
def limited(quota_us: int, period_us: int) -> Iterator[Path]:
    """A group with a CPU limit, of the version that has the CPU controller here."""
    first = _mount("cgroup", "cpu")
    second = _mount("cgroup2", "")
    control = None if second is None else second / "cgroup.subtree_control"
    granted = control is not None and control.exists() and "cpu" in control.read_text().split()
    mount = second if granted else first
    if mount is None:
        pytest.skip("no cgroup with a CPU controller is granted here")
    with _made(mount) as group:
        try:
            if granted:
                (group / "cpu.max").write_text(f"{quota_us} {period_us}")
            else:
                (group / "cpu.cfs_period_us").write_text(str(period_us))
                (group / "cpu.cfs_quota_us").write_text(str(quota_us))
        except OSError as error:
            pytest.skip(f"no CPU limit can be set here: {error}")
        yield group


def enter(group: Path, pid: int) -> None:
    (group / "cgroup.procs").write_text(str(pid))


@contextmanager
def _made(mount: Path) -> Iterator[Path]:
    """It is taken away when its processes have ended, which is to be seen to before."""
    group = mount / f"test-{os.getpid()}-{time.monotonic_ns()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group may be made here: {error}")
    try:
        yield group
    finally:
        for _ in range(100):
            with suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.05)


def _mount(kind: str, controller: str) -> Path | None:
    with suppress(OSError):
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, point, of, options, *_ = line.split()
            if of == kind and (not controller or controller in options.split(",")):
                return Path(point)
    return None
