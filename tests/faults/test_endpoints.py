"""Where the output goes takes nothing, or answers nothing: the service goes on, and so do the other sinks."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.faults.script import ran
from tests.reliability import Say

EXPORTS = """
import logging
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

logging.basicConfig(filename=os.devnull)  # the SDK logs each failure with its traceback
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(sys.argv[1], timeout=1), schedule_delay_millis=100))
trace.set_tracer_provider(provider)
heard = []
guard = loopguard.install(budget=0.1, jsonl=sys.argv[2], on_stall=lambda stall: heard.append(stall.id))
beats = []

async def main():
    turning = asyncio.create_task(turn())
    for _ in range(3):
        await hold(0.3)
    await asyncio.sleep(1)
    turning.cancel()

async def turn():
    while True:
        beats.append(time.monotonic())
        await asyncio.sleep(0.02)

run(main())
assert guard.flush(20)
began = time.monotonic()
loopguard.uninstall()
ids = [stall.id for stall in guard.stalls]
longest = max(after - before for before, after in zip(beats[-30:], beats[-29:]))
say(calls=calls(guard), heard=heard == ids, stats=guard.stats(), ended=time.monotonic() - began, longest=longest)
os._exit(0)  # what the SDK does at its own end is not ours
"""


class Unavailable(BaseHTTPRequestHandler):
    """Answers 503."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_error(503)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def endpoint(kind: str) -> Iterator[int]:
    """The port of one that refuses, hangs, or is down."""
    if kind == "down":
        with ThreadingHTTPServer(("127.0.0.1", 0), Unavailable) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield server.server_port
            server.shutdown()
            thread.join()
        return
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if kind == "hangs":
            yield port
    if kind == "refuses":
        yield port


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            "down", marks=pytest.mark.fault("an OTLP endpoint that is down", "it answers 503")
        ),
        pytest.param(
            "refuses",
            marks=pytest.mark.fault("an OTLP endpoint that refuses", "nobody listens at its port"),
        ),
        pytest.param(
            "hangs",
            marks=pytest.mark.fault(
                "an OTLP endpoint that hangs", "it takes the connection and never answers"
            ),
        ),
    ],
)
def test_an_endpoint_that_takes_no_spans_costs_nothing_else(
    kind: str, tmp_path: Path, row: Say
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    path = tmp_path / "stalls.jsonl"
    with endpoint(kind) as port:
        [said] = ran(EXPORTS, f"http://127.0.0.1:{port}/v1/traces", path).said
    assert said["calls"] == ["time.sleep"] * 3
    assert said["heard"]
    assert len(path.read_text().splitlines()) >= 3
    assert said["stats"]["sink_errors"] == said["stats"]["troubles"] == 0
    assert said["ended"] < 2
    assert said["longest"] < 0.2
    row(
        "log, JSONL file and `on_stall` tell each of the 3; the loop does not wait",
        "the spans, which the SDK logs",
    )


FULL = """
import fcntl
reader, writer = os.pipe()
saved = os.dup(2)
os.dup2(writer, 2)
os.set_blocking(writer, False)
try:
    while True:
        os.write(writer, b"x" * 4096)
except BlockingIOError:
    os.set_blocking(writer, True)
heard = []
guard = loopguard.install(budget=0.1, jsonl=sys.argv[1], on_stall=lambda stall: heard.append(stall.id))
run(hold(0.3, times=3))
began = time.monotonic()
flushed = guard.flush(20)
lost = guard.stats()["sink_errors"]
loopguard.uninstall()
ended = time.monotonic() - began
ids = [stall.id for stall in guard.stalls]
say(calls=calls(guard), heard=heard == ids, lost=lost, flushed=flushed, ended=ended)
os.dup2(saved, 2)
os._exit(0)
"""


@pytest.mark.fault("stderr a full pipe", "a pipe that nobody reads, filled to its end")
@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_a_stderr_that_takes_nothing_costs_the_log_alone(tmp_path: Path, row: Say) -> None:
    path = tmp_path / "stalls.jsonl"
    [said] = ran(FULL, path).said
    assert said["calls"] == ["time.sleep"] * 3
    assert said["heard"]
    assert said["flushed"]
    assert len(path.read_text().splitlines()) >= 3
    assert said["lost"] >= 3
    assert said["ended"] < 8  # the patience with a sink that hangs, and some
    row(
        f"JSONL file and `on_stall` tell each of the 3; the log is given up as hung, and the end took {said['ended']:.1f} s",
        f"{said['lost']} lines of the log, counted as `sink_errors`",
    )
