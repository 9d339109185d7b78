"""Probes: judged in execution order by their sketches, and the first wrong one is named."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from conformance.case import Case, find_case
from conformance.compare import Record
from conformance.divergence import first_divergence
from conformance.execution import Execution
from conformance.golden import Golden
from conformance.golden_files import load_golden
from conformance.judge import judge_probes, time_proj_values
from conformance.port import Hello
from conformance.result import Result
from conformance.sketch import sketch

OFFERS = Hello("fake", "1", ("unet",), ("float32", "float64"))


def time_proj(case: Case) -> np.ndarray:
    """Compute the timestep embedding of a case."""
    return time_proj_values(case, case.inputs())


def convolution(case: Case, flip: int = 1) -> np.ndarray:
    """Compute `conv_in` in plain NumPy and float64 from nothing but the recipe."""
    weights = case.variant.weights("unet")
    kernel = weights["conv_in.weight"].astype(np.float64)[..., ::flip, :]
    padded = np.pad(case.inputs()["sample"].astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    bias = weights["conv_in.bias"].astype(np.float64)
    return np.einsum("bchwij,ocij->bohw", windows, kernel) + bias[:, None, None]


def answers(watched: dict, case: Case | None = None, unwatched=None):
    """Answer with the stored output; hand out these probes where any are asked for."""
    stored = load_golden(case or find_case("unet/tiny/base")).outputs["sample"]

    def answer(_inputs, probes, _replace):
        sample = stored.astype(np.float32)
        if not probes:
            return {"sample": sample if unwatched is None else unwatched(sample)}, {}
        return {"sample": sample}, dict(watched)

    return answer


@pytest.fixture
def watch(fake, judge, case: Case):
    """Return a function that judges `base` with these probes."""

    def run(watched: dict, **how: str) -> Result:
        return judge(fake(answers(watched), OFFERS), case, **how)

    return run


@pytest.mark.parametrize(
    "case_id",
    [
        *(f"unet/tiny/{name}" for name in ("base", "quiet", "nonsquare", "oddsize", "t999")),
        *(f"unet/tiny-{name}/base" for name in ("lowvar", "dense", "offset", "inpaint")),
    ],
)
def test_first_layers_from_the_recipe(fake, judge, case_id: str) -> None:
    """Recipe, inputs, sketch and golden agree: two layers written here pass at their probes."""
    case = find_case(case_id)
    computed = {"time_proj": time_proj(case), "conv_in": convolution(case)}
    probes = {n: v.astype(np.float32) for n, v in computed.items() if n in load_golden(case).probes}
    result = judge(fake(answers(probes, case), OFFERS), case)
    assert result.verdict == "pass"
    assert [record.name for record in result.records] == [*probes, "sample"]
    assert result.worst.ratio < 1


def test_named_after_the_last_good_one(case: Case, watch) -> None:
    """A flipped kernel is named at its layer, after the layer before it, with a hint."""
    probes = {"conv_in": convolution(case, flip=-1), "time_proj": time_proj(case)}
    result = watch({name: value.astype(np.float32) for name, value in probes.items()})
    assert [(r.name, r.verdict) for r in result.records] == [
        ("time_proj", "pass"),
        ("conv_in", "fail"),
        ("sample", "pass"),
    ]
    assert result.verdict == "fail"
    first = result.first_divergence
    assert (first["probe"], first["after"], first["kind"]) == ("conv_in", "time_proj", "fault")
    assert first["ratio"] > 1e5
    assert "channel order" in first["hint"]
    assert result.message.startswith("first wrong at conv_in (the last good one is time_proj), ")


def sines_first(values: np.ndarray) -> np.ndarray:
    """Exchange the halves of the timestep embedding."""
    return np.roll(values, values.shape[1] // 2, axis=1)


WRONG_PROBES = {
    "sines-first": sines_first,
    "half": lambda v: v.astype(np.float16),
    "nan": lambda v: v * np.nan,
    "one-element": lambda v: v + 1e-3 * (np.arange(v.size).reshape(v.shape) == 40),
}


@pytest.mark.parametrize("change", WRONG_PROBES.values(), ids=WRONG_PROBES)
def test_wrong_probe_fails(case: Case, watch, change) -> None:
    """A wrong probe fails the case although the output is right."""
    result = watch({"time_proj": change(time_proj(case)).astype(np.float32)})
    first = result.first_divergence
    assert (result.verdict, first["probe"], first["kind"]) == ("fail", "time_proj", "fault")
    assert "sine/cosine order" in first["hint"]


@pytest.mark.parametrize(
    ("change", "shape"),
    [(lambda v: v[:1], (1, 32)), (lambda v: v.reshape(32, 2), (32, 2)), (np.ravel, (64,))],
    ids=["sample-missing", "same-size", "flat"],
)
def test_misshapen_probe(case: Case, watch, change, shape: tuple[int, ...]) -> None:
    """A probe of the wrong shape fails with both shapes, though its elements be right."""
    result = watch({"time_proj": change(time_proj(case)).astype(np.float32)})
    assert result.verdict == "fail"
    assert result.first_divergence["hint"] == f"shape {shape}, expected (2, 32)"
    assert math.isnan(result.first_divergence["ratio"])


PIXELS = {
    "in-one-axis": (lambda v: v.reshape(1, 32, 960), "pass", ""),
    "in-three": (lambda v: v.reshape(1, 32, 24, 5, 8), "pass", ""),
    "in-one-axis-by-columns": (lambda v: v.swapaxes(2, 3).reshape(1, 32, 960), "fail", ""),
    "exchanged": (lambda v: v.swapaxes(2, 3), "fail", "shape (1, 32, 40, 24), expected "),
    "channels-last": (lambda v: v.reshape(1, 32, 960).swapaxes(1, 2), "fail", "shape (1, 960, "),
    "one-missing": (lambda v: v.reshape(1, 32, 960)[..., 1:], "fail", "shape (1, 32, 959), "),
}


@pytest.mark.parametrize(("change", "verdict", "note"), PIXELS.values(), ids=PIXELS)
def test_pixels_of_a_map(change, verdict: str, note: str) -> None:
    """A port may keep a map's pixels in one axis, in the golden's order; height is not width."""
    case = find_case("unet/tiny/nonsquare")
    probes = {"conv_in": change(convolution(case).astype(np.float32))}
    (record,) = judge_probes(load_golden(case), probes, "float32")
    assert (record.verdict, record.note[: len(note)]) == (verdict, note)


@pytest.mark.parametrize(
    ("half", "pixels"),
    [("encoder", (36,)), ("encoder", (6, 6)), ("decoder", (6,)), ("decoder", (2, 3))],
    ids=["encoder-one-axis", "encoder-two-axes", "decoder-one-axis", "decoder-two-axes"],
)
def test_pixels_that_the_reference_flattens(half: str, pixels: tuple[int, ...]) -> None:
    """The norm of the VAE's attention sees its pixels in one axis; two are as good."""
    golden = load_golden(find_case(f"vae_{half}/tiny/base"))
    name = f"{half}.mid_block.attentions.0.group_norm"
    i = golden.probes.index(name)
    assert golden.shapes[i] == (2, 128, math.prod(pixels))
    value = np.random.default_rng(0).standard_normal((2, 128, *pixels))
    golden.sketches[i], golden.norms[i] = sketch(value), np.linalg.norm(value)
    (record,) = judge_probes(golden, {name: value}, "float64")
    assert (record.verdict, record.ratio) == ("pass", 0)


@pytest.mark.parametrize("name", ["conv_inn", "", "sample", "up_blocks.9"])
def test_extra_probe_is_an_error(watch, name: str) -> None:
    """A probe that was not asked for is an error that names it."""
    result = watch({name: np.zeros(3, np.float32)})
    assert result.verdict == "error"
    assert f"returned probe {name!r}, which was not asked for" in result.message


def test_judged_run_is_not_watched(fake, judge, case: Case, golden: Golden) -> None:
    """The port runs twice on equal inputs: without probes, then with all of them."""
    port = fake(answers({}), OFFERS)
    assert judge(port, case).verdict == "pass"
    assert [probes for _, probes, _ in port.runs] == [(), tuple(golden.probes)]
    assert [given for *_, given in port.runs] == [None, None]


def test_no_probes_no_watching(fake, judge, case: Case) -> None:
    """A port without probes runs once and is judged at its outputs."""
    port = fake(answers({}), replace(OFFERS, probes=False))
    result = judge(port, case)
    assert (result.verdict, len(port.runs), len(result.records)) == ("pass", 1, 1)


def test_time_proj_is_supplied_in_float64(fake, judge, case: Case) -> None:
    """In float64 every run is given the timestep embedding."""
    port = fake(None, OFFERS)
    assert judge(port, case, dtype="float64").verdict == "pass"
    for _, _, given in port.runs:
        assert list(given) == ["time_proj"]
        assert np.array_equal(given["time_proj"], time_proj(case))


@pytest.mark.parametrize(
    ("dtype", "verdict", "note"),
    [(np.float64, "pass", ""), (np.float32, "warn", "float32 island"), (np.float16, "fail", "")],
    ids=["float64", "float32", "float16"],
)
def test_float32_island(fake, judge, case: Case, golden: Golden, dtype, verdict, note) -> None:
    """In a float64 run a timestep embedding in float32 is a warning; anything worse is a fault."""
    embedded = time_proj(case).astype(dtype).astype(np.float64)

    def answer(_, probes, __):
        return golden.outputs, {"time_proj": embedded} if probes else {}

    result = judge(fake(answer, OFFERS), case, dtype="float64")
    assert result.verdict == verdict
    assert result.records[0].note.startswith(note)


@pytest.mark.parametrize(
    ("change", "verdict", "message"),
    [
        (lambda v: v, "pass", ""),
        (lambda v: v.astype(np.float32).astype(v.dtype), "skip", "fake computes its timestep emb"),
        (None, "skip", "fake may compute its timestep embedding in float32"),
        (sines_first, "fail", "first wrong at time_proj"),
    ],
    ids=["float64", "island", "unseen", "wrong"],
)
def test_float64_without_replace(fake, judge, case: Case, golden, change, verdict, message) -> None:
    """A port that cannot be given the embedding is judged in float64 if its own is seen right."""

    def answer(_, probes, __):
        seen = {"time_proj": change(time_proj(case))} if probes and change else {}
        return golden.outputs, seen

    port = fake(answer, replace(OFFERS, replace=False))
    result = judge(port, case, dtype="float64")
    assert result.verdict == verdict
    assert result.message.startswith(message)
    assert [given for *_, given in port.runs] == [None, None]


@pytest.mark.parametrize(
    ("unwatched", "message"),
    [
        (lambda s: s, ""),
        (
            lambda s: s * np.float32(1 + 3e-6),
            "watching, or the second call, changes output sample by 3",
        ),
    ],
    ids=["not", "three-times-noise"],
)
def test_watching_changes_the_output(fake, judge, case: Case, unwatched, message: str) -> None:
    """If observing changes the output by more than noise, the result says so."""
    result = judge(fake(answers({}, unwatched=unwatched), OFFERS), case)
    assert result.verdict == "pass"
    assert result.message.startswith(message)
    assert bool(result.message) == bool(message)


@pytest.mark.parametrize(
    "watched",
    [
        lambda s: s[:, :, 1:],
        pytest.param(
            lambda s: s * np.float32(np.nan),
        ),
    ],
    ids=["shape", "nan"],
)
def test_watching_breaks_the_output(fake, judge, case: Case, golden: Golden, watched) -> None:
    """If observing breaks the output, the result says so as well."""
    right = golden.outputs["sample"].astype(np.float32)
    port = fake(lambda _, probes, __: ({"sample": watched(right) if probes else right}, {}), OFFERS)
    assert judge(port, case).message.startswith("watching")


def test_reused_buffer(fake, judge, case: Case, golden: Golden) -> None:
    """A port that reuses its output buffer is judged by its unwatched run."""
    right = golden.outputs["sample"].astype(np.float32)
    buffer = np.empty_like(right)

    def answer(_, probes, __):
        buffer[:] = right if probes else 0
        return {"sample": buffer}, {}

    assert judge(fake(answer, OFFERS), case).verdict == "fail"


def records(*ratios: float) -> Result:
    """Build a result of probes with these ratios; over 4 fails, from 2 warns."""
    made = [
        Record(f"p{i}", "probe", [1], r, 1.0, r, "warn" if 2 <= r <= 4 else "pass", False)  # noqa: FBT003
        for i, r in enumerate(ratios)
    ]
    for record in made:
        if not record.ratio <= 4:
            record.verdict = "fail"
    return Result(find_case("unet/tiny/base"), Execution(), "fail", made)


@pytest.mark.parametrize(
    ("ratios", "probe", "after", "kind"),
    [
        ((1, 1, 48, 60), "p2", "p1", "fault"),
        ((1, 3, 5), "p2", "p1", "unexplained"),
        ((1, 3, 12.1), "p2", "p1", "fault"),
        ((48, 1), "p0", None, "fault"),
        ((0.1, 4.1), "p1", "p0", "fault"),
        ((1, math.nan, 1e9), "p1", "p0", "fault"),
        ((3.9, math.inf), "p1", "p0", "fault"),
    ],
    ids=["jump", "gradual", "jump-after-rise", "first", "from-below-one", "nan", "inf"],
)
def test_first_divergence(ratios, probe: str, after: str | None, kind: str) -> None:
    """The earliest failing probe is named; a jump over all before it is a fault."""
    first = first_divergence(records(*ratios))
    assert (first["probe"], first["after"], first["kind"]) == (probe, after, kind)
    assert first["limit"] == 4
    assert first["hint"].startswith("the error grows gradually") == (kind == "unexplained")


def test_worst_record() -> None:
    """The worst record is the one with the largest ratio, NaN before all."""
    assert records(1, 3, 2).worst.name == "p1"
    assert records(1, math.nan, 1e9).worst.name == "p1"
    assert records().worst is None


@pytest.mark.parametrize(
    "name", ["base", "t0", "t0.55", "t999", "t976.8889", "tfloat", "tsamples", "batch3"]
)
@pytest.mark.parametrize("variant", ["tiny", "odd"])
def test_time_proj_values(variant: str, name: str) -> None:
    """The suite's timestep embedding is the paper's formula: cosines, then sines."""
    case = find_case(f"unet/{variant}/{name}")
    times = np.broadcast_to(case.scenario.timestep, case.scenario.batch).tolist()
    half = {"tiny": 16, "odd": 48}[variant]
    angles = [[t / 10000 ** (i / half) for i in range(half)] for t in times]
    expected = [[*map(math.cos, row), *map(math.sin, row)] for row in angles]
    values = time_proj(case)
    assert values.dtype == np.float64
    assert np.abs(values - expected).max() < 1e-12
