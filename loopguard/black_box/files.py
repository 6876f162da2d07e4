"""The files of a black box: made for their owner alone, and locked for as long as their process lives.

Each process has two, of one name: `….stalls`, which holds the lock, and `….probe`, into which the probe writes. That a
process lives is told by the lock (flock(2)) and never by its pid: in a container every pid is 1.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PREFIX = "loopguard-"
STALLS, PROBE = ".stalls", ".probe"
LONGEST = 1 << 20  # bytes that a file of a black box may have
_MODE = 0o600
_CLOSED = os.O_CLOEXEC if hasattr(os, "O_CLOEXEC") else 0
_NO_LINK = os.O_NOFOLLOW if hasattr(os, "O_NOFOLLOW") else 0
_NO_WAIT = os.O_NONBLOCK if hasattr(os, "O_NONBLOCK") else 0
_ATTEMPTS = 10

# statfs(2), linux/magic.h: what keeps its files on this machine.
_LOCAL = {
    0xEF53,  # ext2, ext3, ext4
    0x58465342,  # XFS
    0x9123683E,  # Btrfs
    0xCA451A4E,  # bcachefs
    0xF2F52010,  # F2FS
    0x2FC12FC1,  # ZFS
    0x794C7630,  # overlayfs
    0x01021994,  # tmpfs
    0x858458F6,  # ramfs
}

Identity = tuple[int, int]


class File:
    """An open file of ours. Its number may be a stranger's by now, where the application closed all: so ask `ours`."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd
        self._identity = _identity(fd)

    @property
    def ours(self) -> bool:
        return self._identity is not None and _identity(self.fd) == self._identity

    @property
    def in_place(self) -> bool:
        """Whether it is still to be found by its name."""
        with suppress(OSError):
            status = self.path.stat(follow_symlinks=False)
            return self.ours and (status.st_dev, status.st_ino) == self._identity
        return False

    def close(self) -> None:
        """Let it go, and with it the lock, unless a forked process has it too."""
        if self.ours:
            os.close(self.fd)
        self._identity = None


def make(directory: Path) -> tuple[File, File]:
    """Two new files for this process: the first is locked, the second for the probe.

    Raises:
        OSError: they cannot be made, or not be locked.
    """
    for _ in range(_ATTEMPTS):
        path = directory / f"{PREFIX}{os.getpid()}-{secrets.token_hex(6)}{STALLS}"
        file = File(path, _create(path))
        try:
            # Between the two somebody who looks for what is left may have come, and have taken it away.
            if lock(file.fd) and file.in_place:
                dump = path.with_suffix(PROBE)
                return file, File(dump, _create(dump))
        except OSError:
            remove(file)
            raise
        file.close()
    raise OSError("no file of this black box can be locked")


def lock(fd: int, shared: bool = False) -> bool:
    """Lock a file, unless somebody else has it.

    Raises:
        OSError: this system or this file system knows no locks.
    """
    if fcntl is None:
        raise OSError("this system has no flock")
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def release(file: File) -> None:
    """Give back a lock that was asked for, also where a process that was forked meanwhile has it too."""
    if file.ours:
        with suppress(AttributeError):  # Windows knows none
            fcntl.flock(file.fd, fcntl.LOCK_UN)
    file.close()


def is_local(fd: int) -> bool:
    """Whether a file is on a file system that answers at once, as those of this machine do; False where nobody tells.

    What the loop's own thread may touch must not wait for another machine.
    """
    buffer = ctypes.create_string_buffer(256)  # struct statfs begins with the type
    try:
        failed = ctypes.CDLL(None).fstatfs(fd, buffer)
    except (OSError, AttributeError, TypeError):
        return False
    return not failed and ctypes.c_uint32.from_buffer(buffer).value in _LOCAL


def found(directory: Path) -> Iterator[Path]:
    """The files in which processes write of their stalls, the oldest first."""
    with suppress(OSError), os.scandir(directory) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(PREFIX)]
        paths = [directory / name for name in names if name.endswith(STALLS)]
        yield from sorted(paths, key=_changed_at)


def open_found(path: Path, writable: bool) -> File | None:
    """Open a file that is there; None where it is gone, or is nothing that a process of this user has made."""
    try:
        fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | _CLOSED | _NO_LINK | _NO_WAIT)
    except OSError:
        return None
    status = os.fstat(fd)
    own = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
    if stat.S_ISREG(status.st_mode) and own:
        return File(path, fd)
    os.close(fd)
    return None


def read(path: Path) -> tuple[bytes, int]:
    """What stands in a file, as far as it may be long, and when it was written (unix nanoseconds); b"" where it is gone."""
    file = open_found(path, writable=False)
    if file is None:
        return b"", 0
    try:
        return read_all(file.fd), os.fstat(file.fd).st_mtime_ns
    finally:
        file.close()


def read_all(fd: int) -> bytes:
    os.lseek(fd, 0, os.SEEK_SET)
    return os.read(fd, LONGEST)


def remove(file: File) -> None:
    """Take away the files of a process, the locked one last: without it the other would be nobody's."""
    for path in (file.path.with_suffix(PROBE), file.path):
        with suppress(OSError):
            path.unlink()
    file.close()


def _create(path: Path) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | _CLOSED | _NO_LINK
    return os.open(path, flags, _MODE)


def _identity(fd: int) -> Identity | None:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _changed_at(path: Path) -> int:
    try:
        return path.stat(follow_symlinks=False).st_mtime_ns
    except OSError:
        return 0
