"""Stops the threads of another process for some seconds, as a debugger does (ptrace(2)): `debugger SECONDS ID…`."""

from __future__ import annotations

import ctypes
import os
import sys
import time

_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17
_ALL = 0x40000000  # __WALL: threads too
REFUSED = 77


def main() -> None:
    ptrace = ctypes.CDLL(None).ptrace
    seconds, ids = float(sys.argv[1]), [int(each) for each in sys.argv[2:]]
    for each in ids:
        if ptrace(_SEIZE, each, None, None) or ptrace(_INTERRUPT, each, None, None):
            sys.exit(REFUSED)
    for each in ids:
        os.waitpid(each, _ALL)
    time.sleep(seconds)
    for each in ids:
        ptrace(_DETACH, each, None, None)


if __name__ == "__main__":
    main()
