"""Waits for what another thread has to release: locks, queues, threads, futures."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import multiprocessing
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.corpus.label import BLOCK, case, held, rest
from tests.corpus.waits import later


def keeper(lock: Any) -> None:
    """Have a thread take the lock, and keep it for `BLOCK` seconds."""
    taken = threading.Event()

    def keep_it() -> None:
        with lock:
            taken.set()
            time.sleep(BLOCK)

    threading.Thread(target=keep_it, name="keeper").start()
    taken.wait()


def work_for(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def pool() -> ThreadPoolExecutor:
    """With its one thread begun."""
    executor = ThreadPoolExecutor(1, "worker")
    executor.submit(int).result()
    return executor


@case(waited_on="futex", served=True)
async def lock_acquire() -> None:
    lock = threading.Lock()
    await rest()
    keeper(lock)
    with held():
        lock.acquire()  # blocks lock_acquire: _thread.lock.acquire, lock
    lock.release()


@case(waited_on="futex")
async def lock_with() -> None:
    lock = threading.Lock()
    await rest()
    keeper(lock)
    with held():  # noqa: SIM117 -- the lock's `with` is to have a line of its own
        with lock:  # blocks lock_with: _thread.lock.__enter__, lock
            pass


@case(waited_on="futex")
async def lock_with_timeout() -> None:
    lock = threading.Lock()
    lock.acquire()
    await rest()
    with held():
        lock.acquire(timeout=BLOCK)  # blocks lock_with_timeout: _thread.lock.acquire, lock
    lock.release()


@case(waited_on="futex", holder=("keeper", "keeper.<locals>.keep_it"), served=True)
async def rlock_acquire() -> None:
    lock = threading.RLock()
    await rest()
    keeper(lock)
    with held():
        lock.acquire()  # blocks rlock_acquire: _thread.RLock.acquire, lock
    lock.release()


@case(waited_on="futex")
async def event_wait() -> None:
    event = threading.Event()
    await rest()
    later(event.set)
    with held():
        event.wait()  # blocks event_wait: threading.Event.wait, lock


@case(waited_on="futex")
async def condition_wait() -> None:
    condition = threading.Condition()

    def tell() -> None:
        with condition:
            condition.notify()

    await rest()
    later(tell)
    with condition, held():
        condition.wait()  # blocks condition_wait: threading.Condition.wait, lock


@case(waited_on="futex")
async def semaphore_acquire() -> None:
    semaphore = threading.Semaphore(0)
    await rest()
    later(semaphore.release)
    with held():
        semaphore.acquire()  # blocks semaphore_acquire: threading.Semaphore.acquire, lock


@case(waited_on="futex")
async def barrier_wait() -> None:
    barrier = threading.Barrier(2)
    await rest()
    later(barrier.wait)
    with held():
        barrier.wait()  # blocks barrier_wait: threading.Barrier.wait, lock


@case(waited_on="futex", holder=("joined", "work_for"))
async def thread_join() -> None:
    await rest()
    thread = threading.Thread(target=work_for, args=(BLOCK,), name="joined")
    thread.start()
    with held():
        thread.join()  # blocks thread_join: threading.Thread.join, lock


@case(waited_on="futex", served=True)
async def queue_get() -> None:
    answers: queue.Queue[int] = queue.Queue()
    await rest()
    later(answers.put, 1)
    with held():
        answers.get()  # blocks queue_get: queue.Queue.get, lock


@case(waited_on="futex")
async def queue_put() -> None:
    answers: queue.Queue[int] = queue.Queue(1)
    answers.put(1)
    await rest()
    later(answers.get)
    with held():
        answers.put(2)  # blocks queue_put: queue.Queue.put, lock


@case(waited_on="futex")
async def simple_queue_get() -> None:
    answers: queue.SimpleQueue[int] = queue.SimpleQueue()
    await rest()
    later(answers.put, 1)
    with held():
        answers.get()  # blocks simple_queue_get: _queue.SimpleQueue.get, lock


@case(given=pool, waited_on="futex", holder=("worker_0", "work_for"), served=True, core=True)
async def future_result(executor: ThreadPoolExecutor) -> None:
    await rest()
    future = executor.submit(work_for, BLOCK)
    with held():
        future.result()  # blocks future_result: concurrent.futures._base.Future.result, lock
    executor.shutdown()


@case(given=pool, waited_on="futex", holder=("worker_0", "work_for"))
async def pool_shutdown(executor: ThreadPoolExecutor) -> None:
    await rest()
    executor.submit(work_for, BLOCK)
    with held():
        # blocks pool_shutdown: concurrent.futures.thread.ThreadPoolExecutor.shutdown, lock
        executor.shutdown()


@case(given=pool, waited_on="futex")
async def futures_wait(executor: ThreadPoolExecutor) -> None:
    await rest()
    futures = [executor.submit(work_for, BLOCK)]
    with held():
        # blocks futures_wait: concurrent.futures._base.wait, lock
        concurrent.futures.wait(futures)
    executor.shutdown()


def another_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="another-loop").start()
    return loop


@case(given=another_loop, waited_on="futex")
async def other_loops_result(loop: asyncio.AbstractEventLoop) -> None:
    await rest()
    future = asyncio.run_coroutine_threadsafe(asyncio.sleep(BLOCK), loop)
    with held():
        future.result()  # blocks other_loops_result: concurrent.futures._base.Future.result, lock
    loop.call_soon_threadsafe(loop.stop)


class SlowHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if threading.current_thread().name == "logger":
            time.sleep(BLOCK)


def slow_log() -> tuple[logging.Logger, Callable[[], None]]:
    logger = logging.getLogger("corpus")
    logger.handlers = [SlowHandler()]
    logger.setLevel("INFO")
    logger.propagate = False

    def speak() -> None:
        logger.info("slow")

    return logger, speak


@case(given=slow_log, waited_on="futex", holder=("logger", "SlowHandler.emit"))
async def log_behind_another(given: tuple[logging.Logger, Callable[[], None]]) -> None:
    logger, speak = given
    await rest()
    threading.Thread(target=speak, name="logger").start()
    await asyncio.sleep(0.01)
    with held():
        logger.info("quick")  # blocks log_behind_another: logging.Logger.info, lock


@case(given=multiprocessing.Lock, waited_on="futex")
async def process_lock(lock: Any) -> None:
    lock.acquire()
    await rest()
    later(lock.release)
    with held():
        lock.acquire()  # blocks process_lock: _multiprocessing.SemLock.acquire, lock
