"""What the tests' own Jaeger gives back is what the SDK sent, field by field, by either protocol.

Were it not so, every other test that reads a trace back would test the helper.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.jaeger import VERSION, Jaeger, find_jaeger, running_jaeger

pytest.importorskip("opentelemetry.sdk", reason="needs the extra `otlp`")

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
    OTLPSpanExporter as GrpcExporter,
)
from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
    OTLPSpanExporter as HttpExporter,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation import set_span_in_context

SCRIPT = Path(__file__).parent.parent / ".ci" / "jaeger"
ATTRIBUTES: dict[str, Any] = {
    "text": "naïve ✓",
    "whole": 2**53 + 1,
    "real": 0.25,
    "yes": True,
    "list": ["a", "b"],
}


@pytest.fixture(scope="module")
def jaeger() -> Iterator[Jaeger]:
    binary = find_jaeger()
    if binary is None:
        pytest.skip("no Jaeger here: build one with .ci/jaeger, or name one in LOOPGUARD_JAEGER")
    with running_jaeger(binary) as running:
        yield running


def over_http(jaeger: Jaeger) -> SpanExporter:
    return HttpExporter(endpoint=f"{jaeger.otlp_http}/v1/traces")


def over_grpc(jaeger: Jaeger) -> SpanExporter:
    return GrpcExporter(endpoint=jaeger.otlp_grpc, insecure=True)


@pytest.mark.parametrize("exporter", [over_http, over_grpc])
def test_two_spans_come_back_field_by_field(
    jaeger: Jaeger, exporter: Callable[[Jaeger], SpanExporter]
) -> None:
    service = f"itself-{exporter.__name__}"
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(SimpleSpanProcessor(exporter(jaeger)))
    tracer = provider.get_tracer("a scope")
    began = time.time_ns()
    elsewhere = SpanContext(2**127 + 1, 2**63 + 1, is_remote=True, trace_flags=TraceFlags(1))

    parent = tracer.start_span("parent", kind=SpanKind.SERVER, start_time=began)
    child = tracer.start_span(
        "child",
        set_span_in_context(parent),
        attributes=ATTRIBUTES,
        links=[Link(elsewhere, {"why": "delayed", "seconds": 0.5})],
        start_time=began + 1_000_001,
    )
    child.set_status(Status(StatusCode.ERROR, "it was slow"))
    child.end(began + 2_000_002)
    parent.end(began + 3_000_003)
    provider.shutdown()

    trace_id = f"{parent.get_span_context().trace_id:032x}"
    first, second = jaeger.wait_for_spans(trace_id, 2)
    assert first["resource"]["service.name"] == service
    assert first | {"resource": {}} == {
        "name": "parent",
        "traceId": trace_id,
        "spanId": f"{parent.get_span_context().span_id:016x}",
        "parentSpanId": "",
        "kind": 2,
        "startTimeUnixNano": began,
        "endTimeUnixNano": began + 3_000_003,
        "attributes": {},
        "status": {"code": 0, "message": ""},
        "links": [],
        "scope": "a scope",
        "resource": {},
    }
    assert second | {"resource": {}} == {
        "name": "child",
        "traceId": trace_id,
        "spanId": f"{child.get_span_context().span_id:016x}",
        "parentSpanId": first["spanId"],
        "kind": 1,
        "startTimeUnixNano": began + 1_000_001,
        "endTimeUnixNano": began + 2_000_002,
        "attributes": ATTRIBUTES,
        "status": {"code": 2, "message": "it was slow"},
        "links": [
            {
                "traceId": f"{elsewhere.trace_id:032x}",
                "spanId": f"{elsewhere.span_id:016x}",
                "attributes": {"why": "delayed", "seconds": 0.5},
            }
        ],
        "scope": "a scope",
        "resource": {},
    }

    assert jaeger.search(service) == [trace_id]
    of_the_child = {"text": "naïve ✓", "whole": str(2**53 + 1)}
    assert jaeger.search(service, "child", of_the_child) == [trace_id]
    assert jaeger.search(service, "parent", {"text": "naïve ✓"}) == []  # tags and name on one span
    assert jaeger.search("nobody") == []
    assert jaeger.warnings(trace_id) == []


def test_a_child_that_leaves_its_parent_is_marked(jaeger: Jaeger) -> None:
    """So that a test which finds no warning has found something out."""
    provider = TracerProvider(resource=Resource.create({"service.name": "itself-skew"}))
    provider.add_span_processor(SimpleSpanProcessor(over_http(jaeger)))
    tracer = provider.get_tracer("a scope")
    began = time.time_ns()
    parent = tracer.start_span("parent", start_time=began)
    tracer.start_span("child", set_span_in_context(parent), start_time=began - 5_000_000).end(began)
    parent.end(began + 10_000_000)
    provider.shutdown()

    trace_id = f"{parent.get_span_context().trace_id:032x}"
    jaeger.wait_for_spans(trace_id, lambda spans: {s["name"] for s in spans} == {"parent", "child"})
    assert any("clock skew" in warning for warning in jaeger.warnings(trace_id))


def test_an_unknown_trace_has_no_spans_and_waiting_for_it_ends(jaeger: Jaeger) -> None:
    unknown = "0" * 31 + "1"
    assert jaeger.trace_v3(unknown) == []
    with pytest.raises(TimeoutError, match="0 spans"):
        jaeger.wait_for_spans(unknown, 1, timeout=0.1)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's /proc")
def test_it_listens_on_loopback_only(jaeger: Jaeger) -> None:
    sockets = {
        os.readlink(fd)  # noqa: PTH115 - the target is `socket:[…]`, which is no path
        for fd in Path(f"/proc/{jaeger.pid}/fd").iterdir()
    }
    listening = [
        local
        for table in ("tcp", "tcp6")
        for _, local, _, state, *_, inode in map(_columns, _rows(jaeger.pid, table))
        if state == "0A" and f"socket:[{inode}]" in sockets
    ]
    assert len(listening) == 4
    assert all(local.startswith("0100007F:") for local in listening)  # 127.0.0.1, little end first


def _rows(pid: int, table: str) -> list[str]:
    file = Path(f"/proc/{pid}/net/{table}")
    return file.read_text().splitlines()[1:] if file.exists() else []


def _columns(row: str) -> list[str]:
    return row.split()[:10]


def test_it_ends_with_its_block(jaeger: Jaeger) -> None:
    binary = find_jaeger()
    assert binary is not None
    with running_jaeger(binary) as second:
        assert second.query != jaeger.query
        os.kill(second.pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(second.pid, 0)


def test_a_program_that_is_no_jaeger_is_told_with_its_own_words(tmp_path: Path) -> None:
    impostor = _program(tmp_path / "jaeger", "echo 'what is a config?' >&2; exit 1")
    with pytest.raises(RuntimeError, match="what is a config"), running_jaeger(impostor):
        pass


@pytest.mark.core
class TestWhereItIsLookedFor:
    @pytest.fixture(autouse=True)
    def nowhere(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("LOOPGUARD_JAEGER", raising=False)
        monkeypatch.setenv("LOOPGUARD_JAEGER_DIR", str(tmp_path / "cache"))
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
        (tmp_path / "cache").mkdir()

    def test_nowhere(self) -> None:
        assert find_jaeger() is None

    @pytest.mark.skipif(shutil.which("bash") is None, reason="the script needs bash")
    def test_where_the_script_puts_it(self, tmp_path: Path) -> None:
        built = _program(tmp_path / "cache" / f"jaeger-{VERSION}", "exit 0")
        said = subprocess.run(["bash", SCRIPT], check=True, capture_output=True, text=True)
        assert Path(said.stdout.splitlines()[-1]) == built == find_jaeger()

    def test_on_the_path_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _program(tmp_path / "cache" / f"jaeger-{VERSION}", "exit 0")
        mine = _program(tmp_path / "jaeger", "exit 0")
        monkeypatch.setenv("PATH", str(tmp_path))
        assert find_jaeger() == mine

    def test_a_wrong_name_is_an_error_not_a_skip(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LOOPGUARD_JAEGER", str(tmp_path / "missing"))
        with pytest.raises(FileNotFoundError, match="LOOPGUARD_JAEGER"):
            find_jaeger()

    @pytest.mark.skipif(shutil.which("bash") is None, reason="the script needs bash")
    def test_the_script_says_so_where_there_is_no_go(self, tmp_path: Path) -> None:
        for tool in ("bash", "mkdir"):
            found = shutil.which(tool)
            assert found is not None
            (tmp_path / "bin").mkdir(exist_ok=True)
            (tmp_path / "bin" / tool).symlink_to(found)
        said = subprocess.run(
            ["bash", SCRIPT],
            env={"PATH": str(tmp_path / "bin"), "LOOPGUARD_JAEGER_DIR": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (said.returncode, said.stdout) == (3, "")
        assert "no `go`" in said.stderr


def _program(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path
