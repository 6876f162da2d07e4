"""Asks many things of a server at once, each in a trace of its own, by the plainest of clients."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Asked:
    """A request that was sent: its trace, and between which unix seconds it was sent."""

    path: str
    method: str = "GET"
    body: bytes = b""
    sampled: bool = True
    trace_id: str = field(default_factory=lambda: secrets.token_hex(16))
    status: int = 0
    sending: float = 0.0
    sent: float = 0.0

    def head(self) -> bytes:
        lines = [
            f"{self.method} {self.path} HTTP/1.1",
            "Host: test",
            f"traceparent: 00-{self.trace_id}-{secrets.token_hex(8)}-0{int(self.sampled)}",
        ]
        if self.body:
            lines.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join([*lines, "", ""]).encode()


class Connection:
    """One kept-alive connection."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self) -> Connection:
        self._streams = await asyncio.open_connection(*self._address)
        return self

    async def ask(self, *pipelined: Asked) -> None:
        """Send them in one piece, and read all answers."""
        if self._streams is None:
            await self.open()
        assert self._streams is not None
        reader, writer = self._streams
        for asked in pipelined:
            asked.sending = time.time()
        writer.write(b"".join(asked.head() + asked.body for asked in pipelined))
        for asked in pipelined:
            asked.sent = time.time()
        for asked in pipelined:
            asked.status = await _answer(reader)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


async def _answer(reader: asyncio.StreamReader) -> int:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    if "transfer-encoding: chunked" in head:
        while int(size := (await reader.readuntil(b"\r\n")).strip() or b"0", 16):
            await reader.readexactly(int(size, 16) + 2)
        await reader.readexactly(2)
    else:
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        await reader.readexactly(length)
    return int(head.split()[1])


async def ask_after(seconds: float, connection: Connection, *asked: Asked) -> None:
    await asyncio.sleep(seconds)
    await connection.ask(*asked)


async def connections(url: str, count: int) -> list[Connection]:
    return list(await asyncio.gather(*(Connection(url).open() for _ in range(count))))


def close_all(those: Iterable[Connection]) -> None:
    for each in those:
        each.close()
