"""Takes the pictures of docs/report.md anew, from a run of the demo: `python docs/screenshots.py` (needs Chromium)."""

from __future__ import annotations

import html
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

PICTURES = Path(__file__).with_name("pictures")
ROOT = Path(__file__).resolve().parents[1]
TERMINAL = """<!doctype html><meta charset="utf-8"><style>
body { margin: 0; width: max-content; background: #17191d; }
pre { margin: 0; padding: 18px 22px; color: #e4e6ea; font: 13px/1.45 "DejaVu Sans Mono", monospace; }
b { color: #ffffff; } i { color: #a0a7b2; font-style: normal; }
</style><pre>%s</pre>"""


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        loopguard("demo", folder=folder)
        text = loopguard("report", "loopguard-demo.jsonl", folder=folder, FORCE_COLOR="1")
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = folder / "loopguard-demo.html"
        for scheme in ("light", "dark"):
            picture(browser, page.as_uri(), f"report-{scheme}.png", scheme=scheme, open_row=True)
        terminal = folder / "terminal.html"
        terminal.write_text(TERMINAL % marked_up(text), "utf-8")
        picture(browser, terminal.as_uri(), "report-terminal.png", element="pre")
        live_picture(browser, folder / "loopguard-demo.jsonl", "watch-web.png")
        browser.close()


def loopguard(*arguments: str, folder: Path, **variables: str) -> str:
    """Run a command as a user does, and give what it prints."""
    return subprocess.run(
        [sys.executable, "-m", "loopguard", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LOOPGUARD_ROOT": str(ROOT), **variables},
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ).stdout


def picture(
    browser: Any,
    address: str,
    name: str,
    *,
    scheme: str = "light",
    open_row: bool = False,
    element: str = "",
) -> None:
    context = browser.new_context(
        viewport={"width": 1280, "height": 860}, color_scheme=scheme, device_scale_factor=1
    )
    page = context.new_page()
    page.goto(address)
    if open_row:
        page.locator(".toggle").last.click()
        page.evaluate("scrollTo(0, 0); document.activeElement.blur()")
    if element:
        page.locator(element).screenshot(path=PICTURES / name)
    else:
        page.screenshot(path=PICTURES / name, full_page=open_row)
    context.close()


def live_picture(browser: Any, records: Path, name: str) -> None:
    """The live page, while a stall of the demo lasts once more."""
    following = records.with_name("followed.jsonl")
    shutil.copy(records, following)
    command = [sys.executable, "-m", "loopguard", "watch", str(following), "--web", "--no-open"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as watch:
        assert watch.stdout
        address = watch.stdout.readline().split()[1]
        context = browser.new_context(viewport={"width": 1280, "height": 560})
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("main[data-ready]")
        last = json.loads(records.read_text().splitlines()[-1])
        now = {"id": "now", "ongoing": True, "started_at": time.time() - 1, "duration": 1.0}
        with following.open("a") as file:
            file.write(json.dumps({**last, **now}) + "\n")
        page.wait_for_selector(".lasting")
        page.wait_for_timeout(1000)
        page.screenshot(path=PICTURES / name)
        context.close()
        watch.terminate()


def marked_up(text: str) -> str:
    """The terminal's bold and dim as elements."""
    escaped = html.escape(text).replace("\x1b[1m", "<b>").replace("\x1b[2m", "<i>")
    lines = []
    for line in escaped.splitlines():
        end = "</b>" if "<b>" in line else "</i>"
        lines.append(line.replace("\x1b[0m", end))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
