"""The page as a file: nothing foreign in it, nothing that a name could break out of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from loopguard.record import Stall
from loopguard.show.choose import Choice
from loopguard.show.page import report_page
from loopguard.show.read import LeftOut, Whole
from loopguard.show.summary import summarize


def page_of(stalls: Iterable[Stall], title: str = "") -> str:
    summary = summarize(map(Whole, stalls), Choice())
    return report_page(summary, LeftOut(), title=title, written_at=0.0, trace_url=None)


def data_of(page: str) -> Any:
    (data,) = re.findall(r'<script type="application/json" id="data">(.*)</script>', page)
    return json.loads(data)
