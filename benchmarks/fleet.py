"""The records of a made-up fleet: some workers over some hours, a few culprits that stall often, many that rarely do."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from loopguard.record import Delayed, Frame, Holder, Process, Request, Stall
from tests.records import PROCESS, make_stall

STARTED_AT = 1_795_208_400.0
_PACKAGES = ("starlette", "fastapi", "uvicorn", "sqlalchemy", "requests", "urllib3", "pydantic")
_WHAT = ("invoice", "basket", "report", "customer", "price", "search", "export", "mail", "stock")
_VERBS = ("render", "load", "find", "export", "sum_up", "check", "import", "send", "merge")
_CAUSES = (
    ("blocking_call", "requests.api.get", "poll tcp 10.0.3.7:443"),
    ("blocking_call", "psycopg2.extensions.cursor.execute", "poll tcp 10.0.3.9:5432"),
    ("cpu", None, None),
    ("gil_hold", "re.Pattern.sub", None),
    ("lock", "_thread.lock.acquire", "futex"),
    ("gc", None, None),
    ("import", None, None),
    ("gil_wait", None, None),
)
_METHODS = ("GET", "POST", "PUT")


def stalls(count: int, *, workers: int = 4, hours: float = 3.7, seed: int = 1) -> Iterator[Stall]:
    """So many stalls, always the same ones, in the order of their start."""
    chance = random.Random(seed)
    processes = [_process(chance, number) for number in range(workers)]
    culprits = [_culprit(chance, number) for number in range(90)]
    weights = [1 / (rank + 1) for rank in range(len(culprits))]
    moments = sorted(chance.uniform(0, hours * 3600) for _ in range(count))
    for moment in moments:
        culprit = chance.choices(culprits, weights)[0]
        yield _stall(chance, moment, culprit, processes[chance.randrange(workers)])


def _stall(chance: random.Random, moment: float, culprit: Stall, process: Process) -> Stall:
    duration = min(30.0, chance.lognormvariate(-1.5, 0.7) + 0.1)
    assert culprit.request
    trace = f"{chance.getrandbits(128):032x}"
    delayed = tuple(_delayed(chance, duration) for _ in range(min(9, int(chance.expovariate(0.4)))))
    return replace(
        culprit,
        id=f"{chance.getrandbits(128):032x}",
        started_at=STARTED_AT + moment,
        duration=duration,
        severity="error" if duration >= 0.5 else "warning",
        cpu_time=duration * (0.02 if culprit.cause == "blocking_call" else 0.97),
        stack=_stack(chance, culprit),
        request=replace(culprit.request, trace_id=trace),
        trace_id=trace,
        delayed=tuple(sorted(delayed, key=lambda each: -each.delay)),
        delayed_requests=len(delayed),
        process=replace(process, loop_seconds=moment + 60, requests=int(moment * 9)),
        samples=max(1, int(duration * 40)),
    )


def _process(chance: random.Random, number: int) -> Process:
    return replace(
        PROCESS,
        instance=f"shop-{number}-{chance.getrandbits(20):05x}",
        host=f"node-{1 + number // 2}",
        service="shop",
        version="4.2",
        started_at=STARTED_AT - 60,
    )


def _culprit(chance: random.Random, number: int) -> Stall:
    what, verb = chance.choice(_WHAT), chance.choice(_VERBS)
    cause, call, waited_on = _CAUSES[min(chance.randrange(8), chance.randrange(8))]
    frame = Frame(
        file=f"app/{what}/{verb}.py",
        line=chance.randrange(20, 400),
        module=f"app.{what}.{verb}",
        function=f"{verb}_{what}",
        code=f"{(call or verb).rpartition('.')[2]}({what}, depth={number})",
        library=False,
    )
    request = Request(
        method=chance.choice(_METHODS),
        route=f"/v1/{what}s/{{id}}" + chance.choice(("", "/lines", "/history")),
        trace_id=None,
        span_id=f"{chance.getrandbits(64):016x}",
        started_at=STARTED_AT,
        background=number % 17 == 16,
    )
    holder = Holder("ThreadPoolExecutor-0_3", 4242, frame, (frame,)) if cause == "lock" else None
    return make_stall(
        duration_error=0.0025,
        cause=cause,
        culprit=frame,
        call=call,
        waited_on=waited_on,
        holder=holder,
        task=f"Task-{number}",
        request=request,
        span_id=None,
        delayed_complete=True,
        advice=f"await asyncio.to_thread({verb}_{what}, …)" if number % 5 else None,
        fingerprint=f"{number:016x}",
        pid=1,
    )


def _stack(chance: random.Random, culprit: Stall) -> tuple[Frame, ...]:
    """Some 30 frames: the server's, the app's, the culprit, and what it called."""
    assert culprit.culprit
    plumbing = [_library(number, 100 + number) for number in range(20)]
    between = [
        replace(
            culprit.culprit,
            function=f"{verb}_all",
            line=30 + step,
            code=f"await {verb}_all(request)",
        )
        for step, verb in enumerate(_VERBS[: chance.randrange(1, 4)])
    ]
    way = chance.randrange(3)
    inside = [_library(30 + number, 10 + way) for number in range(way * 3 + chance.randrange(3))]
    return (*plumbing, *between, culprit.culprit, *inside)


def _library(number: int, line: int) -> Frame:
    package = _PACKAGES[number % len(_PACKAGES)]
    return Frame(
        file=f"/usr/lib/python3.12/site-packages/{package}/part_{number}.py",
        line=line,
        module=f"{package}.part_{number}",
        function=f"Step{number}.__call__",
        code="await self.app(scope, receive, send)",
        library=True,
    )


def _delayed(chance: random.Random, duration: float) -> Delayed:
    what = chance.choice(_WHAT)
    return Delayed(
        method=chance.choice(_METHODS),
        route=f"/v1/{what}s/{{id}}",
        trace_id=f"{chance.getrandbits(128):032x}",
        span_id=f"{chance.getrandbits(64):016x}",
        delay=chance.uniform(0.1, 1.0) * duration,
        exact=chance.random() < 0.5,
        queued=chance.random() < 0.3,
        ready=None,
    )
