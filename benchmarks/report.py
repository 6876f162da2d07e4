"""What a report costs: a page of 5,000 stalls, written and painted; and a gigabyte of JSONL, read.

    python benchmarks/report.py [--quick] [--json PATH]

Times are wall seconds of one run, with the seconds on a CPU beside them; memory is the peak of the process that reads. Painted is from the navigation to the
first frame after all parts are drawn, in Chromium; without one it is left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fleet import stalls
from loopguard.tell.jsonl import json_line

# What the figures are held against.
BOUNDS = {
    "page.megabytes": 1.0,
    "page.written_s": 2.0,
    "page.painted_s": 1.0,
    "gigabyte.read_s": 30.0,
    "gigabyte.peak_mb": 300.0,
}
READ = """
import resource, sys
from loopguard.cli import main
assert main(["report", *sys.argv[1:]]) == 0
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1000, file=sys.stderr)
"""
PAINTED = """() => new Promise((resolve) => {
  const wait = () => (document.querySelector("main[data-ready]")
    ? requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now()))) : setTimeout(wait, 5));
  wait();
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20 MB in place of 1 GB")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = {
            **page_of(5000, Path(folder)),
            **reading(20 if options.quick else 1000, Path(folder)),
        }
    for name, value in figures.items():
        bound = f"   (at most {BOUNDS[name]:g})" if name in BOUNDS else ""
        print(f"{name:19} {value:8.2f}{bound}")
    if options.json:
        options.json.write_text(json.dumps(figures))


def page_of(count: int, folder: Path) -> dict[str, float]:
    records, page = folder / "stalls.jsonl", folder / "page.html"
    records.write_text("".join(lines(count)))
    seconds, cpu, _ = report(str(records), "-o", str(page))
    figures = {
        "page.megabytes": page.stat().st_size / 1e6,
        "page.written_s": seconds,
        "page.written_cpu_s": cpu,
    }
    painted = painting(page)
    return figures if painted is None else {**figures, "page.painted_s": painted}


def reading(megabytes: int, folder: Path) -> dict[str, float]:
    """Read so many megabytes of different stalls, some 7 KB each, into the text report."""
    path = folder / "many.jsonl"
    wanted = megabytes * 1_000_000
    block = list(lines(2000))
    with path.open("w") as file:
        for number in itertools.count():
            # Ids are what makes them different stalls.
            file.writelines(line.replace('"id":"', f'"id":"{number:x}', 1) for line in block)
            if file.tell() >= wanted:
                break
    seconds, cpu, peak = report(str(path))
    return {
        "gigabyte.read_s": seconds,
        "gigabyte.read_cpu_s": cpu,
        "gigabyte.peak_mb": peak,
    }


def lines(count: int) -> Iterator[str]:
    return (f"{json_line(stall.to_dict())}\n" for stall in stalls(count))


def report(*arguments: str) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak megabytes of one `loopguard report`."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", READ, *arguments],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    cpu, peak = map(float, done.stderr.splitlines()[-1].split())
    return time.perf_counter() - began, cpu, peak


def painting(page: Path) -> float | None:
    chromium = shutil.which("chromium")
    if chromium is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        shown = browser.new_page()
        shown.goto(page.as_uri(), wait_until="commit")
        milliseconds = float(shown.evaluate(PAINTED))
        browser.close()
    return milliseconds / 1000


if __name__ == "__main__":
    main()
