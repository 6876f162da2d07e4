"""The others that the cases wait for, in a process of their own: each answers after `BLOCK` seconds.

TCP, TLS (without a certificate), UDP, and a name server. Ends when its standard input does.
"""

from __future__ import annotations

import json
import socketserver
import ssl
import struct
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from tests.corpus.label import BLOCK


class Stream(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with suppress(OSError):
            while self.request.recv(1 << 16):
                time.sleep(BLOCK)
                self.request.sendall(b"none of your protocols\n")


class Encrypted(Stream):
    def setup(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")
        self.request = context.wrap_socket(self.request, server_side=True)


class Datagram(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        data, socket = self.request
        time.sleep(BLOCK)
        socket.sendto(self.answer(data), self.client_address)

    def answer(self, data: bytes) -> bytes:
        return b"!"


class Name(Datagram):
    def answer(self, data: bytes) -> bytes:
        """One A record for whatever was asked (RFC 1035)."""
        end = data.index(b"\0", 12) + 5
        header = data[:2] + struct.pack("!5H", 0x8180, 1, 1, 0, 0)
        record = struct.pack("!3HIH4B", 0xC00C, 1, 1, 60, 4, 192, 0, 2, 1)
        return header + data[12:end] + record


class Streams(socketserver.ThreadingTCPServer):
    daemon_threads = True


class Datagrams(socketserver.ThreadingUDPServer):
    daemon_threads = True


def main() -> None:
    here = ("127.0.0.1", 0)
    servers: dict[str, Any] = {
        "TCP": Streams(here, Stream),
        "TLS": Streams(here, Encrypted),
        "UDP": Datagrams(here, Datagram),
        "DNS": Datagrams(here, Name),
    }
    for server in servers.values():
        threading.Thread(target=server.serve_forever, daemon=True).start()
    ports = {name: str(server.server_address[1]) for name, server in servers.items()}
    print("ready", json.dumps(ports), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
