"""The demo's visitors: they call every address that they are given, several at a time, and expect nothing.

A script that needs only the standard library, run in a process of its own: its threads must not take the GIL from the
app that is watched. It reads one line of JSON, answers with one, and ends at once when its input ends.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import threading
import time
from collections.abc import Sequence

ANSWER_WITHIN = 3.0


def main() -> None:
    question = sys.stdin.readline()
    if not question:
        return
    asked = json.loads(question)
    threading.Thread(target=_end_with_input, daemon=True).start()
    deadline = time.monotonic() + asked["seconds"]
    answers: list[int | None] = []
    for visitors in asked["parties"]:
        visit(asked["port"], asked["paths"], visitors, deadline, answers)
    failed = sum(status is None or status >= 500 for status in answers)
    print(json.dumps({"calls": len(answers), "failed": failed}))


def visit(
    port: int, paths: Sequence[str], visitors: int, deadline: float, answers: list[int | None]
) -> None:
    """Let each visitor call all paths, one after the other; nobody begins a call after `deadline`."""

    def walk(first: int) -> None:
        for path in [*paths[first:], *paths[:first]]:
            if time.monotonic() < deadline:
                answers.append(_get(port, path))

    # Each begins elsewhere, so that unlike calls meet.
    walkers = [
        threading.Thread(target=walk, args=[visitor * len(paths) // visitors], daemon=True)
        for visitor in range(visitors)
    ]
    for walker in walkers:
        walker.start()
    for walker in walkers:
        walker.join(max(0.0, deadline + ANSWER_WITHIN - time.monotonic()))


def _get(port: int, path: str) -> int | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_WITHIN)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return response.status


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
