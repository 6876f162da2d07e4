"""The service that every tool watches: handlers that hold the loop in a function of the app's, and one that has to wait."""

from __future__ import annotations

import asyncio
import time

from fastapi import FastAPI

from benchmarks.overhead_app import make_traced

Held = dict[str, float]  # when the line that holds was entered and left, seconds of the epoch


def read_report(seconds: float) -> Held:
    entered = time.time()
    time.sleep(seconds)  # blocks report: time.sleep, blocking_call
    return {"entered": entered, "left": time.time()}


def add_up(count: int) -> Held:
    total, entered = 0, time.time()
    for number in range(count):  # blocks totals: -, cpu
        total += number * number % 7
    return {"entered": entered, "left": time.time()}


async def show_report(year: int, seconds: float) -> Held:
    return read_report(seconds)


async def show_totals(year: int, count: int) -> Held:
    return add_up(count)


async def show_stock(item: int) -> int:
    await asyncio.sleep(0.2)
    return item


def make_handlers() -> FastAPI:
    app = make_traced()
    app.get("/reports/{year}")(show_report)
    app.get("/totals/{year}")(show_totals)
    app.get("/stock/{item}")(show_stock)
    return app
