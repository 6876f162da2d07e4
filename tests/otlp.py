"""A receiver of OTLP over HTTP on loopback: keeps what it is sent, in plain Python, for a test to ask."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass
class Received:
    """All that came until now. Ids are hex, attributes are plain; of each metric the latest data."""

    endpoint: str
    spans: list[dict[str, Any]] = field(default_factory=list)
    logs: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        """Attributes and value of each point of a metric; of a histogram the whole point."""
        metric = self.metrics.get(name)
        if metric is None:
            return []
        data = getattr(metric, metric.WhichOneof("data"))
        return [(_plain(point.attributes), _value_of(point)) for point in data.data_points]

    def take(self, path: str, body: bytes) -> None:
        if path.endswith("/traces"):
            traces = ExportTraceServiceRequest.FromString(body)
            for whole in traces.resource_spans:
                self.spans += [
                    _span(each, _plain(whole.resource.attributes))
                    for part in whole.scope_spans
                    for each in part.spans
                ]
        elif path.endswith("/logs"):
            logs = ExportLogsServiceRequest.FromString(body)
            self.logs += [
                _log(each)
                for whole in logs.resource_logs
                for part in whole.scope_logs
                for each in part.log_records
            ]
        elif path.endswith("/metrics"):
            metrics = ExportMetricsServiceRequest.FromString(body)
            for whole_metrics in metrics.resource_metrics:
                for part_metrics in whole_metrics.scope_metrics:
                    self.metrics.update({each.name: each for each in part_metrics.metrics})


@contextmanager
def receiving() -> Iterator[Received]:
    """A receiver, for as long as the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.take(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    received = Received(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def _span(span: Any, resource: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": span.name,
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent_id": span.parent_span_id.hex(),
        "kind": span.kind,
        "attributes": _plain(span.attributes),
        "resource": resource,
    }


def _log(record: Any) -> dict[str, Any]:
    return {
        "body": record.body.string_value,
        "severity": record.severity_text,
        "trace_id": record.trace_id.hex(),
        "attributes": _plain(record.attributes),
    }


def _plain(attributes: Any) -> dict[str, Any]:
    return {each.key: _value(each.value) for each in attributes}


def _value(typed: Any) -> Any:
    kind = typed.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in typed.array_value.values]
    return None if kind is None else getattr(typed, kind)


def _value_of(point: Any) -> Any:
    kind = point.WhichOneof("value") if "value" in point.DESCRIPTOR.oneofs_by_name else None
    return point if kind is None else getattr(point, kind)
