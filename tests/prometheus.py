"""A real Prometheus for the tests: on loopback, with an empty memory, scraping what it is told to each second."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

from tests.jaeger import free_ports

START_SECONDS = 30.0
# A proxy that the environment names would be asked for 127.0.0.1 too.
_open = build_opener(ProxyHandler({})).open

Series = dict[str, float]


def find_prometheus() -> Path | None:
    """The binary on the PATH, as Debian's package `prometheus` brings it."""
    found = shutil.which("prometheus")
    return None if found is None else Path(found)


@dataclass(frozen=True)
class Prometheus:
    """A running one."""

    url: str

    def query(self, expression: str) -> Series:
        """The value of each series that answers, by its labels; raises ValueError where it is no query."""
        answer = self._get(f"/api/v1/query?{urlencode({'query': expression})}")
        if answer["status"] != "success":
            raise ValueError(f"{expression}: {answer['error']}")
        data = answer["data"]
        if data["resultType"] == "scalar":
            return {"": float(data["result"][1])}
        return {
            json.dumps(each["metric"], sort_keys=True): float(each["value"][1])
            for each in data["result"]
        }

    def rules(self) -> list[dict[str, Any]]:
        """The rules that it has loaded, with what became of them."""
        groups = self._get("/api/v1/rules")["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def _get(self, path: str) -> Any:
        try:
            with _open(self.url + path, timeout=10) as response:
                return json.load(response)
        except HTTPError as error:
            with error:
                return json.load(error)


@contextmanager
def running_prometheus(
    binary: Path, directory: Path, targets: Sequence[str], rules: Path
) -> Iterator[Prometheus]:
    """A Prometheus of our own, on a free port of 127.0.0.1; it ends with the block."""
    directory.mkdir()
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "shop", "static_configs": [{"targets": list(targets)}]}],
    }
    (directory / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    [port] = free_ports(1)
    with (directory / "log").open("wb") as output:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={directory / 'config.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        _wait_until_ready(process, prometheus, directory / "log")
        yield prometheus
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], prometheus: Prometheus, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            _open(f"{prometheus.url}/-/ready", timeout=5).close()
        except OSError:  # urllib's errors are OSErrors too
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"Prometheus does not start:\n{log.read_text(errors='replace')[-3000:]}")
