"""The page's part about memory: tables, bars, and the blocks of one configuration."""

from __future__ import annotations

import json
from typing import Any

import pytest

from conformance.port import Hello
from conformance.report.html import Page
from conformance.report.memory import Memory
from conformance.report.text import size_text
from conformance.results import Results

MIB = 2**20
BLOCKS = {"down_blocks.0.resnets.0": MIB, "down_blocks.0": 2 * MIB, "conv_norm_out": 3 * MIB}


def line(dtype: str = "float16", backend: str = "sdpa", **facts: Any) -> dict[str, Any]:
    """Build a case line of mode memory."""
    case = f"unet/tiny/latent16-batch2[{dtype}-cpu-{backend}-memory]"
    held = {"peak": 3 * MIB, "weights": 5 * MIB, "ceiling": 4 * MIB, "at": "aten.mul"}
    return {
        "type": "case", "case": case, "component": "unet", "variant": "tiny",
        "scenario": "latent16-batch2", "dtype": dtype, "device": "cpu", "backend": backend,
        "mode": "memory", "verdict": "pass", "ratio": None, "worst_probe": None,
        "first_divergence": None, "seconds": 0.1, "message": "", "detail": "", "hunts": "",
        "missing": [], "probes": [],
        "memory": {**held, "where": "up_blocks.3", "blocks": BLOCKS, "budget": {"peak": 3 * MIB}},
        **facts,
    }  # fmt: skip


def over() -> dict[str, Any]:
    """Build a line in which the second block holds more than it may."""
    first = {"probe": "conv_norm_out", "case": line()["case"], "ratio": 1.5, "limit": 1.0}
    first |= {"after": "down_blocks.0", "kind": "memory", "hint": "more at aten.mul"}
    found = line(verdict="fail", first_divergence=first)
    found["memory"]["budget"] = {"blocks": {"conv_norm_out": 2 * MIB}}
    return found


def test_configurations_stand_by_component_and_case():
    """Bars of a case share a scale; what failed is marked, and its picture is drawn."""
    section = Memory()
    assert section.view(None) is None
    for own in (line("float32", "plain"), over(), line(mode="trace")):
        section.add(own)
    (group,) = section.view(None)["groups"]
    (case,) = group["cases"]
    assert [(row.how, row.place) for row in case.rows] == [
        ("float32, plain", "aten.mul in up_blocks.3"),
        ("float16, sdpa", "aten.mul in up_blocks.3"),
    ]
    assert (case.wrong, case.most) == (True, 4 * MIB)
    picture = group["picture"]
    assert picture["row"].how == "float16, sdpa"
    assert [bar.over for bar in picture["bars"]] == [
        False,
        True,
    ]  # innermost blocks
    assert picture["bars"][1].title == "conv_norm_out: 3 MiB, allowed 2 MiB"
    assert picture["largest"] == "conv_norm_out"


@pytest.mark.parametrize(
    "broken", [{}, {"peak": "x"}, {"peak": -1, "blocks": 3, "budget": []}, {"blocks": {"a": None}}]
)
def test_what_a_file_garbles_is_survived(tmp_path, broken):
    """The page is made all the same."""
    results = Results(tmp_path, Hello("mine", "1", ("unet",)), "mine", "memory")
    results.add(line(memory=broken))
    results.close()
    assert "</html>" in Page(tmp_path).render()


def test_the_page_and_the_summary_tell_it(tmp_path):
    """One sentence for the whole, a row for each configuration, an escaped name."""
    results = Results(tmp_path, Hello("mine", "1", ("unet",)), "mine", "memory")
    hostile = line("float32")
    hostile["memory"]["where"] = "<script>"
    for own in (over(), hostile):
        results.add(own)
    summary = results.close()
    assert (summary["verdict"], summary["memory"]) == ("nonconformant", {"judged": 2, "failed": 1})
    assert summary["first_divergence"]["probe"] == "conv_norm_out"
    assert summary["selection"] == {"cases": 0, "of": 0}
    page = Page(tmp_path).render()
    assert "mine 1 does not keep 1 of 2 memory budgets." in page
    assert "Most held in conv_norm_out: 3 MiB" in page
    assert "<script>" not in page[page.index('id="memory"') : page.index('id="known"')]
    written = [json.loads(text) for text in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert written[1]["memory"]["peak"] == 3 * MIB


def test_sizes_are_written_for_people():
    """Four significant digits; a byte is a part of a KiB."""
    assert [size_text(size) for size in (None, 0, 1536, 130.006 * MIB, 1079 * MIB)] == [
        "–", "0 KiB", "1.5 KiB", "130 MiB", "1.054 GiB",
    ]  # fmt: skip
