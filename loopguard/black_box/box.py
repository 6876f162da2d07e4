"""The file of this process: what is known of a stall stands in it from the budget on, until the stall has ended."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from loopguard.black_box import files
from loopguard.black_box.remains import Head, Watched
from loopguard.record import Stall
from loopguard.tell.jsonl import json_line
from loopguard.tell.outlet import Outlet

_MOST_LOOPS = 16


class BlackBox:
    """Writes on a thread of its own, so that a disk that hangs holds up nobody.

    `opened` and `ended` are called by the watchdog, `keep` by the reporter, the rest where a process begins and ends;
    the files are touched by the own thread alone once it runs.

    Raises:
        OSError: no file can be made and locked there.
    """

    def __init__(
        self, directory: Path, head: Head, failed: Callable[[BaseException], None]
    ) -> None:
        self._directory = directory
        self._head = head
        self._open: set[str] = set()  # each step on it is one of the interpreter's
        self._written: set[str] = set()
        self._file, self._dump = files.make(directory)
        self._head_end = 0
        self._outlet = Outlet("black_box", failed, close=self._remove)
        self._rewrite()

    @property
    def dump(self) -> int | None:
        """The file for the probe; None where it would have to wait for another machine, on the loop's thread."""
        return self._dump.fd if files.is_local(self._dump.fd) else None

    @property
    def lost(self) -> int:
        """How often something could not be written."""
        return self._outlet.lost

    def start(self) -> None:
        self._outlet.start()

    def watches(self, loop: str, thread: str) -> None:
        """A loop is watched from now on."""
        watched = Watched(loop, thread)
        if watched not in self._head.loops and len(self._head.loops) < _MOST_LOOPS:
            self._describe(replace(self._head, loops=(*self._head.loops, watched)))

    def set_budget(self, budget: float) -> None:
        self._describe(replace(self._head, budget=budget))

    def opened(self, id: str) -> None:  # noqa: A002 - as the record calls it
        """A stall is about to be told of to `keep`."""
        self._open.add(id)

    def keep(self, stall: Stall) -> None:
        """Have it written, unless it has ended by then. Never blocks."""
        self._outlet.put(partial(self._keep, stall))

    def ended(self, id: str) -> None:  # noqa: A002 - as the record calls it
        """It was survived. Never blocks."""
        self._open.discard(id)
        self._outlet.put(self._settle)

    def set_aside(self) -> None:
        """The application has ended, and its server may end the process by a signal: take the files away by then.

        Should a stall come all the same, they are made anew, but for the probe's. Never blocks.
        """
        self._outlet.put(self._set_aside)

    def close(self, timeout: float) -> None:
        """Take the files away: this process has told all itself."""
        self._outlet.finish()
        self._outlet.join(timeout)

    def abandon(self) -> None:
        """In a forked child: the files and their lock are the parent's."""
        self._file.close()
        self._dump.close()

    def _describe(self, head: Head) -> None:
        self._head = head
        self._outlet.put(self._rewrite_at_rest)

    def _keep(self, stall: Stall) -> None:
        if stall.id in self._open:
            self._make_sure()
            self._append(json_line({"stall": stall.to_dict()}))
            self._written.add(stall.id)
        self._settle()

    def _settle(self) -> None:
        """Wipe what was survived: all, or where another loop is still held, by a line that says so."""
        over = self._written - self._open
        if not over:
            return
        if self._written == over and self._file.ours:
            os.ftruncate(
                self._file.fd, self._head_end
            )  # in one step: there is no moment without a head
            self._written.clear()
            return
        for each in over:
            self._append(json_line({"ended": each}))
        self._written -= over

    def _rewrite_at_rest(self) -> None:
        if not self._written:
            self._make_sure()
            self._rewrite()

    def _set_aside(self) -> None:
        if not self._written:
            files.remove(self._file)

    def _rewrite(self) -> None:
        if self._file.ours:
            os.ftruncate(self._file.fd, 0)
            self._append(json_line(asdict(self._head)))
            self._head_end = os.fstat(self._file.fd).st_size
        self._written.clear()

    def _append(self, line: str) -> None:
        """In one piece, on a line of its own also behind one that broke off as the disk filled up."""
        data = b"\n" + line.encode() + b"\n"
        if self._file.ours and os.write(self._file.fd, data) < len(data):
            raise OSError(errno.ENOSPC, "a line of the black box was cut")

    def _make_sure(self) -> None:
        """Begin anew where the file was taken away, was closed by a stranger, or has grown too long.

        The probe's stays where it is: it would have to be registered anew.
        """
        if not self._file.in_place:
            self._file.close()
            self._file, dump = files.make(self._directory)
            dump.close()
            self._rewrite()
        elif os.fstat(self._file.fd).st_size > files.LONGEST // 2:
            self._rewrite()

    def _remove(self) -> None:
        files.remove(self._file)
        self._dump.close()
