"""The clocks, out of reach of what freezes time in tests.

freezegun and its like put a clock of their own into every module that holds the real one. A watchdog that has stood
still would look forever, so these are objects that it does not know; each costs a call of C more.
"""

from __future__ import annotations

import time
from functools import partial

monotonic = partial(time.monotonic)
monotonic_ns = partial(time.monotonic_ns)
unix_ns = partial(time.time_ns)
