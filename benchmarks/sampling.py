"""What is found of stalls where an SDK samples at the head of the trace: `python benchmarks/sampling.py`.

At each rate a process of its own serves a FastAPI app, with ten requests in flight whenever another one blocks, and counts
what came of each stall: in the log's records and in the metrics, as a span in its request's trace or as a root of its own, and
the spans of the requests that had to wait. Prints a table for docs/jaeger.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from typing import Any

BESIDE = 10
BUDGET, BLOCK = 0.02, 0.05
HEAD = (
    "| sampled at the head | stalls | in log and metrics | span in the request's trace | span as a root of its own "
    "| no span | delayed requests | with a span |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stalls", type=int, default=300)
    parser.add_argument("--rates", default="1,10,100", help="percent, by commas")
    parser.add_argument("--one", type=float, help="only this rate, in this process, as JSON")
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(asyncio.run(measure(options.one / 100, options.stalls))))
        return
    print(HEAD)
    print("| --- " * HEAD.count(" |") + "|")
    # At the same time: they mostly wait.
    children = {rate: _child(rate, options.stalls) for rate in options.rates.split(",")}
    for rate, child in children.items():
        output, _ = child.communicate()
        if child.returncode:
            raise SystemExit(child.returncode)
        found = json.loads(output)
        print(f"| {rate} % | " + " | ".join(_cell(name, found) for name in _COLUMNS) + " |")


_COLUMNS = ("stalls", "counted", "in_trace", "root", "none", "delayed", "delay_spans")


def _cell(name: str, found: dict[str, int]) -> str:
    whole = found["delayed"] if name == "delay_spans" else found["stalls"]
    number = found[name]
    if name in ("stalls", "delayed") or not whole:
        return str(number)
    return f"{number} ({100 * number / whole:.1f} %)"


def _child(rate: str, stalls: int) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--one", rate, "--stalls", str(stalls)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def measure(rate: float, stalls: int) -> dict[str, int]:
    """What was found after so many stalls, at a rate from 0 to 1."""
    import httpx
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    import loopguard

    told: list[loopguard.Stall] = []
    spans, reader = InMemorySpanExporter(), _telemetry(rate)
    app = _shop(spans)
    guard = loopguard.install(app, budget=BUDGET, log=False, on_stall=told.append)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        await client.get("/waits/0.01")
        for _ in range(stalls):
            beside = [asyncio.create_task(client.get("/waits/0.03")) for _ in range(BESIDE)]
            await asyncio.sleep(0.01)
            await client.get("/blocks")
            await asyncio.gather(*beside)
    await asyncio.to_thread(guard.flush, 10)
    return _found(told, spans, reader)


def _telemetry(rate: float) -> Any:
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    trace.set_tracer_provider(TracerProvider(sampler=ParentBasedTraceIdRatio(rate)))
    return reader


def _shop(spans: Any) -> Any:
    from fastapi import FastAPI
    from opentelemetry import trace
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    provider = trace.get_tracer_provider()
    assert isinstance(provider, TracerProvider)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    app = FastAPI()

    @app.get("/waits/{seconds}")
    async def waits(seconds: float) -> None:
        await asyncio.sleep(seconds)

    @app.get("/blocks")
    async def blocks() -> None:
        time.sleep(BLOCK)

    FastAPIInstrumentor.instrument_app(app)
    return app


def _found(told: list[Any], spans: Any, reader: Any) -> dict[str, int]:
    meant = {stall.id: stall for stall in told if stall.call == "time.sleep"}
    mine = [span for span in spans.get_finished_spans() if span.name == "event_loop.stall"]
    mine = [span for span in mine if span.attributes["loopguard.stall.id"] in meant]
    delays = [span for span in spans.get_finished_spans() if span.name == "event_loop.delay"]
    roots = sum(span.parent is None for span in mine)
    return {
        "stalls": len(meant),
        "counted": min(len(meant), _counted(reader)),
        "in_trace": len(mine) - roots,
        "root": roots,
        "none": len(meant) - len(mine),
        "delayed": sum(stall.delayed_requests or 0 for stall in meant.values()),
        "delay_spans": sum(span.attributes["loopguard.stall.id"] in meant for span in delays),
    }


def _counted(reader: Any) -> int:
    """The stalls in blocking routes, by the metrics."""
    [resource] = reader.get_metrics_data().resource_metrics
    return sum(
        int(point.value)
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "loopguard.stalls"
        for point in metric.data.data_points
        if point.attributes.get("http.route") == "/blocks"
    )


if __name__ == "__main__":
    main()
