"""One sink on a thread of its own, so that one which fails or hangs costs its own records and no others."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from loopguard.clock import monotonic
from loopguard.lasting import LastingThread

LONGEST_QUEUE = 1000
PATIENCE = 5.0  # seconds; as long as a sink may take over one record before it counts as hung


class Outlet:
    """Does one act after another on its own thread. `put` never blocks.

    Acts that raised, were pushed out of a full queue, or waited for one that hung are lost: `failed` is told of each
    error, `lost` counts them. `close` is called on that thread when it ends, however late a sink that hung returns.
    `clock` gives seconds and never goes back. `woken` is called on that thread before each act, when it has the GIL.
    """

    def __init__(
        self,
        name: str,
        failed: Callable[[BaseException], None],
        clock: Callable[[], float] = monotonic,
        close: Callable[[], object] | None = None,
        woken: Callable[[], object] = lambda: None,
    ) -> None:
        self.name = name
        self._failed = failed
        self._clock = clock
        self._close = close
        self._woken = woken
        self._lost = 0
        self._acts: deque[Callable[[], object]] = deque()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._acting = threading.Lock()
        # Whoever waits in it for the end of an act comes before the next.
        self._turnstile = threading.Lock()
        self._thread = LastingThread(name, self._run, self._struck)
        self._busy_since: float | None = None
        self._hung = False
        self._stopping = False

    @property
    def lost(self) -> int:
        """How many acts came to nothing until now."""
        with self._lock:
            self._give_up_if_hung()
            return self._lost

    def start(self) -> None:
        """Begin. Not with the first act: that may come when the interpreter ends, and starts no thread any more."""
        self._thread.start()

    def put(self, act: Callable[[], object]) -> None:
        """Have it done. Where the queue is full the oldest gives way; this one is lost where the sink has hung or ended."""
        with self._lock:
            self._give_up_if_hung()
            if self._hung or self._stopping:
                self._lost += 1
                return
            if len(self._acts) >= LONGEST_QUEUE:
                self._acts.popleft()
                self._lost += 1
            self._acts.append(act)
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Wait until all is done or lost; False where that took longer than `timeout` seconds.

        A sink that asks for it itself does not wait for itself.
        """
        until = self._clock() + timeout
        with self._lock:
            while not self._idle():
                rest = until - self._clock()
                if rest <= 0:
                    return False
                self._changed.wait(min(rest, PATIENCE / 10))
            return True

    def finish(self) -> None:
        """Do what is queued, and end."""
        with self._lock:
            self._stopping = True
            self._changed.notify_all()

    def join(self, timeout: float) -> None:
        """Wait, once told to finish, for `timeout` seconds at most. What is not done by then is lost."""
        if not self._hung:
            self._thread.end(timeout)
        with self._lock:
            self._lost += len(self._acts)
            self._acts.clear()

    def hold(self, timeout: float) -> bool:
        """Wait until no act runs, for `timeout` seconds at most, and let none begin until `release()`.

        Before a fork: a lock of the sink's, as that of a stream, would stay locked in the child for ever. A sink that has
        hung is not waited for, nor one that forks itself.
        """
        if self._hung or self._thread is threading.current_thread():
            return False
        until = self._clock() + timeout
        if not self._turnstile.acquire(timeout=max(0.0, timeout)):
            return False
        if self._acting.acquire(timeout=max(0.0, until - self._clock())):
            return True
        self._turnstile.release()
        return False

    def release(self) -> None:
        self._acting.release()
        self._turnstile.release()

    def abandon(self) -> None:
        """In a forked child, where the thread is not, and whoever held the lock is not either: only close."""
        if self._close is not None:
            self._close()

    def _idle(self) -> bool:
        self._give_up_if_hung()
        if self._hung or self._thread is threading.current_thread():
            return True
        return self._busy_since is None and not self._acts

    def _give_up_if_hung(self) -> None:
        """Count what a hung act holds up, and itself, as lost. Should it ever return, the sink is used again."""
        since = self._busy_since
        if self._hung or since is None or self._clock() - since < PATIENCE:
            return
        self._hung = True
        self._lost += 1 + len(self._acts)
        self._acts.clear()
        self._failed(TimeoutError(f"{self.name} has not returned for {PATIENCE:.0f} s"))

    def _run(self) -> None:
        while (act := self._next()) is not None:
            self._woken()
            with self._turnstile:
                pass
            with self._acting:
                act()
            del act  # it holds a request's context, and the next may come in a week
        close, self._close = self._close, None
        if close is not None:
            close()

    def _struck(self, error: BaseException) -> None:
        """The act has raised: a listener may even call sys.exit(). Or the thread was struck from outside."""
        with self._lock:
            self._lost += self._busy_since is not None and not self._hung
        self._failed(error)

    def _next(self) -> Callable[[], object] | None:
        """What to do next; None when it is time to end."""
        with self._lock:
            self._busy_since, self._hung = None, False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._acts or self._stopping)
            if not self._acts:
                return None
            self._busy_since = self._clock()
            return self._acts.popleft()
