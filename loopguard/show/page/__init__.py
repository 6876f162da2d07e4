"""The report as one page: a file that needs nothing else, asks for nothing, and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from string import Template
from typing import Any

from loopguard.show import words
from loopguard.show.diff import Comparison, comparison_as_json
from loopguard.show.document import left_out_as_json
from loopguard.show.page.data import Payload
from loopguard.show.read import LeftOut
from loopguard.show.summary import Summary
from loopguard.tell.jsonl import json_line

SHEETS = ("base.css", "report.css")
# In the order in which each needs those before it.
SCRIPTS = (
    *("dom.js", "format.js", "data.js", "address.js", "filters.js", "timeline.js", "detail.js"),
    *("culprits.js", "victims.js", "icicle.js", "report.js"),
)
BEGIN, LIVE = "begin.js", "live.js"
DIFF_SHEETS = ("base.css", "diff.css")
DIFF_SCRIPTS = ("dom.js", "format.js", "diff.js")


def report_page(
    summary: Summary, left_out: LeftOut, *, title: str, written_at: float, trace_url: str | None
) -> str:
    """The page's HTML, of the stalls that the summary kept."""
    data = {
        "title": title,
        "written_at": written_at,
        "trace_url": trace_url,
        "total": {"stalls": summary.stalls, "seconds": round(summary.seconds, 3)},
        "fatal": words.fatal(summary),
        "left_out": left_out_as_json(left_out),
        "payload": Payload(summary.longest).to_dict(),
    }
    lead = words.sentence(summary)
    return page(title or "Blocked event loops", data, SHEETS, (*SCRIPTS, BEGIN), lead=lead)[0]


def live_page(payload: Mapping[str, Any], *, change: int, now: float) -> tuple[str, str]:
    """The same page, which goes on from there: it asks `/events` for what came after that change. And its policy."""
    data: dict[str, Any] = {
        "title": "Blocked event loops, live",
        "written_at": now,
        "trace_url": None,
        "change": change,
        "payload": payload,
    }
    return page(data["title"], data, SHEETS, (*SCRIPTS, LIVE), connect="; connect-src 'self'")


def diff_page(comparison: Comparison, *, title: str, written_at: float) -> str:
    """The page that shows what changed."""
    data: dict[str, Any] = {
        "title": title,
        "written_at": written_at,
        "sides": [
            words.side("before", comparison.before, comparison.measure_before),
            words.side("after", comparison.after, comparison.measure_after),
        ],
        "notes": words.caveats(comparison),
        "diff": comparison_as_json(comparison),
    }
    lead = ". ".join(data["sides"])
    title = title or "Blocked event loops, compared"
    return page(title, data, DIFF_SHEETS, DIFF_SCRIPTS, lead=lead)[0]


def page(
    title: str,
    data: Mapping[str, Any],
    sheets: Iterable[str],
    scripts: Iterable[str],
    *,
    lead: str = "",
    connect: str = "",
) -> tuple[str, str]:
    """A page of these style sheets, scripts and data, and its policy; `lead` is what it says where no script may run."""
    style = "\n".join(map(part, sheets))
    script = '(() => {\n"use strict";\n' + "\n".join(map(part, scripts)) + "\n})();"
    allowed = policy(style, script) + connect
    content = Template(part("page.html")).substitute(
        policy=allowed,
        title=escape(title),
        lead=escape(lead),
        style=style,
        data=embedded(data),
        script=script,
    )
    return content, allowed


def policy(style: str, script: str) -> str:
    """What the page may do: run its own script, use its own style, and nothing else."""
    return (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def embedded(data: Mapping[str, Any]) -> str:
    """JSON that ends no script element and begins no comment, whatever the names in it."""
    return json_line(data).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
