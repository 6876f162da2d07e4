# ruff: noqa: ASYNC210 - these routes block on purpose
"""An app like many: some routes hold the event loop, and with it all others; each is followed by one that does not."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress

import requests
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool

with suppress(ImportError):
    import psycopg2

app = FastAPI(title="Shop", openapi_url=None)
app.state.warehouse = None  # the address of a service that takes its time
app.state.database = None  # how to connect to PostgreSQL

TRAILING_SPACE = re.compile(r"\s+$")


@app.get("/stock/{item_id}")
async def read_stock(item_id: int, request: Request) -> object:
    answer = requests.get(f"{request.app.state.warehouse}/{item_id}", timeout=5)  # blocks
    return answer.json()


@app.get("/stock/{item_id}/elsewhere")
async def read_stock_elsewhere(item_id: int, request: Request) -> object:
    address = f"{request.app.state.warehouse}/{item_id}"
    answer = await run_in_threadpool(requests.get, address, timeout=5)
    return answer.json()


@app.get("/reports/{year}")
async def read_report(year: int, request: Request) -> object:
    if request.app.state.database is None:
        raise HTTPException(503, "there is no database")
    connection = psycopg2.connect(request.app.state.database)
    try:
        with connection.cursor() as cursor:
            cursor.execute("select %s, pg_sleep(0.3)", [year])  # blocks
            return {"year": cursor.fetchall()[0][0]}
    finally:
        connection.close()


@app.get("/invoices/{invoice_id}")
def read_invoice(invoice_id: int) -> object:
    time.sleep(0.3)  # no `async def`: FastAPI runs it in a thread
    return {"invoice": invoice_id}


@app.get("/items/{item_id}/forecast")
async def forecast(item_id: int) -> object:
    demand = sum(day * day % 97 for day in range(4_000_000))  # blocks
    return {"item": item_id, "demand": demand}


@app.get("/events/{topic}")
async def wait_for_event(topic: str) -> object:
    await asyncio.sleep(0.3)
    return {"topic": topic}


@app.get("/items/{item_id}/reviews")
async def read_reviews(item_id: int) -> object:
    return {"item": item_id, "text": tidy("Good!" + " " * 11_000 + "Would buy again.")}


def tidy(text: str) -> str:
    # For each space it looks at all that follow: quadratic.
    return TRAILING_SPACE.sub("", text)  # blocks


@app.get("/health")
async def health() -> object:
    return {"status": "ok"}
