"""The heat map: ratios as bytes, rows and columns, folding of what is too large."""

from __future__ import annotations

import base64
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from conformance.report import heat
from conformance.report.codes import (
    INFINITE,
    MISSING,
    NOT_A_NUMBER,
    UNMEASURED,
    noise_codes,
    ratio_codes,
    scale,
)
from conformance.report.heat import Heat
from conformance.report.html import Page, write_html
from conformance.report.layers import ABSENT, block_of, in_order, part_of, read_layers
from conformance.report.run import read_run

if TYPE_CHECKING:
    from pathlib import Path

NORM, CONV, LAST = (f"down_blocks.0.resnets.{name}" for name in ("0.norm1", "0.conv1", "1.norm1"))


def probes(**ratios: object) -> list[dict[str, Any]]:
    """Build one record for each ratio, by a short name of its probe."""
    names = {"norm": NORM, "conv": CONV, "last": LAST}
    return [{"name": names.get(n, n), "ratio": r, "noise": 1e-7} for n, r in ratios.items()]


def view(out: Path) -> Any:
    """Show a run to the section and return what its template gets."""
    section = Heat()
    return section.view(read_run(out, [section]))


def cells(found: Any, picture: int = 0, key: str = "ratios") -> np.ndarray:
    """Return the codes of a picture, (columns, rows)."""
    one = found["data"]["pictures"][picture]
    codes = np.frombuffer(base64.b64decode(one[key]), np.uint8)
    return codes.reshape(len(one["cases"]), -1)


def test_no_code_crosses_the_limit() -> None:
    """The limit and the number after it have different codes, whatever a step is."""
    for limit in (4.0, 3.7, 0.1):
        at = scale(limit)["atLimit"]
        within, beyond = ratio_codes(np.array([limit, math.nextafter(limit, math.inf)]), limit)
        assert (within, beyond) == (at, at + 1)


def test_codes_are_numbers_again() -> None:
    """What the script computes from a code is within 6 % of the ratio, and greater is worse."""
    ratios = np.geomspace(1e-3, 1e7, 400)
    codes = ratio_codes(ratios, 4.0)
    facts = scale(4.0)
    again = facts["limit"] * 10 ** ((codes.astype(float) - facts["atLimit"] - 0.5) * facts["step"])
    assert np.abs(again / ratios - 1).max() < 0.061
    assert (np.diff(codes.astype(int)) >= 0).all()
    noises = np.geomspace(1e-10, 0.1, 50)
    steps = noise_codes(noises) - float(facts["lowest"])
    assert np.abs(10 ** (facts["noiseDecade"] + steps * facts["step"]) / noises - 1).max() < 0.061


def test_codes_of_what_is_no_number() -> None:
    """None, zero, infinite and NaN have codes of their own, NaN the worst."""
    codes = ratio_codes(np.array([ABSENT, 0.0, 1e300, math.inf, math.nan]), 4.0)
    assert codes.tolist() == [UNMEASURED, 2, 251, INFINITE, NOT_A_NUMBER]
    assert noise_codes(np.array([ABSENT, math.nan, 0.0, math.inf])).tolist() == [0, 0, 1, 255]


def test_cells(made_up) -> None:
    """Rows are probes in the order of execution; missing, skipped and NaN cells are told apart."""
    lines = [
        made_up.line(probes=probes(last=1.0, norm=2.0)),
        made_up.line("fail", scenario="quiet", probes=probes(norm="nan", conv="inf", last=None)),
        made_up.line("skip", scenario="loud"),
    ]
    found = view(made_up.write(lines))
    rows = found["data"]["rows"]["unet"]
    assert rows["names"] == [NORM, CONV, LAST]
    assert rows["parts"] == {"names": ["down_blocks.0"], "of": [0, 0, 0]}
    assert rows["blocks"]["of"] == [0, 0, 1]
    first, second, third = cells(found)
    assert first.tolist() == [*ratio_codes(np.array([2.0]), 4.0), MISSING, first[2]]
    assert second.tolist() == [NOT_A_NUMBER, INFINITE, UNMEASURED]
    assert third.tolist() == [UNMEASURED] * 3
    assert cells(found, key="noises")[0, 1] == 0


def test_blocks_share_a_column(made_up) -> None:
    """Items that are about one block each stand in their case's column; the worst one opens."""
    whole = "unet/tiny/base[float32-cpu-sdpa-splice]"
    lines = [
        made_up.line(mode="splice", case=f"{whole}::a", probes=probes(norm=1.0)),
        made_up.line("fail", mode="splice", case=f"{whole}::b", probes=probes(last=9.0)),
    ]
    found = view(made_up.write(lines))
    (picture,) = found["data"]["pictures"]
    assert picture["cases"] == [1]
    assert cells(found).tolist() == [ratio_codes(np.array([1.0, 9.0]), 4.0).tolist()]


def test_a_picture_a_backend(made_up) -> None:
    """What was computed in two ways is not mixed: each backend has its own picture."""
    lines = [made_up.line(backend=b, probes=probes(norm=r)) for b, r in (("sdpa", 1), ("plain", 2))]
    pictures = view(made_up.write(lines))["data"]["pictures"]
    assert [(p["backend"], p["cases"]) for p in pictures] == [("plain", [1]), ("sdpa", [0])]


def test_first_picture(made_up) -> None:
    """The picture of the first divergence comes first, though another is worse."""
    lines = [
        made_up.line("fail", component="vae_decoder", probes=probes(norm=900.0)),
        made_up.line("fail", mode="splice", probes=probes(norm=9.0)),
        made_up.line("fail", probes=probes(norm=99.0)),
    ]
    first = lines[1]["first_divergence"]
    found = view(made_up.write(lines, first_divergence=first))
    shown = [(p["component"], p["mode"]) for p in found["data"]["pictures"]]
    assert shown == [("unet", "splice"), ("vae_decoder", "trace"), ("unet", "trace")]


def test_too_many_layers_are_folded(made_up, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the cap a cell is the worst of its block, and the page says so."""
    monkeypatch.setattr(heat, "MOST_CELLS", 5)
    lines = [
        made_up.line(probes=probes(norm=1.0, conv=3.0, last=2.0)),
        made_up.line("fail", scenario="quiet", probes=probes(norm=8.0, conv=7.0)),
    ]
    out = made_up.write(lines)
    found = view(out)
    assert found["data"]["rows"]["unet"]["names"] == [NORM[:-6], LAST[:-6]]
    worst = ratio_codes(np.array([3.0, 2.0, 8.0]), 4.0).tolist()
    assert cells(found).tolist() == [worst[:2], [worst[2], MISSING]]
    assert found["data"]["pictures"][0]["noises"] is None
    assert "each cell is the worst layer of its block" in write_html(Page(out)).read_text("utf-8")


def test_too_many_cases_lose_the_good_ones(made_up, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where folding is not enough the worst cases stay, in their order."""
    monkeypatch.setattr(heat, "MOST_CELLS", 4)
    ratios = (1.0, 9.0, 2.0, 8.0, 0.1, 7.0, 0.5, 6.0)
    lines = [made_up.line(scenario=f"s{i}", probes=probes(norm=r)) for i, r in enumerate(ratios)]
    found = view(made_up.write(lines))
    assert found["data"]["pictures"][0]["cases"] == [1, 3, 5, 7]
    assert found["left_out"] == 4


def test_nothing_measured(made_up) -> None:
    """Without a single probe there is no heat map."""
    assert view(made_up.write([made_up.line("skip")])) is None


def test_order_and_parts() -> None:
    """Probes are ordered and grouped by what the suite knows of them; unknown ones come last."""
    assert in_order("unet", ["zzz", "conv_out", "conv_in"]) == ["conv_in", "conv_out", "zzz"]
    assert in_order("pipeline/txt2img", ["latents#1", "odd#x", "timestep#0"])[-1] == "odd#x"
    assert part_of("unet", "mid_block.attentions.0.norm") == "mid_block"
    assert block_of("unet", "mid_block.attentions.0.norm.input") == "mid_block.attentions.0"
    assert block_of("pipeline/txt2img", "noise_pred#3") == "step 3"
    assert part_of("scheduler/ddim", "betas") == "before the steps"
    assert part_of("pipeline/txt2img", "what#?") == "other"


def test_garbled_probes() -> None:
    """Whatever stands in a record, its layers can be read."""
    garbled = [{"name": None, "ratio": "x", "noise": -2.0}, 7, {"name": ["a"], "ratio": True}, {}]
    layers = read_layers({"probes": garbled})
    assert layers.names == ("None", "['a']", "None")
    assert layers.ratios.tolist() == [ABSENT, ABSENT, ABSENT]
    assert layers.noises.tolist() == [2.0, ABSENT, ABSENT]
    assert read_layers({"probes": "none"}).names == ()
    healthy = read_layers({"probes": [{"name": "a\x00", "ratio": "inf", "noise": 1}]})
    assert (healthy.names, healthy.ratios.tolist()) == (("a\ufffd",), [math.inf])
