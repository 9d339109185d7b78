"""The badge: what it says, and that it is a picture of its own."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from conformance.levels import LADDER
from conformance.report.badge import badge_svg, badge_text
from conformance.report.records import parse_summary

WHOLE = [component for rung in LADDER for component in rung.whole]
GOOD = {"verdict": "conformant", "level": 3, "offers": WHOLE}
TEXTS = {
    "whole": (GOOD, "level 3"),
    "one": (
        GOOD | {"level": 1, "offers": ["unet"]},
        "level 1, without tokenizer, text_encoder and 2 more",
    ),
    "two": (
        GOOD | {"level": 2, "offers": [c for c in WHOLE if "heun" not in c and "lms" not in c]},
        "level 2, without lms, heun",
    ),
    "parts": (GOOD | {"level": 1, "offers": ["block/time_embedding"]}, "level 1, parts only"),
    "contract": (GOOD | {"level": 0, "offers": ["unet"]}, "level 0"),
    "no-level": (GOOD | {"level": None}, "conformant, no level"),
    "part": (GOOD | {"selection": {"cases": 4, "of": 96}}, "level 3, part"),
    "all": (GOOD | {"selection": {"cases": 96, "of": 96}}, "level 3"),
    "worse": (GOOD | {"baseline": {"dir": "old", "regressions": ["x"]}}, "level 3"),
    "known": (GOOD | {"level": 0, "counts": {"xfail": 2}}, "level 0, 2 known failures"),
    "wrong": (GOOD | {"verdict": "nonconformant"}, "not conformant"),
    "incomplete": (GOOD | {"verdict": "incomplete"}, "incomplete"),
    "nothing": ({}, "incomplete"),
}


@pytest.mark.parametrize(("record", "expected"), TEXTS.values(), ids=TEXTS)
def test_text(record, expected) -> None:
    """The level with what is not offered up to there, or why there is none."""
    assert badge_text(parse_summary(record)) == expected


@pytest.mark.parametrize("record", [GOOD, {"verdict": "nonconformant"}, {}], ids=str)
def test_picture(record) -> None:
    """It is SVG with a title, refers to nothing, and holds neither style nor script."""
    text = badge_svg(parse_summary(record))
    root = ET.fromstring(text)  # noqa: S314
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg"
    assert root.get("role") == "img"
    title = root.find(f"{space}title")
    assert title is not None
    assert title.text == root.get("aria-label")
    assert title.text.startswith("SD v1 conformance: ")
    assert {child.tag.removeprefix(space) for child in root} == {"title", "rect", "text"}
    assert not re.search(r"href|url\(|style=|@import|<script", text)
    assert text.isascii()


def test_title_of_a_part() -> None:
    """Where cases were left out the title says how many were not."""
    text = badge_svg(parse_summary(GOOD | {"selection": {"cases": 4, "of": 96}}))
    assert "<title>SD v1 conformance: level 3, part (4 of 96 cases)</title>" in text


def test_hostile_offers() -> None:
    """A port's own names never reach the badge as markup."""
    offers = ["<script>alert(1)</script>"]
    text = badge_svg(parse_summary(GOOD | {"offers": offers, "level": 1}))
    assert "<script" not in text
    ET.fromstring(text)  # noqa: S314
