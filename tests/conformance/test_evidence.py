"""The first wrong tensor of an item: slices, map, worst element, and how many are made."""

from __future__ import annotations

import json

import numpy as np
import pytest

from conformance.case import find_case
from conformance.compare import Record, correlation, judge_output
from conformance.evidence.choice import ALL, EACH, Choice
from conformance.evidence.error_map import Errors, reduced
from conformance.evidence.tensor_axes import axes_of, groups_of, heads_of
from conformance.evidence.tensor_facts import tensor_facts, unit_of
from conformance.golden import SPLICE
from conformance.golden_files import load_golden
from conformance.summary import earliest

UNET, DECODER = "unet/tiny/base", "vae_decoder/tiny/base"

AXES = {
    "conv_in": ((2, 32, 16, 16), "batch channel row column"),
    "decoder.mid_block.attentions.0.group_norm": ((2, 128, 6), "batch channel token"),
    "mid_block.attentions.0.transformer_blocks.0.norm1": ((2, 4, 128), "batch token feature"),
    "time_embedding": ((2, 128), "batch feature"),
    "samples#3": ((2, 4, 6, 7), "batch channel row column"),
    "image_uint8": ((2, 16, 16, 3), "batch row column channel"),
    "betas": ((1000,), "timestep"),
    "sigmas": ((51,), "step"),
    "timestep#0": ((), ""),
    "strange": ((1, 2, 3, 4, 5), "axis 0,axis 1,axis 2,axis 3,axis 4"),
}


@pytest.mark.parametrize(("name", "shape", "axes"), [(n, *a) for n, a in AXES.items()], ids=AXES)
def test_axes(name, shape, axes):
    """Axes are named by the probe and its shape."""
    assert axes_of(name, shape) == tuple(axes.split("," if "," in axes else None))


def test_every_probe_has_named_axes():
    """No probe of a golden has an axis without a name."""
    for case_id in (UNET, DECODER, "text_encoder/tiny/base", "scheduler/heun/-/base"):
        golden = load_golden(find_case(case_id))
        for name, shape in zip(golden.probes, golden.shapes, strict=True):
            assert len(axes_of(name, shape)) == len(shape)
            assert not any(axis.startswith("axis") for axis in axes_of(name, shape)), name


HEADS = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": ("unet/odd/base", 96, 6),
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": ("unet/odd/base", 160, 4),
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.input": ("unet/odd/base", 320, 4),
    "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_v": ("unet/odd/base", 222, 3),
    "up_blocks.3.attentions.0.transformer_blocks.0.attn1.to_v": ("unet/odd/base", 96, 6),
    "up_blocks.3.attentions.0.transformer_blocks.0.attn1.to_out.0": ("unet/odd/base", 96, 1),
    "text_model.encoder.layers.0.self_attn.q_proj": ("text_encoder/odd/base", 72, 6),
    "decoder.mid_block.attentions.0.to_q": (DECODER, 128, 1),
    "samples#0": ("scheduler/ddim/-/base", 7, 1),
}


@pytest.mark.parametrize(("name", "of"), HEADS.items(), ids=range(len(HEADS)))
def test_heads(name, of):
    """The heads of an attention are those of its level."""
    case_id, width, heads = of
    assert heads_of(find_case(case_id), name, width) == heads


def test_groups():
    """A GroupNorm has groups of channels; what has features, or is no norm, has none."""
    case, axes = find_case(UNET), axes_of("", (2, 32, 16, 16))
    assert groups_of(case, "down_blocks.0.resnets.0.norm1", axes) == 8
    assert groups_of(case, "down_blocks.0.resnets.0.norm2.input", axes) == 1
    assert groups_of(case, "x.norm1", ("batch", "token", "feature")) == 1
    assert groups_of(find_case("scheduler/ddim/-/base"), "norm", axes) == 1


def test_slices_are_ratios():
    """A slice's ratio is the root mean square of its error, over the truth's, over noise."""
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((2, 4, 6, 6))
    got = truth + 1e-3 * rng.standard_normal(truth.shape)
    record = judge_output("image", got, truth, np.array([1e-4, 1e-3, 1e-2]), "float64")
    assert record.note == ""
    unit = unit_of(load_golden(find_case(DECODER)), record, truth, "float64")
    facts = tensor_facts(find_case(DECODER), record, got, truth, unit)
    whole = np.sqrt(np.mean(np.square(facts["slices"]["channel"])))
    assert whole == pytest.approx(record.ratio, rel=1e-3)
    for axis, count in zip(facts["axes"], truth.shape, strict=True):
        assert len(facts["slices"][axis]) == count
    assert facts["map"]["of"] == [6, 6]
    assert facts["caption"] == ""
    index = tuple(facts["worst"]["index"])
    assert index == np.unravel_index(np.argmax(np.abs(got - truth)), truth.shape)
    assert facts["worst"]["got"] == pytest.approx(got[index], rel=1e-8)
    assert facts["worst"]["expected"] == pytest.approx(truth[index], rel=1e-8)


def test_a_channel_that_fails_is_the_record():
    """Where the worst channel is what fails, its slice has the record's ratio."""
    truth = np.random.default_rng(0).standard_normal((2, 4, 6, 6))
    got = truth.copy()
    got[:, 2] *= 1.01
    record = judge_output("image", got, truth, np.array([1e-2, 1e-3, 1.0]), "float32")
    assert record.note == "worst channel"
    unit = unit_of(load_golden(find_case(DECODER)), record, truth, "float32")
    facts = tensor_facts(find_case(DECODER), record, got, truth, unit)
    assert max(facts["slices"]["channel"]) == pytest.approx(record.ratio, rel=1e-3)
    assert facts["caption"] == "channel 2 only, 1 % too large: a scale"


def test_facts_are_strict_json():
    """Values that are not finite, or against zeros, leave JSON that any parser reads."""
    case = find_case(DECODER)
    golden = load_golden(case)
    for truth in (np.ones((1, 3, 2, 2)), np.zeros((1, 3, 2, 2))):
        got = truth.copy()
        got[0, 1, 0, 0], got[0, 1, 1, 1] = np.nan, np.inf
        record = judge_output("image", got, truth, np.ones(3), "float32")
        facts = tensor_facts(case, record, got, truth, unit_of(golden, record, truth, "float32"))
        text = json.dumps(facts, allow_nan=False)
        assert facts["worst"]["index"] == [0, 1, 0, 0]
        assert facts["worst"]["got"] == "nan"
        assert facts["pcc"] is None
        assert "nan" in text


def test_map_is_reduced_by_the_worst():
    """A large map keeps its worst places, at most 64 by 64."""
    values = np.zeros((100, 512))
    values[99, 511] = 7.0
    small = reduced(values)
    assert small.shape == (50, 64)
    assert small[-1, -1] == 7.0
    assert small.sum() == 7.0
    assert np.array_equal(reduced(values[:64, :64]), values[:64, :64])


@pytest.mark.parametrize(
    ("axes", "pair"),
    [
        (("batch", "channel", "row", "column"), ["row", "column"]),
        (("batch", "token", "feature"), ["token", "feature"]),
        (("batch", "channel", "token"), ["channel", "token"]),
        (("batch", "feature"), ["batch", "feature"]),
        (("timestep",), None),
    ],
)
def test_map_axes(axes, pair):
    """Maps are of two axes that belong together."""
    shape = tuple(range(2, 2 + len(axes)))
    made = Errors(np.ones(shape), np.zeros(shape), axes).map()
    assert made is None if pair is None else [made["rows"], made["columns"]] == pair


def test_large_tensors_are_thinned():
    """Of a large tensor rows, columns and tokens are left out, but no channel and no feature."""
    for axes, shape, left in (
        ("batch channel row column", (1, 16, 512, 512), (1, 16, 256, 256)),
        ("batch token feature", (2, 4096, 512), (2, 1024, 512)),
        ("batch feature", (2, 2**20), (2, 2**20)),
        ("batch channel row column", (2, 4, 8, 8), (2, 4, 8, 8)),
    ):
        values = np.broadcast_to(np.float64(1), shape)
        assert Errors(values, values, tuple(axes.split())).thinned().got.shape == left


def test_correlation():
    """Pearson's: blind to scale and offset, absent where it has no meaning."""
    x = np.random.default_rng(0).standard_normal((3, 50))
    assert correlation(2 * x + 5, x) == pytest.approx(1)
    assert correlation(-x, x) == pytest.approx(-1)
    assert abs(correlation(np.random.default_rng(1).standard_normal((3, 50)), x)) < 0.3
    assert correlation(np.ones_like(x), x) is None
    assert correlation(np.full_like(x, np.nan), x) is None
    assert correlation(np.full_like(x, 1e308), x) is None


def test_records_say_how_they_correlate():
    """Outputs that are judged whole tell their correlation; other lines stay as short as before."""
    truth = np.arange(12.0).reshape(3, 4)
    whole = judge_output("image", truth * 2, truth, np.ones(3), "float32").as_json()
    assert whole["pcc"] == pytest.approx(1)
    other = Record("conv_in", "probe", [1], 1.0, 1.0, 1.0, "pass", approximate=True)
    assert "pcc" not in other.as_json()


def line(probe: str = "conv_in", mode: str = SPLICE, ratio: float | str = 5.0, **changes: object):
    """Build what is read of a failing case line."""
    first = {"probe": probe, "ratio": ratio}
    facts = {"case": f"unet/tiny/base[float32-cpu-sdpa-{mode}]", "component": "unet"}
    return facts | {"mode": mode, "first_divergence": first, "probes": []} | changes


def test_choice_keeps_some_and_the_earliest():
    """Some failures of a component are shown, and whatever is earlier than all before it."""
    choice = Choice()
    taken = [choice.takes(line("conv_norm_out", ratio=9.0 - i)) for i in range(EACH + 3)]
    assert taken == [True] * EACH + [False] * 3
    assert choice.takes(line("down_blocks.0")), "it is earlier"
    assert not choice.takes(line("conv_norm_out", ratio=2.0))
    assert not choice.takes(line("conv_in", mode="trace")), "splice mode comes first"
    assert choice.takes(line("down_blocks.0", ratio="nan")), "the same probe, but clearer"
    assert choice.takes(line("encoder.conv_in", component="vae_encoder")), "another component"


def test_choice_is_limited():
    """Many components together have a limit too; the first of each is still shown."""
    choice = Choice()
    names = [f"scheduler/{name}" for name in ("ddpm", "ddim", "pndm", "lms", "euler", "heun")]
    names += ["unet", "vae_encoder", "vae_decoder", "text_encoder", "pipeline/txt2img"]
    count = sum(
        choice.takes(line("latents", component=name, mode="trace"))
        for name in names
        for _ in range(EACH + 1)
    )
    assert ALL <= count <= ALL + len(names)


def test_first_divergence_is_spliced_early_and_clear():
    """Splice mode before trace mode, then the earliest probe, then the worst ratio."""
    lines = [
        line("conv_norm_out", verdict="fail"),
        line("conv_in", verdict="fail", ratio=3.0),
        line("conv_in", verdict="fail", ratio=30.0),
        line("time_proj", verdict="fail", mode="trace"),
    ]
    assert earliest(lines) is lines[2]["first_divergence"]
