"""Garbage collections that take long: on the loop's thread, and on another."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial

from tests.corpus.gil import beside
from tests.corpus.label import amount, case, held, keep, rest


def graph(n: int) -> list[object]:
    """So many containers for the collector to go through."""
    return [[None] for _ in range(n)]


def collect_with(_: object) -> None:
    gc.collect()


def big_graph() -> list[object]:
    gc.collect()
    return graph(amount(lambda n: partial(collect_with, graph(n)), 200_000))


def young_graph() -> list[object]:
    """No collection has been through it."""

    def make(n: int) -> list[object]:
        gc.collect()
        gc.disable()
        return graph(n)

    def collect(new: list[object]) -> None:
        gc.collect(0)

    return make(amount(lambda n: partial(collect, make(n)), 200_000))


class Node:
    def __init__(self) -> None:
        self.me = self


def cycles(n: int) -> None:
    for _ in range(n):
        Node()


def garbage() -> None:
    """So many cycles that nothing refers to, for a collection to free."""

    def make(n: int) -> Callable[[], object]:
        cycles(n)
        return gc.collect

    gc.collect()
    gc.disable()
    cycles(amount(make, 20_000))


@case(given=big_graph, served=True, core=True)
async def collect(_: object) -> None:
    await rest()
    with held():
        gc.collect()  # blocks collect: gc.collect, gc


@case(given=garbage)
async def collect_cycles(_: object) -> None:
    await rest()
    with held():
        gc.collect()  # blocks collect_cycles: gc.collect, gc
    gc.enable()


@case(given=young_graph)
async def collect_by_itself(_: object) -> None:
    """As it does once there are many new containers, whatever line makes one more."""
    new: list[object] = []
    await rest()
    with held():
        gc.enable()
        for number in range(100):  # blocks collect_by_itself: builtins.list.append|-, gc
            new.append([number])
    keep(new)


@case(given=big_graph)
async def collect_elsewhere(_: object) -> None:
    """While the loop has nothing to do: nobody of its thread is to blame."""

    def work() -> None:
        with held():
            gc.collect()  # blocks collect_elsewhere: gc.collect, gc

    await beside(work)


@case(given=garbage)
async def collect_cycles_elsewhere(_: object) -> None:
    def work() -> None:
        with held():
            gc.collect()  # blocks collect_cycles_elsewhere: gc.collect, gc

    await beside(work)
    gc.enable()
