"""Computing that lets others have the GIL: Python code, and native code that releases it."""

from __future__ import annotations

import bz2
import copy
import ctypes
import difflib
import hashlib
import importlib.util
import json
import random
import sqlite3
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tests.corpus.label import amount, case, held, keep, rest


def squares(rounds: int) -> int:
    """Sum squares in plain Python."""
    total = 0
    for number in range(rounds):  # blocks helper: -, cpu
        total += number * number
    return total


def rounds() -> int:
    return amount(lambda n: lambda: squares(n), 50_000)


@case(given=rounds, served=True, core=True)
async def python_loop(n: int) -> None:
    total = 0
    await rest()
    with held():
        for number in range(n):  # blocks python_loop: -, cpu
            total += number * number
    keep(total)


@case(given=rounds)
async def helper(n: int) -> None:
    await rest()
    with held():
        squares(n)


def fibonacci(n: int) -> int:
    # blocks recursion: tests.corpus.computing.fibonacci|-, cpu
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


@case(given=lambda: amount(lambda n: lambda: [fibonacci(14) for _ in range(n)], 1))
async def recursion(n: int) -> None:
    await rest()
    with held():
        for _ in range(n):
            fibonacci(14)


def numbers(n: int) -> Iterator[int]:
    for number in range(n):  # blocks generator: -, cpu
        yield number * number % 7


@case(given=lambda: amount(lambda n: lambda: sum(numbers(n)), 50_000))
async def generator(n: int) -> None:
    await rest()
    with held():
        sum(numbers(n))


@case(
    given=lambda: bytes(amount(lambda n: partial(hashlib.sha256, bytes(n)), 1 << 20)), served=True
)
async def sha256(data: bytes) -> None:
    digest = hashlib.sha256()
    await rest()
    with held():
        digest.update(data)  # blocks sha256: _hashlib.HASH.update, cpu


@case(given=lambda: amount(lambda n: lambda: hashlib.pbkdf2_hmac("sha256", b"x", b"y", n), 10_000))
async def pbkdf2(n: int) -> None:
    await rest()
    with held():
        # blocks pbkdf2: _hashlib.pbkdf2_hmac|hashlib.pbkdf2_hmac, cpu
        hashlib.pbkdf2_hmac("sha256", b"password", b"salt", n)


@case(given=lambda: noise(amount(lambda n: partial(zlib.compress, noise(n)), 1 << 18)))
async def zlib_compress(data: bytes) -> None:
    await rest()
    with held():
        packed = zlib.compress(data)  # blocks zlib_compress: zlib.compress, cpu
    keep(packed)


@case(given=lambda: noise(amount(lambda n: partial(bz2.compress, noise(n)), 1 << 18)))
async def bz2_compress(data: bytes) -> None:
    await rest()
    with held():
        packed = bz2.compress(data)  # blocks bz2_compress: bz2.compress, cpu
    keep(packed)


def noise(n: int) -> bytes:
    return random.Random(1).randbytes(n)


class Unsorted:
    """Wide characters for the C library to sort, each a string of its own."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.buffer = (ctypes.c_uint64 * n).from_buffer(
            bytearray(b"".join(word.to_bytes(8, "little") for word in _words(n)))
        )

    def sort(self, library: ctypes.CDLL) -> None:
        library.qsort(self.buffer, self.n, 8, library.wcscmp)


def _words(n: int) -> Iterator[int]:
    return (random.randrange(1, 1 << 30) for _ in range(n))


def unsorted() -> Unsorted:
    def sort(n: int) -> Callable[[], object]:
        return partial(Unsorted(n).sort, ctypes.CDLL(None))

    return Unsorted(amount(sort, 50_000))


@case(given=unsorted)
async def qsort_released(some: Unsorted) -> None:
    """A C extension that lets the GIL go."""
    library = ctypes.CDLL(None)
    qsort, compare = library.qsort, library.wcscmp
    await rest()
    with held():
        qsort(some.buffer, some.n, 8, compare)  # blocks qsort_released: -, cpu


SERIES = "with recursive c(n) as (select 1 union all select n + 1 from c where n < ?) select sum(n) from c"


def _series(n: int) -> object:
    return sqlite3.connect(":memory:").execute(SERIES, (n,)).fetchone()


@case(given=lambda: amount(lambda n: lambda: _series(n), 50_000))
async def sqlite_query(n: int) -> None:
    database = sqlite3.connect(":memory:")
    await rest()
    with held():
        # blocks sqlite_query: sqlite3.Connection.execute, cpu
        database.execute(SERIES, (n,))
    database.close()


def rows(n: int) -> list[dict[str, object]]:
    return [{"number": number, "text": str(number)} for number in range(n)]


def rows_to_copy() -> object:
    return rows(amount(lambda n: partial(copy.deepcopy, rows(n)), 1_000))


@case(given=rows_to_copy, served=True)
async def deepcopy(value: object) -> None:
    await rest()
    with held():
        copied = copy.deepcopy(value)  # blocks deepcopy: copy.deepcopy, cpu
    keep(copied)


@case(given=lambda: _texts(amount(lambda n: partial(_ratio, _texts(n)), 100, 2.0)))
async def difflib_ratio(texts: tuple[str, str]) -> None:
    await rest()
    with held():
        # blocks difflib_ratio: difflib.SequenceMatcher.ratio, cpu
        difflib.SequenceMatcher(None, *texts, autojunk=False).ratio()


def _texts(n: int) -> tuple[str, str]:
    letters = random.Random(1)
    one, other = ("".join(letters.choice("abcd") for _ in range(n)) for _ in range(2))
    return one, other


def _ratio(texts: tuple[str, str]) -> float:
    return difflib.SequenceMatcher(None, *texts, autojunk=False).ratio()


IN_PYTHON = sys.version_info >= (3, 12)


def digits() -> int:
    sys.set_int_max_str_digits(0)
    return int(7 ** amount(lambda n: partial(str, 7**n), 50_000, 1.7))


@case(given=digits, lacking=lambda: None if IN_PYTHON else "CPython 3.11 converts in C")
async def big_int_to_text(number: int) -> None:
    await rest()
    with held():
        text = str(number)  # blocks big_int_to_text: builtins.str, cpu
    keep(text)


def no_numpy() -> str | None:
    return None if importlib.util.find_spec("numpy") else "numpy is not installed"


def matrix() -> Any:
    import numpy as np

    def multiply(n: int) -> Callable[[], object]:
        square = np.ones((n, n))
        return lambda: square @ square

    n = amount(multiply, 200, 3.0)
    return np.ones((n, n))


@case(given=matrix, lacking=no_numpy)
async def numpy_dot(square: Any) -> None:
    await rest()
    with held():
        product = square.dot(square)  # blocks numpy_dot: numpy.ndarray.dot, cpu
    keep(product)


def rows_to_indent() -> object:
    return rows(amount(lambda n: partial(json.dumps, rows(n), indent=1), 1_000))


@case(given=rows_to_indent)
async def json_indented(value: object) -> None:
    """Which CPython does in Python, up to 3.14."""
    await rest()
    with held():
        text = json.dumps(value, indent=1)  # blocks json_indented: json.dumps, cpu
    keep(text)
