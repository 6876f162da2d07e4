"""An app that is scraped by Prometheus, on a port of its own, so that a scrape is answered while the loop is held."""

from __future__ import annotations

import asyncio
import os
import time

import prometheus_client
from fastapi import FastAPI
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider

import loopguard

metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
scraped, _ = prometheus_client.start_http_server(0, addr="127.0.0.1")
print(f"scraped on {scraped.server_port}", flush=True)

app = FastAPI()
guard = loopguard.install(app, jsonl=os.environ["REAL_JSONL"])


@app.get("/hold/{seconds}")
async def hold(seconds: float) -> None:
    time.sleep(seconds)


@app.get("/allowed")
async def allowed() -> None:
    with loopguard.allow_blocking("once a day"):
        time.sleep(0.3)


@app.get("/often")
async def often() -> None:
    """Stalls of one line, more than the limits let into the log."""
    for _ in range(14):
        await asyncio.sleep(0.06)
        time.sleep(0.16)


@app.get("/threaded/{seconds}")
def threaded(seconds: float) -> None:
    """Waits in a thread; anyio has forty of them."""
    time.sleep(seconds)


@app.get("/waits/{seconds}")
async def waits(seconds: float) -> None:
    await asyncio.sleep(seconds)


@app.get("/pause")
async def pause() -> None:
    guard.pause()
