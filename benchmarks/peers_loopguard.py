"""loopguard on the corpus, in the form in which it is compared with its peers."""

from __future__ import annotations

import json
import sys

from benchmarks.peers_told import Told
from tests.corpus import session


class Peer(session.Loopguard):
    def told(self) -> list[session.Row]:
        return [
            Told(
                started_at=stall["started_at"],
                duration=stall["duration"],
                stack=[(stall["culprit"]["file"], stall["culprit"]["line"])]
                if stall["culprit"]
                else [],
                trace_id=(stall["request"] or {}).get("trace_id"),
                causes=[stall["cause"]],
                said=json.dumps(stall),
            ).row()
            for stall in super().told()
        ]


if __name__ == "__main__":
    session.run(Peer(), *sys.argv[1:])
