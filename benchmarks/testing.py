"""What the pytest plugin costs: suites of small async tests, with it on, with it off, and without it.

    python benchmarks/testing.py [--rounds N] [--tests N] [--json PATH]

Each round runs every suite in each of the three ways, in a process of its own and in changing order. Compared is the CPU
time of those processes (user and system), start and imports included: wall time says more of the machine's other work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[1]

SUITES = {
    "asyncio.run": """
import asyncio, pytest

async def double(n):
    await asyncio.sleep(0)
    return 2 * n

@pytest.mark.parametrize("n", range({tests}))
def test_doubles(n):
    async def all_of_them():
        return await asyncio.gather(*(double(n) for _ in range(5)))
    assert asyncio.run(all_of_them()) == [2 * n] * 5
""",
    "pytest-asyncio": """
import asyncio, pytest

async def double(n):
    await asyncio.sleep(0)
    return 2 * n

@pytest.mark.asyncio
@pytest.mark.parametrize("n", range({tests}))
async def test_doubles(n):
    assert await asyncio.gather(*(double(n) for _ in range(5))) == [2 * n] * 5
""",
    "FastAPI and httpx": """
import httpx, pytest
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()

class Item(BaseModel):
    name: str
    tags: list[str]

@app.post("/items/{{number}}")
async def add(number: int, item: Item) -> Item:
    return item

@pytest.mark.asyncio
@pytest.mark.parametrize("n", range({tests}))
async def test_adds(n):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
        item = {{"name": f"item {{n}}", "tags": ["a", "b"]}}
        answer = await client.post(f"/items/{{n}}", json=item)
        assert answer.status_code == 200 and answer.json() == item
""",
}

WAYS = {
    "without": ("-p", "no:asyncio_loopguard"),
    "off": ("-p", "asyncio_loopguard"),
    "on": ("-p", "asyncio_loopguard", "--stalls"),
}

# Bytecode is kept, as it is on anybody's machine.
_ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"},
    "PYTHONPATH": str(ROOT),
}


def cpu_of(suite: Path, *options: str) -> float:
    """CPU seconds of one run of pytest."""
    before = os.times()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider"),
            *("--rootdir", str(suite.parent), *options, str(suite)),
        ],
        cwd=suite.parent,
        env=_ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise SystemExit(done.stdout + done.stderr)
    after = os.times()
    return (after.children_user + after.children_system) - (
        before.children_user + before.children_system
    )


def interval(values: list[float], random: Random) -> tuple[float, float]:
    """What holds the median in 95 of 100 resamplings."""
    medians = sorted(statistics.median(random.choices(values, k=len(values))) for _ in range(2_000))
    return medians[50], medians[-51]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tests", type=int, default=1_000, help="in each suite")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    random = Random(9)
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for place, (name, source) in enumerate(SUITES.items()):
            suite = Path(folder) / f"test_suite_{place}.py"
            suite.write_text(source.format(tests=options.tests))
            cpu_of(
                suite, *WAYS["on"]
            )  # fills the caches of bytecode: it loads all that the others do
            rounds: list[dict[str, float]] = []
            for _ in range(options.rounds):
                order = random.sample(list(WAYS), k=len(WAYS))
                rounds.append({way: cpu_of(suite, *WAYS[way]) for way in order})
            bare = statistics.median(each["without"] for each in rounds)
            print(f"{name}: {bare:.2f} s of CPU without the plugin, {options.tests} tests")
            for way in ("off", "on"):
                ratios = [each[way] / each["without"] for each in rounds]
                low, high = interval(ratios, random)
                middle = statistics.median(ratios)
                figures[f"{name}.{way}"] = {"median": middle, "low": low, "high": high}
                print(f"    {way:<4} × {middle:.3f} ({low:.3f} to {high:.3f})")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
