"""Headroom: how near a port's values come to the end of a half type, and what passed it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from conformance.case import find_case
from conformance.compare import judge_probe
from conformance.execution import Execution
from conformance.golden_files import load_golden
from conformance.headroom import LARGEST, facts, first_not_finite, headroom, overflow_text
from conformance.report.headroom import Headroom
from conformance.sketch import sketch

NAMES = ("conv_in", "time_embedding", "conv_out")


def records(*largest):
    """Judge tensors whose largest magnitudes are given."""
    made = []
    for name, size in zip(NAMES, largest, strict=False):
        value = np.array([size, 1, -2, 0], np.float32)
        truth = np.array([1.0, 1, -2, 0])
        made.append(judge_probe(name, value, sketch(truth, 64), 2.5, 1e-3, "float16"))
    return made


def test_headroom_counts_doublings():
    """One doubling is left at half the end, none past it, and no end to zeros."""
    assert headroom(65504, 32752) == 1
    assert headroom(65504, math.inf) == -math.inf
    assert headroom(65504, math.nan) == -math.inf
    assert headroom(65504, 0) == math.inf
    assert LARGEST["float16"] == np.finfo(np.float16).max


def test_facts_name_the_nearest_first():
    """With the oracle's own largest magnitude beside the port's."""
    golden = load_golden(find_case("unet/tiny/base"))
    found = facts(records(8, 30000, 4), golden, "float16")
    assert [row[:2] for row in found["probes"]] == [
        ["time_embedding", 30000], ["conv_in", 8], ["conv_out", 4],
    ]  # fmt: skip
    assert found["probes"][1][2] == golden.max_abs[golden.probes.index("conv_in")]
    assert found["not_finite"] is None
    assert facts(records(8), golden, "float32") == {}


def test_the_first_overflow_is_named():
    """And how large values were before it."""
    some = records(40000, np.inf, np.nan)
    assert first_not_finite(some).name == "time_embedding"
    assert overflow_text(some, "float16") == (
        "first not finite at time_embedding: max-abs before it was 4e+04 at conv_in, where "
        "float16 ends at 6.55e+04"
    )
    assert overflow_text(records(np.nan), "float16") == "first not finite at conv_in"
    assert overflow_text(records(4), "float16") == ""
    assert facts(some, load_golden(find_case("unet/tiny/base")), "float16")["not_finite"]


@pytest.mark.parametrize("component", ["unet", "vae_decoder"])
def test_one_case_reaches_the_brink_and_one_lies_beyond(component):
    """Half precision must hold the one, and the reference itself overflows in the other."""
    brink, beyond = (load_golden(find_case(f"{component}/tiny/{n}")) for n in ("brink", "beyond"))
    assert 0.5 < headroom(LARGEST["float16"], float(brink.max_abs.max())) < 1.5
    assert brink.why_not_offered("float16") is None
    assert beyond.max_abs.max() > LARGEST["float16"]
    assert beyond.why_not_offered("float16").startswith("reference overflows in float16 at ")
    assert beyond.why_not_offered("bfloat16") is None


def line(case, component="unet", **probes):
    """Build a case line."""
    rows = [[name, size, 1.5] for name, size in probes.items()]
    first = next((n for n, v in probes.items() if isinstance(v, str)), None)
    shown = {"largest": 65504.0, "probes": rows, "not_finite": first}
    return {
        "type": "case", "case": case, "component": component, "dtype": "float16",
        "headroom": shown,
    }  # fmt: skip


def test_the_section_keeps_the_worst_of_each_probe():
    """Ten a component, the least headroom first, those that overflowed on top."""
    section = Headroom()
    assert section.view(None) is None
    section.add(line("a[float16]", conv_in=100.0, conv_out=9.0))
    section.add(line("b[float16]", conv_in=30000.0))
    section.add(line("c[float16]", component="vae_decoder", conv_in="nan"))
    section.add(line("d[float16]", **{f"probe{i}": float(i + 1) for i in range(60)}))
    view = section.view(None)
    assert [group["component"] for group in view["groups"]] == ["vae_decoder", "unet"]
    rows = view["groups"][1]["rows"]
    assert len(rows) == 10
    assert (rows[0].probe, rows[0].case, rows[0].port) == ("conv_in", "b[float16]", 30000)
    assert rows[0].left == pytest.approx(1.127, abs=1e-3)
    assert view["overflows"] == [("c[float16]", "conv_in")]
    assert not view["groups"][0]["rows"][0].finite


@pytest.mark.parametrize(
    "broken", [{}, {"largest": "x"}, {"largest": 1.0, "probes": [["a"], 3, ["a", None, 1]]}]
)
def test_the_section_survives_garbage(broken):
    """What a file garbles is left out."""
    section = Headroom()
    section.add({"type": "case", "case": "a", "component": "unet", "headroom": broken})
    assert section.view(None) is None


def test_a_case_line_carries_headroom():
    """In half types only."""
    sd1_impl = pytest.importorskip("conformance.adapters.sd1_impl", exc_type=ImportError)
    from conformance.runner import Runner

    runner = Runner(sd1_impl.port())
    case = find_case("vae_decoder/tiny/brink")
    half = runner.run(case, Execution(dtype="float16")).as_json()
    assert half["headroom"]["probes"][0][1] > 30000
    assert len(half["headroom"]["probes"]) == 10
    assert "headroom" not in runner.run(case, Execution()).as_json()
