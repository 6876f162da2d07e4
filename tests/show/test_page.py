"""The page in a real Chromium: its parts, its filters, its address, by pointer, by keyboard, wide, narrow and on paper."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("requests")

import loopguard
from benchmarks.fleet import stalls as fleet
from loopguard.cli import main
from tests.show.browser import address_of, needs_chromium, opened
from tests.show.records import as_read, in_process, stall, write

pytestmark = needs_chromium

ROOT = Path(loopguard.__file__).parent.parent
TRACES = "http://localhost:16686/trace/{trace_id}"
ROWS = ".culprit-row"


def made(records: Path, path: Path, *options: str) -> Path:
    assert main(["report", str(records), "-o", str(path), "--trace-url", TRACES, *options]) == 0
    return path


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of a real run of the demo."""
    folder = tmp_path_factory.mktemp("demo")
    subprocess.run(
        [sys.executable, "-m", "loopguard", "demo", "--jsonl", "stalls.jsonl"],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
        timeout=100,
    )
    return folder / "stalls.jsonl"


@pytest.fixture(scope="module")
def demo_page(demo: Path) -> Path:
    return made(demo, demo.with_name("demo.html"))


@pytest.fixture(scope="module")
def fleet_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four workers, ninety culprits, delayed requests."""
    folder = tmp_path_factory.mktemp("fleet")
    return made(write(folder / "fleet.jsonl", fleet(600)), folder / "fleet.html")


@pytest.fixture
def page(fleet_page: Path, browser: Any) -> Iterator[Any]:
    with opened(browser, address_of(fleet_page)) as (page, seen):
        yield page
    assert seen.complaints == []


def names(page: Any) -> list[str]:
    return [str(name) for name in page.locator(f"{ROWS} .name").all_text_contents()]


def figures(page: Any, column: str) -> list[float]:
    texts = page.locator(f"{ROWS} .{column}-cell").all_text_contents()
    return [float(re.sub(r"[^\d.]", "", text) or -1) for text in texts]


def fragment(page: Any) -> str:
    return str(page.evaluate("decodeURIComponent(location.hash)"))


def fits(page: Any) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def test_the_page_of_the_demo_draws_all_its_parts(
    demo: Path, demo_page: Path, browser: Any
) -> None:
    finals = [record for record in as_read(demo) if not record["ongoing"]]
    with opened(browser, address_of(demo_page)) as (page, seen):
        assert (
            f"{len([r for r in finals if r['cause'] != 'not_scheduled'])} stalls"
            in page.locator("h1").inner_text()
        )
        lines = {f"{r['culprit']['file']}:{r['culprit']['line']}" for r in finals if r["culprit"]}
        assert lines <= set(page.locator(f"{ROWS} .place").all_text_contents())
        assert page.locator(".chip").count() == len({r["cause"] for r in finals})
        assert page.locator(".lane").count() == 1
        assert page.evaluate(DRAWN) > 100
        assert page.locator(".cell.own").count() >= len({r["fingerprint"] for r in finals})
        assert page.locator("#victims").is_visible()
    assert seen.complaints == []


# How many pixels of the timeline are painted.
DRAWN = """() => {
  const canvas = document.querySelector("canvas");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return data.filter((value, index) => index % 4 === 3 && value > 200).length;
}"""


def test_it_asks_for_nothing_but_itself(demo_page: Path, browser: Any) -> None:
    with opened(browser, address_of(demo_page)) as (page, seen):
        page.locator(".toggle").first.click()
        page.wait_for_timeout(200)
    assert [url for url in seen.requests if not url.startswith("data:")] == [address_of(demo_page)]
    assert seen.complaints == []


def test_a_cause_filters_every_part(page: Any) -> None:
    before = names(page)
    page.locator("#cause-lock").click()
    assert fragment(page) == "#cause=lock"
    assert 0 < len(names(page)) < len(before)
    assert set(page.locator(f"{ROWS} .cause-cell").all_text_contents()) == {"lock"}
    assert page.locator("#cause-lock").get_attribute("aria-pressed") == "true"
    held = page.locator("h1 strong").first.inner_text()
    assert page.locator(".cell.root").inner_text().split()[1:] == held.split()
    page.locator("#cause-lock").click()
    assert names(page) == before


def test_a_route_and_a_process_filter(page: Any) -> None:
    everything = page.locator("h1").inner_text()
    page.locator("#choose-process").select_option(index=2)
    assert "1 process," in page.locator("h1").inner_text()
    route = page.locator("#choose-route option").nth(5).inner_text()
    page.locator("#choose-process").select_option(index=0)
    page.locator("#choose-route").select_option(route)
    page.locator(".toggle").first.click()
    shown = page.locator("#opened table").first.locator("tbody td:nth-child(3)")
    assert set(shown.all_text_contents()) == {route}
    page.locator("#clear").click()
    assert page.locator("h1").inner_text() == everything


def test_dragging_over_the_timeline_chooses_a_time(page: Any) -> None:
    before = sum(figures(page, "count"))
    box = page.locator("#plot").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 25, steps=4)
    page.mouse.up()
    assert 0.15 < sum(figures(page, "count")) / before < 0.35
    assert fragment(page).startswith("#from=2026-11-")
    assert page.locator(".brush").is_visible()
    page.locator("#any-time").click()
    assert sum(figures(page, "count")) == before


def test_the_timeline_is_chosen_by_keyboard_too(page: Any) -> None:
    before = sum(figures(page, "count"))
    page.locator("#plot").focus()
    page.keyboard.press("ArrowRight")
    first = sum(figures(page, "count"))
    assert 0 < first < before
    for _ in range(5):
        page.keyboard.press("Shift+ArrowRight")
    assert first < sum(figures(page, "count")) < before
    page.keyboard.press("Escape")
    assert sum(figures(page, "count")) == before


def test_a_bar_opens_its_stall(demo_page: Path, browser: Any) -> None:
    with opened(browser, address_of(demo_page)) as (page, _):
        box = page.locator("#plot").bounding_box()
        for step in range(100):
            x, y = box["x"] + box["width"] * step / 100, box["y"] + 50
            page.mouse.move(x, y)
            if page.locator(".tip").is_visible():
                page.mouse.click(x, y)
                break
        assert page.locator("#opened").is_visible()
        assert "stall=" in fragment(page)


@pytest.mark.parametrize("column", ["seconds", "count", "longest", "delayed"])
def test_a_column_sorts_down_and_up(column: str, page: Any) -> None:
    if column != "seconds":
        page.locator(f"#sort-{column}").click()
    down = figures(page, "delayed" if column == "delayed" else "count")
    assert page.locator(f"th.{column}-cell").get_attribute("aria-sort") == "descending"
    if column in ("count", "delayed"):
        assert down == sorted(down, reverse=True)
    page.locator(f"#sort-{column}").click()
    assert page.locator(f"th.{column}-cell").get_attribute("aria-sort") == "ascending"
    up = figures(page, "delayed" if column == "delayed" else "count")
    assert up != down
    if column in ("count", "delayed"):
        assert up == sorted(up)


def test_a_row_opens_to_everything_behind_it(page: Any, tmp_path: Path) -> None:
    page.locator("#open-0000000000000001").click()
    opened_row = page.locator("#opened")
    words = opened_row.inner_text()
    for part in ("held for", "call", "waited on", "route", "trace", "on a CPU", "library frames"):
        assert part in words
    assert opened_row.locator("pre").is_visible()
    assert opened_row.locator("li.culprit .frame-name").inner_text() in names(page)
    opened_row.locator("summary").first.click()
    assert opened_row.locator("details[open] li").count() > 5
    link = opened_row.locator("a").first
    assert re.fullmatch(r"http://localhost:16686/trace/[0-9a-f]{32}", link.get_attribute("href"))
    assert link.get_attribute("rel") == "noopener noreferrer"


def test_another_stall_of_a_row_is_shown_when_it_is_picked(page: Any) -> None:
    page.locator("#open-0000000000000001").click()
    first = page.locator("#opened dl").inner_text()
    page.locator("#opened tbody button").nth(3).click()
    assert page.locator("#opened dl").inner_text() != first
    assert "stall=" in fragment(page)


def test_a_trace_id_is_copied(fleet_page: Path, browser: Any) -> None:
    with opened(browser, address_of(fleet_page, "#open=0000000000000001")) as (page, _):
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.locator("#copy-trace").click()
        shown = page.locator("#opened dl .trace").inner_text()
        page.locator("#copy-trace", has_text="copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == shown


def test_the_address_shows_the_same_to_whoever_opens_it(page: Any, browser: Any) -> None:
    page.locator("#cause-cpu").click()
    page.locator("#cause-gil_hold").click()
    page.locator("#choose-process").select_option(index=1)
    page.locator("#plot").focus()
    page.keyboard.press("ArrowRight")
    for _ in range(9):
        page.keyboard.press("Shift+ArrowRight")
    page.locator("#sort-count").click()
    page.locator(".toggle").first.click()
    shown = page.locator("main").inner_text()
    assert "cause=cpu,gil_hold&process=" in fragment(page)
    page.reload()
    page.wait_for_selector("main[data-ready]")
    assert page.locator("main").inner_text() == shown
    with opened(browser, page.url) as (other, _):
        assert other.locator("main").inner_text() == shown
    page.go_back()
    assert page.locator("#opened").count() == 0


@pytest.mark.parametrize(
    "asked",
    [
        "#cause=<img src=x onerror=alert(1)>&sort=__proto__&from=x&to=9&open=constructor&stall=1",
        "#process=nobody&route=/nowhere",
        "#from=2027-01-01T00:00:00Z&to=2027-01-02T00:00:00Z",
        "#%E0%A4%A",
    ],
)
def test_an_address_that_fits_nothing_breaks_nothing(
    asked: str, fleet_page: Path, browser: Any
) -> None:
    with opened(browser, address_of(fleet_page, asked)) as (page, seen):
        assert page.locator("h1").inner_text()
        if page.locator("#clear").count():
            page.locator("#clear").click()
        assert len(names(page)) > 50
    assert seen.complaints == []


def test_victims_are_told_by_route_and_lead_to_who_made_them_wait(page: Any) -> None:
    row = page.locator(".victims tbody tr").first
    culprit = row.locator("button").inner_text()
    row.locator("button").click()
    assert page.locator(".culprit-row.open .name").inner_text() == culprit


def test_the_icicle_zooms_and_walks_by_keyboard(page: Any) -> None:
    def width(name: str) -> float:
        return float(page.locator(".cell", has_text=name).first.bounding_box()["width"])

    own = page.locator(".cell.own").first.get_attribute("aria-label").split(",")[0]
    before = width(own)
    page.locator(".cell.root").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(own)
    assert own in page.locator(".icicle-caption").inner_text()
    page.keyboard.press("Enter")
    assert width(own) > before * 1.2
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    assert width(own) == pytest.approx(before, abs=1)


def test_library_frames_are_folded_until_they_are_asked_for(page: Any) -> None:
    folded = page.locator(".cell").count()
    page.locator("#library").check()
    assert page.locator(".cell").count() > folded
    assert fragment(page) == "#library=1"


def test_all_of_it_is_reached_by_keyboard_alone(fleet_page: Path, browser: Any) -> None:
    """Tab goes through filters, timeline, table and icicle in the order in which they stand."""
    with opened(browser, address_of(fleet_page)) as (page, _):
        visited = []
        for _ in range(400):
            page.keyboard.press("Tab")
            visited.append(
                page.evaluate("document.activeElement.id || document.activeElement.className")
            )
            if "cell" in visited[-1]:
                break
        places = [
            visited.index(each) for each in ("worst", "cause-lock", "plot", "sort-count", "library")
        ]
        assert places == sorted(places)
        assert "cell" in visited[-1]
        page.locator(".toggle").nth(1).focus()
        page.keyboard.press("Enter")
        assert page.locator("#opened").is_visible()
        assert page.evaluate("document.activeElement.className") == "toggle"


@pytest.mark.parametrize("width, scheme", [(1400, "light"), (360, "dark")])
def test_nothing_serious_is_found_by_axe(
    width: int, scheme: str, fleet_page: Path, browser: Any
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    with opened(
        browser,
        address_of(fleet_page, "#open=0000000000000001&cause=blocking_call,lock"),
        width=width,
        scheme=scheme,
    ) as (page, _):
        assert fits(page)
        found = axe.Axe().run(page).response["violations"]
    told = [
        (each["id"], each["impact"], [node["html"][:120] for node in each["nodes"][:3]])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
    assert told == []


def test_on_paper_it_is_dark_on_white(fleet_page: Path, browser: Any) -> None:
    with opened(browser, address_of(fleet_page), scheme="dark") as (page, _):
        page.emulate_media(media="print", color_scheme="dark")
        assert (
            page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        )
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 30, 35)"
        assert page.pdf()[:5] == b"%PDF-"


HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "\"'`${document.title='owned'}",
    "-->]]><!--<script>",
    "\u202egnp.exe\u2066\x1b[31m\x00\u2028",
    "javascript:document.title='owned'",
    "__proto__",
)


def test_no_name_runs_or_forges_anything(tmp_path: Path, browser: Any) -> None:
    records = []
    for number, name in enumerate(HOSTILE):
        record = stall(number, fingerprint=name, process=in_process(name)).to_dict()
        frame = {
            "file": name,
            "line": number,
            "module": name,
            "function": name,
            "code": name,
            "library": False,
        }
        victim = {"method": name, "route": name, "delay": 0.1, "trace_id": name}
        record |= {
            "culprit": frame,
            "stack": [frame],
            "call": name,
            "waited_on": name,
            "task": name,
            "advice": name,
            "trace_id": name,
            "delayed": [victim],
            "delayed_requests": 1,
        }
        record["request"] |= {"route": name, "method": name, "trace_id": name}
        record["holder"] = {"thread": name, "native_id": 1, "culprit": frame, "stack": [frame]}
        record["phases"] = [{"culprit": frame, "share": 0.5}]
        records.append(record)
    path = made(write(tmp_path / "a.jsonl", records), tmp_path / "a.html", "--title", HOSTILE[0])
    with opened(browser, address_of(path)) as (page, seen):
        for number in range(len(HOSTILE)):
            page.locator(".toggle").nth(number).click()
            page.locator("#opened").wait_for()
        title, shown = page.title(), page.locator("main").inner_text()
        assert page.locator("main img, main script").count() == 0
        assert page.locator("a").count() == 0
    assert title == HOSTILE[0]
    assert HOSTILE[1] in shown
    assert "\u202e" not in shown
    assert "\\u202egnp.exe" in shown
    assert seen.complaints == []


def test_a_page_of_nothing_says_so(tmp_path: Path, browser: Any) -> None:
    (tmp_path / "empty.jsonl").touch()
    with opened(browser, address_of(made(tmp_path / "empty.jsonl", tmp_path / "a.html"))) as (
        page,
        seen,
    ):
        assert page.locator("h1").inner_text() == "No code held an event loop."
    assert seen.complaints == []


def test_what_the_page_leaves_out_it_says(tmp_path: Path, browser: Any) -> None:
    path = write(tmp_path / "a.jsonl", [stall(number) for number in range(9)])
    with path.open("a") as file:
        file.write("broken\n")
    with opened(browser, address_of(made(path, tmp_path / "a.html", "--top", "5"))) as (page, _):
        said = page.locator("header").inner_text()
    assert "Of 9 stalls (3.600 s in all) these are the longest 5." in said
    assert "1 line could not be read" in said


def test_the_page_of_a_comparison_draws(tmp_path: Path, browser: Any) -> None:
    before = write(tmp_path / "a.jsonl", fleet(300))
    after = write(tmp_path / "b.jsonl", fleet(300, seed=2))
    assert main(["diff", str(before), str(after), "-o", str(tmp_path / "d.html")]) == 0
    assert (
        main(["diff", str(before), str(after), "-f", "json", "-o", str(tmp_path / "d.json")]) == 0
    )
    told = json.loads((tmp_path / "d.json").read_text())
    for width in (360, 1400):
        with opened(browser, address_of(tmp_path / "d.html"), width=width) as (page, seen):
            assert fits(page)
            for verdict, count in told["verdicts"].items():
                assert page.locator(f"#{verdict} tbody tr").count() == count
        assert seen.complaints == []
        assert len(seen.requests) == 1 + sum(url.startswith("data:") for url in seen.requests)
