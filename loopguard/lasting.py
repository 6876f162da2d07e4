"""Threads of our own: each goes on with its work, whatever strikes it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import Context

# Seconds. Where all fails at once, as without memory, no CPU is burnt.
_REST = 0.001


class LastingThread(threading.Thread):
    """Does `work` until that returns. Where it raises, `struck` is told, and it is begun anew.

    Not only our own mistakes raise: some supervisors raise an exception in every thread of the process, from outside
    and at any point of it (PyThreadState_SetAsyncExc). So what runs here takes locks of C's alone, as in `with lock:`.
    threading's Condition and Event take theirs in Python: raised in there, it leaves them locked for ever.
    """

    # Debuggers of pydevd's kind (VS Code, PyCharm) then neither show, trace nor suspend it.
    pydev_do_not_trace = is_pydev_daemon_thread = True

    def __init__(
        self, name: str, work: Callable[[], None], struck: Callable[[BaseException], None]
    ) -> None:
        super().__init__(name=f"loopguard-{name}", daemon=True)
        self._work = work
        self._struck = struck

    def start(self) -> None:
        # An empty context: the thread may not inherit (3.14: thread_inherit_context) that of a request.
        Context().run(super().start)

    def run(self) -> None:
        while True:
            try:
                try:
                    self._work()
                    return
                except BaseException as error:
                    self._struck(error)
                    time.sleep(_REST)
            except BaseException:  # noqa: S112 - struck again in the middle of telling of it
                continue

    def end(self, timeout: float) -> None:
        """Wait for its end, if it ever began; not from within itself."""
        if self.is_alive() and self is not threading.current_thread():
            self.join(max(0.0, timeout))
