"""Native code that keeps the GIL: on the loop's thread (`gil_hold`), and on another (`gil_wait`)."""

from __future__ import annotations

import asyncio
import ctypes
import json
import math
import random
import re
import threading
import time
from collections.abc import Callable
from functools import partial

from tests.corpus.computing import IN_PYTHON, Unsorted, digits
from tests.corpus.label import BLOCK, REST, amount, case, held, keep, rest, truths

PATTERN = re.compile("[ab]*c")


def hay(n: int) -> str:
    """No match, but every start is tried up to the end."""
    return "a" * n


def long_hay() -> str:
    return hay(amount(lambda n: partial(PATTERN.search, hay(n)), 2_000, 2.0))


def floats(n: int) -> list[float]:
    return [random.random() for _ in range(n)]


def many_floats(use: Callable[[list[float]], object]) -> list[float]:
    """As many as it takes that long to use."""
    return floats(amount(lambda n: partial(use, floats(n)), 20_000))


# On the loop's thread


@case(given=long_hay, served=True, core=True)
async def regex_search(text: str) -> None:
    await rest()
    with held():
        PATTERN.search(text)  # blocks regex_search: re.Pattern.search, gil_hold


@case(given=long_hay)
async def regex_sub(text: str) -> None:
    await rest()
    with held():
        re.sub("[ab]*c", "", text)  # blocks regex_sub: re.sub, gil_hold


@case(given=lambda: many_floats(sorted), served=True)
async def sort_copy(values: list[float]) -> None:
    await rest()
    with held():
        ordered = sorted(values)  # blocks sort_copy: builtins.sorted, gil_hold
    keep(ordered)


@case(given=lambda: many_floats(sorted))
async def sort_in_place(values: list[float]) -> None:
    await rest()
    with held():
        values.sort()  # blocks sort_in_place: builtins.list.sort|list.sort, gil_hold


@case(given=lambda: many_floats(json.dumps), served=True)
async def json_dumps(values: list[float]) -> None:
    await rest()
    with held():
        text = json.dumps(values)  # blocks json_dumps: json.dumps, gil_hold
    keep(text)


def numbers_as_text(n: int) -> str:
    return json.dumps([{"id": number} for number in range(n)])


def long_text() -> str:
    return numbers_as_text(amount(lambda n: partial(json.loads, numbers_as_text(n)), 10_000))


@case(given=long_text)
async def json_loads(text: str) -> None:
    await rest()
    with held():
        value = json.loads(text)  # blocks json_loads: json.loads, gil_hold
    keep(value)


def contains(values: list[int]) -> bool:
    return -1 in values


@case(given=lambda: list(range(amount(lambda n: partial(contains, list(range(n))), 100_000))))
async def in_list(values: list[int]) -> None:
    await rest()
    with held():
        found = -1 in values  # blocks in_list: -, gil_hold
    keep(found)


def power(n: int) -> int:
    return int(7**n)


@case(given=lambda: amount(lambda n: partial(power, n), 50_000, 1.585), served=True)
async def power_of(n: int) -> None:
    await rest()
    with held():
        result = 7**n  # blocks power_of: -, gil_hold
    keep(result)


@case(given=digits, lacking=lambda: "from 3.12 on in Python" if IN_PYTHON else None)
async def big_int_to_text_in_c(number: int) -> None:
    await rest()
    with held():
        text = str(number)  # blocks big_int_to_text_in_c: builtins.str, gil_hold
    keep(text)


@case(given=lambda: amount(lambda n: partial(math.factorial, n), 10_000, 1.7))
async def factorial(n: int) -> None:
    await rest()
    with held():
        result = math.factorial(n)  # blocks factorial: math.factorial, gil_hold
    keep(result)


@case(given=lambda: amount(lambda n: lambda: [None, 1] * n, 1_000_000))
async def list_times(n: int) -> None:
    pair = [None, 1]
    await rest()
    with held():
        result = pair * n  # blocks list_times: -, gil_hold
    keep(result)


@case(given=lambda: many_floats(dict.fromkeys))
async def dict_of_keys(values: list[float]) -> None:
    await rest()
    with held():
        result = dict.fromkeys(values)  # blocks dict_of_keys: builtins.dict.fromkeys, gil_hold
    keep(result)


@case(given=lambda: many_floats(set))
async def set_of(values: list[float]) -> None:
    await rest()
    with held():
        result = set(values)  # blocks set_of: builtins.set, gil_hold
    keep(result)


def boxes(n: int) -> list[list[float]]:
    return [floats(n)]


def to_delete() -> list[list[float]]:
    return boxes(amount(lambda n: boxes(n).clear, 1_000_000))


@case(given=to_delete)
async def delete(box: list[list[float]]) -> None:
    big = box.pop()
    await rest()
    with held():
        del big  # blocks delete: -, gil_hold


def unsorted() -> Unsorted:
    def sort(n: int) -> Callable[[], object]:
        return partial(Unsorted(n).sort, ctypes.PyDLL(None))

    return Unsorted(amount(sort, 50_000))


@case(given=unsorted)
async def qsort_kept(some: Unsorted) -> None:
    """A C extension that keeps the GIL."""
    library = ctypes.PyDLL(None)
    qsort, compare = library.qsort, library.wcscmp
    await rest()
    with held():
        qsort(some.buffer, some.n, 8, compare)  # blocks qsort_kept: -, gil_hold


@case(given=lambda: floats(amount(lambda n: partial(statistic, floats(n)), 100_000)))
async def total(values: list[float]) -> None:
    await rest()
    with held():
        result = math.fsum(values)  # blocks total: math.fsum, gil_hold
    keep(result)


def statistic(values: list[float]) -> float:
    return math.fsum(values)


# On another thread, while the loop has nothing else to do than a little that it comes to in the midst


async def beside(work: Callable[[], object]) -> None:
    """Have another thread do it while the loop beats; what it has kept the loop from ends with the next beat."""

    def run() -> None:
        time.sleep(0.02)
        work()
        time.sleep(REST)  # a pool's thread lives on

    thread = threading.Thread(target=run, name="other")
    beats = []
    await rest()
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0.005)
        beats.append(time.time())
    [(entered, left)] = truths
    truths[:] = [(entered, min(left, *(beat for beat in beats if beat > entered + BLOCK / 4)))]


@case(given=long_hay, holder=("other", "regex_elsewhere.<locals>.search"), served=True, core=True)
async def regex_elsewhere(text: str) -> None:
    def search() -> None:
        with held():
            PATTERN.search(text)  # blocks regex_elsewhere: re.Pattern.search, gil_wait

    await beside(search)


@case(given=lambda: many_floats(sorted), holder=("other", "sort_elsewhere.<locals>.sort"))
async def sort_elsewhere(values: list[float]) -> None:
    def sort() -> None:
        with held():
            ordered = sorted(values)  # blocks sort_elsewhere: builtins.sorted, gil_wait
        keep(ordered)

    await beside(sort)


@case(
    given=long_text,
    holder=("other", "json_elsewhere.<locals>.load"),
    lacking=lambda: (
        None
        if IN_PYTHON
        else "CPython 3.11 lets other threads in at each collection: no loop is held"
    ),
)
async def json_elsewhere(text: str) -> None:
    def load() -> None:
        with held():
            value = json.loads(text)  # blocks json_elsewhere: json.loads, gil_wait
        keep(value)

    await beside(load)


@case(given=unsorted, holder=("other", "qsort_elsewhere.<locals>.sort"))
async def qsort_elsewhere(some: Unsorted) -> None:
    library = ctypes.PyDLL(None)
    qsort, compare = library.qsort, library.wcscmp

    def sort() -> None:
        with held():
            qsort(some.buffer, some.n, 8, compare)  # blocks qsort_elsewhere: -, gil_wait

    await beside(sort)


@case(
    given=lambda: amount(lambda n: partial(power, n), 50_000, 1.585),
    holder=("other", "power_elsewhere.<locals>.raised"),
)
async def power_elsewhere(n: int) -> None:
    def raised() -> None:
        with held():
            result = 7**n  # blocks power_elsewhere: -, gil_wait
        keep(result)

    await beside(raised)


@case(given=long_hay, holder=("other", "regex_in_mid_callback.<locals>.search"))
async def regex_in_mid_callback(text: str) -> None:
    """The callback runs Python code, and is kept from going on."""

    def search() -> None:
        with held():
            PATTERN.search(text)  # blocks regex_in_mid_callback: re.Pattern.search, gil_wait

    thread = threading.Thread(target=search, name="other")
    await rest()
    thread.start()
    while thread.is_alive():
        pass


@case(holder=("other", "sleep_elsewhere.<locals>.nap"))
async def sleep_elsewhere() -> None:
    """It waits, and keeps the GIL all the while."""
    usleep = ctypes.PyDLL(None).usleep
    microseconds = int(BLOCK * 1e6)

    def nap() -> None:
        with held():
            usleep(microseconds)  # blocks sleep_elsewhere: -, gil_wait

    await beside(nap)
