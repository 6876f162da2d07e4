"""A real Jaeger for the tests: find its binary, run it on loopback, read back what it was sent.

`.ci/jaeger` builds the binary. Spans are read through `/api/v3`, which gives nanoseconds and the
links' attributes; the API behind Jaeger's own page (`/api/traces`) gives neither, but it alone can
search by tags and shows the warnings that a user would see.

Never poll a trace whose `warnings()` are to be checked while spans of it may be missing: each read
through `/api/v3` of a child without its parent writes a warning into the stored trace, for good.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

VERSION = "1.76.0"
START_SECONDS = 30.0  # it answers within 0.2 s on an idle machine

# A proxy that the environment names would be asked for 127.0.0.1 too.
_open = build_opener(ProxyHandler({})).open


class Status(TypedDict):
    code: int  # 0 unset, 1 ok, 2 error
    message: str


class Link(TypedDict):
    traceId: str
    spanId: str
    attributes: dict[str, Any]


class Span(TypedDict):
    """One span of `/api/v3/traces`, with what stood around it: its scope and its resource."""

    name: str
    traceId: str
    spanId: str
    parentSpanId: str  # empty for a root
    kind: int  # 1 internal, 2 server, 3 client, 4 producer, 5 consumer
    startTimeUnixNano: int
    endTimeUnixNano: int
    attributes: dict[str, Any]
    status: Status
    links: list[Link]
    scope: str
    resource: dict[str, Any]


def find_jaeger() -> Path | None:
    """The binary: what `LOOPGUARD_JAEGER` names, else on the PATH, else what `.ci/jaeger` built."""
    if named := os.environ.get("LOOPGUARD_JAEGER"):
        if not os.access(named, os.X_OK):
            # Whoever names one wants these tests to run: a skip would hide the mistake.
            raise FileNotFoundError(f"LOOPGUARD_JAEGER is no program: {named}")
        return Path(named)
    if found := shutil.which("jaeger"):
        return Path(found)
    built = _cache() / f"jaeger-{VERSION}"
    return built if os.access(built, os.X_OK) else None


def _cache() -> Path:
    # The same words as in `.ci/jaeger`; a test holds the two together.
    if named := os.environ.get("LOOPGUARD_JAEGER_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loopguard"


@dataclass(frozen=True)
class Jaeger:
    """A running one. Its addresses, and what it says of the spans that it was sent.

    `scraped` is where its Prometheus exporter shows the metrics that it was sent, where it was asked for one.
    """

    otlp_http: str
    otlp_grpc: str
    query: str
    pid: int
    scraped: str | None = None

    def trace_v3(self, trace_id: str) -> list[Span]:
        """All spans of a trace, by start; none where Jaeger does not know the trace (yet)."""
        answer = self._get(f"/api/v3/traces/{trace_id}")
        spans = [] if answer is None else _flatten(answer["result"])
        return sorted(spans, key=lambda span: span["startTimeUnixNano"])

    def search(
        self, service: str, operation: str | None = None, tags: Mapping[str, str] | None = None
    ) -> list[str]:
        """Ids of the traces that the page's search finds: all tags on one span, exact, as text."""
        asked = {"service": service, "limit": "1000", "lookback": "custom"}
        asked |= {"start": "0", "end": str(time.time_ns() // 1000 + 3_600_000_000)}  # µs
        if operation is not None:
            asked["operation"] = operation
        if tags:
            asked["tags"] = json.dumps(dict(tags))
        answer = self._get(f"/api/traces?{urlencode(asked)}") or {"data": []}
        return [trace["traceID"] for trace in answer["data"]]

    def warnings(self, trace_id: str) -> list[str]:
        """What the page marks in this trace, such as a span that leaves its parent's interval."""
        answer = self._get(f"/api/traces/{trace_id}") or {"data": []}
        marked = [item for trace in answer["data"] for item in (trace, *trace["spans"])]
        return [warning for item in marked for warning in item["warnings"] or ()]

    def wait_for_spans(
        self, trace_id: str, wanted: int | Callable[[list[Span]], bool], timeout: float = 10.0
    ) -> list[Span]:
        """The trace, once it has that many spans (or `wanted` says that it is whole)."""
        deadline = time.monotonic() + timeout
        while True:
            spans = self.trace_v3(trace_id)
            if wanted(spans) if callable(wanted) else len(spans) >= wanted:
                return spans
            if time.monotonic() > deadline:
                names = [span["name"] for span in spans]
                raise TimeoutError(
                    f"trace {trace_id} after {timeout} s: {len(names)} spans, {names}"
                )
            time.sleep(0.05)

    def _get(self, path: str) -> Any:
        try:
            with _open(self.query + path, timeout=10) as response:
                return json.load(response)
        except HTTPError as error:
            with error:  # it holds the socket
                if error.code == 404:
                    return None
                raise


@contextmanager
def running_jaeger(
    binary: Path, processors: Mapping[str, Any] | None = None, metrics: bool = False
) -> Iterator[Jaeger]:
    """A Jaeger of our own, with an empty memory, on free ports of 127.0.0.1.

    It is a Collector too: what it is sent goes through `processors`, in that order, and with `metrics` it takes those, for
    a Prometheus.
    """
    with tempfile.TemporaryDirectory(prefix="loopguard-jaeger-") as folder:
        process, jaeger = _start(binary, Path(folder), processors or {}, metrics)
        try:
            yield jaeger
        finally:
            _end(process)


def _start(
    binary: Path, folder: Path, processors: Mapping[str, Any], metrics: bool
) -> tuple[subprocess.Popen[bytes], Jaeger]:
    # Between choosing a free port and Jaeger's taking it somebody else may take it; Jaeger ends at
    # once then. To let it choose (port 0) is no way out: it does not say what it chose.
    config, log = folder / "config.yaml", folder / "log"
    for _ in range(3):
        http, grpc, query, query_grpc, *scraped = free_ports(5 if metrics else 4)
        whole = _config(http, grpc, query, query_grpc, processors)
        for port in scraped:
            whole["exporters"]["prometheus"] = {"endpoint": f"127.0.0.1:{port}"}
            pipeline = {"receivers": ["otlp"], "exporters": ["prometheus"]}
            whole["service"]["pipelines"]["metrics"] = pipeline
        config.write_text(json.dumps(whole))  # JSON is YAML
        with log.open("wb") as output:
            process = subprocess.Popen(
                [binary, "--config", config],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        jaeger = Jaeger(
            otlp_http=f"http://127.0.0.1:{http}",
            otlp_grpc=f"http://127.0.0.1:{grpc}",
            query=f"http://127.0.0.1:{query}",
            pid=process.pid,
            scraped=f"http://127.0.0.1:{scraped[0]}/metrics" if scraped else None,
        )
        if _becomes_ready(process, jaeger, grpc):
            return process, jaeger
        _end(process)
        if "address already in use" not in log.read_text(errors="replace"):
            break
    raise RuntimeError(f"{binary} does not start:\n{log.read_text(errors='replace')[-3000:]}")


def _config(
    http: int, grpc: int, query: int, query_grpc: int, processors: Mapping[str, Any]
) -> dict[str, Any]:
    """Without any, Jaeger listens on 16 ports of all interfaces, and traces itself."""

    def on(port: int) -> dict[str, str]:
        return {"endpoint": f"127.0.0.1:{port}"}

    return {
        "extensions": {
            "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 100_000}}}},
            "jaeger_query": {
                "storage": {"traces": "memory"},
                "http": on(query),
                "grpc": on(query_grpc),
                "enable_tracing": False,
            },
        },
        "receivers": {"otlp": {"protocols": {"http": on(http), "grpc": on(grpc)}}},
        "processors": dict(processors),
        "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
        "service": {
            "extensions": ["jaeger_storage", "jaeger_query"],
            "pipelines": {
                "traces": {
                    "receivers": ["otlp"],
                    "processors": list(processors),
                    "exporters": ["jaeger_storage_exporter"],
                }
            },
            "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
        },
    }


def free_ports(count: int) -> list[int]:
    # All open at once, so that no port is handed out twice.
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _becomes_ready(process: subprocess.Popen[bytes], jaeger: Jaeger, grpc: int) -> bool:
    empty = Request(
        f"{jaeger.otlp_http}/v1/traces", b"{}", {"Content-Type": "application/json"}, method="POST"
    )
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            _open(f"{jaeger.query}/api/v3/services", timeout=5).close()
            _open(empty, timeout=5).close()
            socket.create_connection(("127.0.0.1", grpc), timeout=5).close()
        except OSError:  # urllib's errors are OSErrors too
            time.sleep(0.02)
        else:
            return True
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _flatten(answer: dict[str, Any]) -> list[Span]:
    return [
        _span(raw, part.get("scope", {}).get("name", ""), _plain(whole["resource"]))
        for whole in answer["resourceSpans"]
        for part in whole["scopeSpans"]
        for raw in part["spans"]
    ]


def _span(raw: dict[str, Any], scope: str, resource: dict[str, Any]) -> Span:
    # Protobuf's JSON leaves out what is zero or empty.
    status = raw.get("status", {})
    return {
        "name": raw["name"],
        "traceId": raw["traceId"],
        "spanId": raw["spanId"],
        "parentSpanId": raw.get("parentSpanId", ""),
        "kind": raw.get("kind", 0),
        "startTimeUnixNano": int(raw["startTimeUnixNano"]),
        "endTimeUnixNano": int(raw["endTimeUnixNano"]),
        "attributes": _plain(raw),
        "status": {"code": status.get("code", 0), "message": status.get("message", "")},
        "links": [_link(link) for link in raw.get("links", [])],
        "scope": scope,
        "resource": resource,
    }


def _link(raw: dict[str, Any]) -> Link:
    return {"traceId": raw["traceId"], "spanId": raw["spanId"], "attributes": _plain(raw)}


def _plain(owner: dict[str, Any]) -> dict[str, Any]:
    return {each["key"]: _value(each["value"]) for each in owner.get("attributes", [])}


def _value(typed: dict[str, Any]) -> Any:
    """Protobuf's tagged value as Python's own. 64-bit integers come as strings."""
    if not typed:
        return None
    [(kind, value)] = typed.items()
    match kind:
        case "intValue":
            return int(value)
        case "doubleValue":
            return float(value)  # NaN and the infinities come as strings
        case "arrayValue":
            return [_value(each) for each in value.get("values", [])]
        case "kvlistValue":
            return {each["key"]: _value(each["value"]) for each in value.get("values", [])}
        case _:
            return value
