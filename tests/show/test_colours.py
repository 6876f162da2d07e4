"""The colours of the causes: seen against the ground, and told apart also by who is colour-blind."""

from __future__ import annotations

import itertools
import math
import re
from typing import get_args

import pytest

from loopguard.record import Cause
from loopguard.show.page import part

Colour = tuple[float, float, float]

SHEET = part("base.css")
LIGHT, DARK = SHEET.split("@media screen and (prefers-color-scheme: dark)", 1)

# Machado, Oliveira, Fernandes (2009), severity 1.0, on linear RGB.
EYES = {
    "usual": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}
# Distance in Oklab (Ottosson, 2020); neighbours below 0.02 look the same side by side.
TOLD_APART = 0.085


def colours(sheet: str) -> dict[str, Colour]:
    named = re.findall(r"--([\w-]+): #([0-9a-f]{6});", sheet)
    return {name: _linear(int(code, 16)) for name, code in named}


def _linear(code: int) -> Colour:
    red, green, blue = (_decoded((code >> shift & 255) / 255) for shift in (16, 8, 0))
    return red, green, blue


def _decoded(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else float(((value + 0.055) / 1.055) ** 2.4)


def times(matrix: tuple[Colour, Colour, Colour], colour: Colour) -> Colour:
    first, second, third = (
        sum(factor * value for factor, value in zip(row, colour, strict=True)) for row in matrix
    )
    return first, second, third


def oklab(colour: Colour) -> Colour:
    cones = times(
        (
            (0.4122214708, 0.5363325363, 0.0514459929),
            (0.2119034982, 0.6806995451, 0.1073969566),
            (0.0883024619, 0.2817188376, 0.6299787005),
        ),
        colour,
    )
    rooted = tuple(math.cbrt(max(0.0, value)) for value in cones)
    return times(
        (
            (0.2104542553, 0.7936177850, -0.0040720468),
            (1.9779984951, -2.4285922050, 0.4505937099),
            (0.0259040371, 0.7827717662, -0.8086757660),
        ),
        (rooted[0], rooted[1], rooted[2]),
    )


def contrast(one: Colour, other: Colour) -> float:
    """As WCAG 2 has it."""
    lights = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05 for r, g, b in (one, other))
    return lights[1] / lights[0]


@pytest.mark.parametrize("sheet", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("eyes", EYES)
def test_no_two_causes_look_alike(eyes: str, sheet: str) -> None:
    known = colours(sheet)
    seen = {cause: oklab(times(EYES[eyes], known[cause])) for cause in get_args(Cause)}
    alike = [
        (one, other)
        for one, other in itertools.combinations(seen, 2)
        if math.dist(seen[one], seen[other]) < TOLD_APART
    ]
    assert alike == []


@pytest.mark.parametrize("sheet", [LIGHT, DARK], ids=["light", "dark"])
def test_each_cause_stands_out_from_the_ground(sheet: str) -> None:
    known = colours(sheet)
    faint = [cause for cause in get_args(Cause) if contrast(known[cause], known["ground"]) < 3]
    assert faint == []


@pytest.mark.parametrize("sheet", [LIGHT, DARK], ids=["light", "dark"])
def test_text_is_easy_to_read(sheet: str) -> None:
    known = colours(sheet)
    for text in ("text", "muted", "accent"):
        for ground in ("ground", "raised", "foreign"):
            if (text, ground) != ("accent", "foreign"):
                assert contrast(known[text], known[ground]) >= 4.5, (text, ground)
