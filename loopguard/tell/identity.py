"""Who this process is: in a container every pid is 1."""

from __future__ import annotations

import os
import socket
import time
import uuid
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from loopguard.record import Process
from loopguard.tell.resource import resource_attributes


@cache
def own_version() -> str | None:
    """The version of loopguard that is installed; None where it runs from a bare checkout."""
    try:
        return version("asyncio-loopguard")
    except PackageNotFoundError:
        return None


@dataclass(frozen=True, slots=True)
class Identity:
    """This process, by OpenTelemetry's variables where they are set; the instance is random where they are not."""

    attributes: dict[str, str] = field(default_factory=lambda: resource_attributes(os.environ))
    host: str = field(default_factory=socket.gethostname)
    instance: str = field(default_factory=lambda: str(uuid.uuid4()))
    started_at: float = field(default_factory=time.time)

    def process(self, loop_seconds: float, requests: int) -> Process:
        """The process as a record tells of it, after so many seconds watched and requests served."""
        return Process(
            instance=self.attributes.get("service.instance.id", self.instance),
            host=self.host,
            service=self.attributes.get("service.name"),
            version=self.attributes.get("service.version"),
            started_at=self.started_at,
            loop_seconds=loop_seconds,
            requests=requests,
        )
