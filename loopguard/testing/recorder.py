"""The guard that watches while tests run, beside whatever guard the code under test installs."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path

from loopguard.capture.clocks import run_delay_works
from loopguard.config import PREFIX, read_config
from loopguard.guard import Guard
from loopguard.tell.report import Report, Subscription
from loopguard.testing.requests import Requests
from loopguard.testing.verdict import Seen

running_test: ContextVar[str | None] = ContextVar("loopguard_test", default=None)
"""The test that runs, also in tasks that it leaves behind."""

# Of the variables of `install()` those that say how to look, not how closely or whom to tell.
_FROM_ENVIRONMENT = ("IN_APP", "IGNORE", "PROBE", "SOURCE")
_SIGNALS = ("log", "traces", "metrics")


class Recorder:
    """Collects every stall of this process while it is started.

    `budget` in seconds; `jsonl` is a file that each record is appended to; `brief` where many short loops are run.

    Raises:
        ConfigError: the budget is no number of seconds within the limits, or the file cannot be written.
    """

    def __init__(
        self,
        budget: float,
        root: Path | None = None,
        jsonl: Path | None = None,
        brief: bool = False,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        environ = os.environ if environ is None else environ
        names = [PREFIX + name for name in _FROM_ENVIRONMENT]
        self._seen: deque[Seen] = deque()
        self._guard = Guard(
            read_config(
                {"budget": budget, "root": root, "jsonl": jsonl} | dict.fromkeys(_SIGNALS, False),
                {name: environ[name] for name in names if name in environ},
            ),
            subscriptions=[Subscription("tests", self._note)],
            brief=brief,
        )
        self.evidence = run_delay_works(threading.get_native_id())

    def start(self) -> None:
        self._guard.start(on_uninstall=_nothing)
        self._guard.follow(Requests())

    def join(self) -> None:
        """Watch also the loops that other threads run already."""
        self._guard.join()

    def stop(self) -> None:
        self._guard.uninstall()

    def allow(self, budget: float) -> None:
        """Watch for stalls of this many seconds from now on.

        Raises:
            ConfigError: it is no number of seconds within the limits.
        """
        if budget != self._guard.budget:
            self._guard.budget = budget

    def take(self) -> list[Seen]:
        """What was seen since this was called last, up to now."""
        self._guard.catch_up()
        return [self._seen.popleft() for _ in range(len(self._seen))]

    def _note(self, report: Report) -> None:
        withheld = report.withheld_ns
        self._seen.append(
            Seen(
                stall=report.stall,
                began_ns=report.began_ns,
                withheld=None if withheld is None else withheld / 1e9,
                context=report.context.get(running_test),
            )
        )


def _nothing() -> None:
    pass
