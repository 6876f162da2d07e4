"""The others that the app waits for, in a process of their own.

An HTTP server that answers `/0.3` after 0.3 seconds, and the holder of a locked SQLite database.
Ends when its standard input does.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Slow(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        time.sleep(float(self.path.removeprefix("/")))
        self.send_response(204)
        self.end_headers()


def main(database: str) -> None:
    connection = sqlite3.connect(database)
    connection.execute("begin exclusive")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"ready {server.server_address[1]}", flush=True)
    sys.stdin.read()
    connection.close()


if __name__ == "__main__":
    main(sys.argv[1])
