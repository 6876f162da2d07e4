"""Somebody's sampler, span processor or exporter raises or hangs at the spans of delays: it costs these alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.script import ran
from tests.real.server import read_rows
from tests.reliability import Say

pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("opentelemetry.instrumentation.fastapi")

ROUNDS = 2
VICTIMS = 6
PATIENCE = 2.0  # longer than it takes to the end: so uninstalling finds what hangs, and waits a moment for it

# Arguments: what is broken, its manner, a file for the records. Six requests tick while a seventh holds the loop; half
# of them end with the stall, half go on for a while. The fault is met at each second delay.
SERVES = """
import itertools, logging
import httpx, structlog
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from loopguard.tell import outlet

broken, manner, path, rounds, victims, patience = sys.argv[1:]
rounds, victims, outlet.PATIENCE = int(rounds), int(victims), float(patience)
number = itertools.count(1)

def meet(where, name):
    if where == broken and name == "event_loop.delay" and next(number) % 2:
        if manner == "raises":
            raise RuntimeError("no more of this")
        threading.Event().wait()

class BadSampler(Sampler):
    def should_sample(self, parent_context, trace_id, name, *rest, **more):
        meet("sampler", name)
        return ALWAYS_ON.should_sample(parent_context, trace_id, name, *rest, **more)
    def get_description(self):
        return "bad"

class BadProcessor(SpanProcessor):
    def on_end(self, span):
        meet("processor", span.name)

class BadExporter(SpanExporter):
    def export(self, spans):
        for span in spans:
            meet("exporter", span.name)
        return SpanExportResult.SUCCESS

class Said(logging.Handler):
    def emit(self, record):
        warned.append(record.getMessage())

warned, logged, heard = [], [], []
logging.getLogger("opentelemetry").addHandler(Said())
logging.getLogger("opentelemetry").propagate = False

def log(_logger, _method, event):
    logged.append(event["event"])
    raise structlog.DropEvent

structlog.configure(processors=[log])
good = InMemorySpanExporter()
provider = TracerProvider(sampler=BadSampler(), shutdown_on_exit=False)
provider.add_span_processor(SimpleSpanProcessor(good))
provider.add_span_processor(BadProcessor())
provider.add_span_processor(SimpleSpanProcessor(BadExporter()))
trace.set_tracer_provider(provider)

app = FastAPI()

@app.get("/ticks/{after}")
async def ticks(after: int) -> None:
    while not blocked.is_set():
        await asyncio.sleep(0.005)
    for _ in range(after):
        await asyncio.sleep(0.005)

@app.get("/blocks")
async def blocks() -> None:
    await asyncio.sleep(0.1)
    blocked.set()
    time.sleep(0.4)

FastAPIInstrumentor.instrument_app(app)
guard = loopguard.install(
    app, budget=0.1, jsonl=path, on_stall=lambda stall: heard.append(stall.delayed_requests)
)

async def main():
    global blocked
    statuses = []
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        for _ in range(rounds):
            blocked = asyncio.Event()
            asked = [client.get(f"/ticks/{40 * (n % 2)}") for n in range(victims)]
            answers = await asyncio.gather(*asked, client.get("/blocks"))
            statuses += [answer.status_code for answer in answers]
            await asyncio.sleep(0.1)
    return statuses

statuses = asyncio.run(main())
began = time.monotonic()
loopguard.uninstall()
ended = time.monotonic() - began
while manner == "hangs" and guard.stats()["sink_errors"] < rounds and time.monotonic() < began + 20:
    time.sleep(0.05)  # what hangs is given up after its time
spans = good.get_finished_spans()
say(
    statuses=statuses,
    ended=ended,
    stalls=[stall.call for stall in guard.stalls if stall.cause == "blocking_call"],
    stats=guard.stats(),
    logged=logged,
    heard=heard,
    warned=warned,
    sent=sum(span.name == "event_loop.stall" for span in spans),
    delays=sum(span.name == "event_loop.delay" for span in spans),
    marked=sum("loopguard.delay" in span.attributes for span in spans if span.kind.name == "SERVER"),
)
os._exit(0)  # what hangs does so for ever
"""


def delivered(broken: str, manner: str) -> tuple[int, int]:
    """How many spans of stalls and of delays get through to an exporter that is well."""
    if manner == "hangs":
        return 0, 0 if broken == "sampler" else 1  # which has passed it before it hangs
    return ROUNDS, ROUNDS * VICTIMS // (2 if broken == "sampler" else 1)


@pytest.mark.parametrize(
    "broken, manner",
    [
        pytest.param(
            *("sampler", "raises"),
            marks=pytest.mark.fault("a sampler raises at the span of a delay", "at each second"),
        ),
        pytest.param(
            *("sampler", "hangs"),
            marks=pytest.mark.fault("a sampler hangs at the span of a delay", "at the first"),
        ),
        pytest.param(
            *("processor", "raises"),
            marks=pytest.mark.fault(
                "a span processor raises at the span of a delay", "at the end of each second"
            ),
        ),
        pytest.param(
            *("processor", "hangs"),
            marks=pytest.mark.fault(
                "a span processor hangs at the span of a delay", "at the end of the first"
            ),
        ),
        pytest.param(
            *("exporter", "raises"),
            marks=pytest.mark.fault(
                "an exporter raises at the span of a delay",
                "at each second, behind the SDK's `SimpleSpanProcessor`",
            ),
        ),
        pytest.param(
            *("exporter", "hangs"),
            marks=pytest.mark.fault(
                "an exporter hangs at the span of a delay",
                "at the first, behind the SDK's `SimpleSpanProcessor`",
            ),
        ),
    ],
)
def test_what_goes_wrong_at_the_span_of_a_delay_costs_spans_alone(
    broken: str, manner: str, tmp_path: Path, row: Say
) -> None:
    """Also the requests' own spans are marked while they record, and never afterwards: the SDK would warn."""
    path = tmp_path / "stalls.jsonl"
    arguments = (broken, manner, path, ROUNDS, VICTIMS, PATIENCE)
    [said] = ran(SERVES, *arguments, options=("-W", "error")).said
    stats = said["stats"]
    assert said["statuses"] == [200] * ROUNDS * (VICTIMS + 1)
    assert said["stalls"] == ["time.sleep"] * ROUNDS
    assert said["logged"].count("event_loop.stall") == stats["logged"] == stats["stalls"]
    assert said["heard"].count(VICTIMS) == ROUNDS
    records = [each for each in read_rows(path) if not each["ongoing"]]
    assert len(records) == len(said["heard"]) == stats["stalls"]
    assert (said["sent"], said["delays"]) == delivered(broken, manner)
    assert said["ended"] < 3
    assert 0 < said["marked"] <= ROUNDS * VICTIMS // 2
    swallowed = (broken, manner) == ("exporter", "raises")  # by the SDK, which says so
    of_the_sdks = ["Exception while exporting Span."] * (ROUNDS * VICTIMS // 2)
    assert said["warned"] == (of_the_sdks if swallowed else [])
    # Where it comes after the end of the log, the word of the trouble is a record lost too.
    words = said["logged"].count("event_loop.guard.trouble")
    assert stats["sink_errors"] + words == (0 if swallowed else ROUNDS + 1)
    assert words <= 1
    sent, delays = said["sent"], said["delays"]
    row(
        f"each request is answered, and log, JSONL file and `on_stall` tell both stalls; to end took {said['ended']:.2f} s",
        f"the SDK's own: it logs {len(of_the_sdks)} of {ROUNDS * VICTIMS} spans of delays"
        if swallowed
        else f"{ROUNDS - sent} of {ROUNDS} spans of stalls and {ROUNDS * VICTIMS - delays} of {ROUNDS * VICTIMS} of delays; "
        f"{stats['sink_errors']} records, counted as `sink_errors`",
    )
