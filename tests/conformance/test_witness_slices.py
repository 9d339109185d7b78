"""Published slices of v1-4 and v1-5: their data, their files, and the way from both to a verdict.

Nobody here has the weights: ports are made up, or run with synthetic weights at small size.
"""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from conformance import spec
from conformance.errors import UnsupportedError, UsageError
from conformance.port import Hello
from conformance.tolerance import LIMIT
from conformance.variants import parse_variant
from conformance.witness import Witness, is_witness, stamp
from conformance.witness_rows import (
    WITNESSES,
    Stage,
    check_folder,
    read_inputs,
    read_noise,
    rows,
)

DOCS = Path(__file__).parents[2] / "docs" / "witness.md"
ALL = [row for model in WITNESSES for row in rows(model)]
BY_ID = {row.id: row for row in ALL}
UNET = BY_ID["unet/sd1/witness-v1-4-s33-t4"]
MODE = BY_ID["vae_decoder/sd1/witness-v1-4-mode-s33"]
DECODE = BY_ID["vae_decoder/sd1/witness-v1-4-decode-s13"]
PNDM = BY_ID["pipeline/txt2img/sd1/witness-v1-4-pndm"]

SAMPLE, TOKENS = (2, 4, 8, 8), (2, 3, 5)
SMALL = replace(
    UNET,
    stages=(Stage("unet", "sample", SAMPLE),),
    files={"sample": SAMPLE, "encoder_hidden_states": TOKENS},
)
"""The first row at a small size."""


def bring(row, folder):
    """Write the noise files of a row."""
    for name, shape in row.files.items():
        noise = np.random.default_rng(row.seed).standard_normal(shape).astype(np.float32)
        np.save(folder / row.file_names[name], noise)


class FakePort:
    """Answers with the slice of a row inside random numbers; remembers what it was asked."""

    def __init__(self, row, change=lambda array: array, **offer):
        self.row = row
        self.change = change
        self.offer = {"arithmetics": ("float32", "float16"), "probes": False, "replace": False}
        self.offer |= {"components": (row.component,)} | offer
        self.loads = []
        self.inputs = {}

    def hello(self):
        """Offer one component."""
        return Hello("fake", "1.0", **self.offer)

    def load(self, component, variant, weights, arithmetic, device):
        """Keep what is handed over."""
        self.loads.append((component, variant.name, weights, arithmetic, device))
        self.arithmetic = arithmetic
        return self

    def run(self, inputs, *_):
        """Answer, whatever the inputs."""
        self.inputs = dict(inputs)
        stage = self.row.stages[-1]
        answer = np.random.default_rng(0).standard_normal(stage.shape)
        answer[self.row.where] = np.reshape(self.row.values, answer[self.row.where].shape)
        return {stage.output: self.change(answer.astype(self.arithmetic))}, {}


def judged(port, row, folder):
    """Return the case line of a row."""
    return Witness(port, parse_variant("sd1"), lambda name: name, folder).line(row)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the noise files of the small row."""
    bring(SMALL, tmp_path)
    return tmp_path


@pytest.mark.witness
@pytest.mark.parametrize(
    ("row_id", "dtype", "atol", "values"),
    [
        ("unet/sd1/witness-v1-4-s9-t1000", "float32", 1e-3, (0.8888, -0.5659, 0.5834)),
        ("unet/sd1/witness-v1-4-s17-t0", "float16", 5e-3, (-0.0831, -0.2443, 0.0901)),
        ("unet/sd1/witness-v1-5-s21-t0", "float32", 1e-3, (-0.7091, 0.6664, -0.3643)),
        ("unet/sd1/witness-v1-5-s3-t1000", "float16", 5e-3, (-0.5601, 0.2411, -0.5435)),
        ("vae_decoder/sd1/witness-v1-4-mode-s47", "float32", 3e-3, (-0.2377, 0.1147, 0.1333)),
        ("vae_decoder/sd1/witness-v1-4-decode-s37", "float32", 1e-3, (-0.2632, -0.2625, -0.2199)),
        ("vae_decoder/sd1/witness-v1-4-decode-s16", "float16", 5e-3, (-0.1628, -0.2134, -0.2747)),
        ("pipeline/txt2img/sd1/witness-v1-4-pndm", "float32", 3e-3, (0.5740, 0.4784, 0.3162)),
        ("pipeline/txt2img/sd1/witness-v1-4-ddim", "float32", 1e-4, (0.38019, 0.28647, 0.27321)),
        ("pipeline/txt2img/sd1/witness-v1-4-lms", "float32", 3e-3, (0.10542, 0.09620, 0.07332)),
        ("pipeline/txt2img/sd1/witness-v1-4-dpmpp-2m", "float32", 3e-3, (0.03503, 0.03494)),
    ],
)
def test_numbers_are_the_published_ones(row_id, dtype, atol, values) -> None:
    """Of every table numbers typed anew from the published tests, with dtype and tolerance."""
    row = BY_ID[row_id]
    assert (row.dtype, row.atol, row.values[: len(values)]) == (dtype, atol, values)


def test_every_slice_is_there_or_left_out_with_a_reason() -> None:
    """16 slices of UNets, 12 of the VAE and 8 of pipelines are published: none is forgotten."""
    kinds = Counter((row.model, row.component) for row in ALL)
    assert kinds == {
        ("v1-4", "unet"): 8,
        ("v1-5", "unet"): 8,
        ("v1-4", "vae_decoder"): 6,
        ("v1-4", "pipeline/txt2img"): 4,
    }
    left_out = Counter()
    for entry in spec.published_slices()["left_out"]:
        assert entry["reason"]
        left_out[entry["source"]] += entry["count"]
    tables = Counter(row.source.partition(" of ")[0] for row in ALL) + left_out
    assert tables == {
        "tests/models/unets/test_models_unet_2d_condition.py": 16,
        "tests/models/autoencoders/test_models_autoencoder_kl.py": 12,
        "tests/pipelines/stable_diffusion/test_stable_diffusion.py": 8,
    }


def test_rows_are_whole_and_distinct() -> None:
    """Ids differ; every slice has as many numbers as it picks, a source, a bug that it hunts."""
    assert len(BY_ID) == len(ALL)
    for row in ALL:
        picked = np.empty(row.stages[-1].shape, bool)[row.where]
        assert (picked.size, row.hunts != "") == (len(row.values), True), row.id
        assert row.source.endswith(spec.published_slices()["source"]), row.id


def test_rows_that_share_a_load_come_together() -> None:
    """Rows of one component and arithmetic follow each other, so that it is loaded once."""
    for model in WITNESSES:
        keys = [(row.stages[-1].component, row.dtype) for row in rows(model)]
        assert len(set(keys)) == 1 + sum(a != b for a, b in pairwise(keys))


def test_unknown_model_is_bad_usage() -> None:
    """A model without published slices is refused; the message lists those that have some."""
    with pytest.raises(UsageError, match=r"unknown witness 'v1-1': .*choose from v1-4, v1-5"):
        rows("v1-1")


def test_the_page_lists_every_file_and_what_is_left_out() -> None:
    """docs/witness.md names each file that is read, and no other; its counts add up."""
    text = DOCS.read_text("utf-8")
    needed = {name for row in ALL for name in row.file_names.values()}
    assert {word for word in text.split() if word.startswith("gaussian_noise")} == needed
    total = len(ALL) + sum(entry["count"] for entry in spec.published_slices()["left_out"])
    assert f"of the {total} slices" in text


def test_right_slice_passes(folder: Path) -> None:
    """A port that computes the published numbers passes, whatever else is in its output."""
    port = FakePort(SMALL)
    line = judged(port, SMALL, folder)
    assert (line["case"], line["verdict"]) == (f"{SMALL.id}[float32-cpu-sdpa-trace]", "pass")
    assert line["ratio"] < 1e-3
    assert line["probes"][0] | {"shape": [2, 2, 2], "name": "sample"} == line["probes"][0]
    assert {name: (a.dtype.name, a.shape) for name, a in port.inputs.items()} == {
        "sample": ("float32", SAMPLE),
        "encoder_hidden_states": ("float32", TOKENS),
        "timestep": ("int64", ()),
    }
    assert port.inputs["timestep"] == 4
    assert port.loads == [("unet", "sd1", "unet", "float32", "cpu")]


def test_files_are_found_under_their_published_names(tmp_path: Path) -> None:
    """A row at full size reads the files that the published tests read."""
    for shape in ("4_4_64_64", "4_77_768"):
        noise = np.zeros([int(n) for n in shape.split("_")], np.float32)
        np.save(tmp_path / f"gaussian_noise_s=33_shape={shape}.npy", noise)
    assert judged(FakePort(UNET), UNET, tmp_path)["verdict"] == "pass"


def test_wrong_entry_fails_and_is_named(folder: Path) -> None:
    """Twice the tolerance fails with ratio 8; the message says where, what was got and wanted."""

    def shifted(answer):
        answer[1, 2, 7, 1] += 2 * SMALL.atol
        return answer

    line = judged(FakePort(SMALL, shifted), SMALL, folder)
    assert line["verdict"] == "fail"
    assert line["ratio"] == pytest.approx(2 * LIMIT, rel=1e-3)
    assert line["message"] == (
        "first wrong at sample, ratio 8, limit 4: [1, 2, 7, 1] is 0.2138, published 0.2118, "
        "allowed 0.001 either way; 1 of 8 numbers are wrong"
    )
    assert "other weights than those of v1-4" in line["detail"]
    assert line["first_divergence"]["case"] == line["case"]


@pytest.mark.parametrize(("share", "verdict"), [(0.9, "pass"), (1.1, "fail")])
def test_the_published_tolerance_is_the_limit(folder: Path, share, verdict) -> None:
    """An error just within the tolerance passes, without a warning; one just beyond it fails."""
    line = judged(FakePort(SMALL, lambda a: a + np.float32(share * SMALL.atol)), SMALL, folder)
    assert (line["verdict"], line["ratio"]) == (verdict, pytest.approx(share * LIMIT, rel=1e-2))


@pytest.mark.parametrize("place", [(1, 2, 6, 0), (0, 0, 0, 0)], ids=["inside", "outside"])
def test_nan_fails_wherever_it_is(folder: Path, place) -> None:
    """A value that is not finite fails, in the slice or outside of it."""

    def spoilt(answer):
        answer[place] = np.nan
        return answer

    line = judged(FakePort(SMALL, spoilt), SMALL, folder)
    assert line["verdict"] == "fail"
    assert "1 of 512 values are not finite" in line["message"]


def test_answers_that_break_the_contract(folder: Path) -> None:
    """A wrong shape fails; a wrong dtype, a missing output and inputs that change are errors."""
    line = judged(FakePort(SMALL, lambda a: a[:1]), SMALL, folder)
    assert (line["verdict"], "shape (1, 4, 8, 8)" in line["message"]) == ("fail", True)
    line = judged(FakePort(SMALL, lambda a: a.astype(np.float64)), SMALL, folder)
    assert (line["verdict"], "sample is float64, expected float32" in line["message"]) == (
        "error",
        True,
    )
    port = FakePort(SMALL)
    port.run = lambda *_: ({}, {})
    assert "output sample is missing" in judged(port, SMALL, folder)["message"]

    def destructive(inputs, *_):
        inputs["sample"][...] = 0
        return {"sample": inputs["sample"]}, {}

    port.run = destructive
    assert "changed its input" in judged(port, SMALL, folder)["message"]


@pytest.mark.parametrize(
    ("offer", "reason"),
    [
        ({"components": ("vae_decoder",)}, "does not offer component unet"),
        ({"arithmetics": ("float64",)}, "does not offer arithmetic float32"),
        ({"devices": ("cuda",)}, "does not offer device cpu"),
        (
            {"shapes": {"unet": {"sample": [[1, 4, 64, 64]]}}},
            "takes sample of shape (1, 4, 64, 64)",
        ),
    ],
    ids=["component", "arithmetic", "device", "shape"],
)
def test_what_a_port_does_not_offer_is_skipped(folder: Path, offer, reason) -> None:
    """A port without component, arithmetic, device or shape is not judged, and it is said why."""
    line = judged(FakePort(SMALL, **offer), SMALL, folder)
    assert (line["verdict"], reason in line["message"]) == ("skip", True)


def test_float16_is_asked_for_and_given_float32(folder: Path) -> None:
    """In float16 inputs are float32 as always, and the answer is float16."""
    half = replace(SMALL, dtype="float16", atol=5e-3)
    port = FakePort(half)
    line = judged(port, half, folder)
    assert (line["verdict"], line["dtype"]) == ("pass", "float16")
    assert (port.loads[0][3], port.inputs["sample"].dtype) == ("float16", np.float32)


def test_one_load_serves_many_rows(folder: Path) -> None:
    """Rows of one component and arithmetic share what was loaded."""
    port = FakePort(SMALL)
    witness = Witness(port, parse_variant("sd1"), lambda name: name, folder)
    assert [witness.line(row)["verdict"] for row in (SMALL, SMALL)] == ["pass", "pass"]
    assert len(port.loads) == 1


def test_missing_files_are_named_in_a_skip(folder: Path) -> None:
    """Without its noise a case is skipped, and the message names the files."""
    other = replace(SMALL, seed=47)
    line = judged(FakePort(other), other, folder)
    assert line["verdict"] == "skip"
    assert line["message"] == (
        "gaussian_noise_s=47_shape=2_4_8_8.npy and gaussian_noise_s=47_shape=2_3_5.npy not in "
        f"{folder}"
    )


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (lambda p: np.save(p, np.zeros((2, 4), np.float32)), "float32 of shape (2, 4), not"),
        (lambda p: np.save(p, np.zeros(SAMPLE, np.int64)), "holds int64 of shape"),
        (lambda p: np.save(p, np.full(SAMPLE, np.nan, np.float32)), "values that are not finite"),
        (lambda p: np.save(p, np.array([{}], object), allow_pickle=True), "Python objects"),
        (lambda p: p.write_bytes(pickle.dumps([1.0])), "no .npy file of numbers"),
        (lambda p: p.write_bytes(b""), "no .npy file of numbers"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "no .npy file of numbers"),
    ],
    ids=["shape", "dtype", "nan", "objects", "pickle", "empty", "cut"],
)
def test_bad_noise_is_an_error_that_names_the_file(folder: Path, write, text) -> None:
    """What is no array of the right kind is refused by name, and never unpickled."""
    path = folder / SMALL.file_names["sample"]
    write(path)
    with pytest.raises(UsageError) as refused:
        read_noise(path, SAMPLE)
    assert str(path) in str(refused.value)
    line = judged(FakePort(SMALL), SMALL, folder)
    assert (line["verdict"], text in line["message"]) == ("error", True)


def test_double_noise_is_rounded_once(tmp_path: Path) -> None:
    """A float64 file is read as float32, as the published tests do."""
    noise = np.random.default_rng(0).standard_normal(SAMPLE)
    np.save(tmp_path / "noise.npy", noise)
    assert np.array_equal(read_noise(tmp_path / "noise.npy", SAMPLE), noise.astype(np.float32))


def test_folder_without_any_file_is_bad_usage(tmp_path: Path) -> None:
    """No folder, or one with no noise file of the model, is refused; one file is enough."""
    with pytest.raises(UsageError, match="is no folder"):
        check_folder("v1-4", tmp_path / "absent")
    with pytest.raises(UsageError, match="none of the 22 noise files of v1-4, such as gaussian_"):
        check_folder("v1-4", tmp_path)
    np.save(tmp_path / DECODE.file_names["latents"], np.zeros(1))
    check_folder("v1-4", tmp_path)
    with pytest.raises(UsageError, match="none of the 16 noise files of v1-5"):
        check_folder("v1-5", tmp_path)


def test_pipelines_need_no_file(tmp_path: Path) -> None:
    """Latents of the pipelines are those of NumPy's legacy generator; the config is complete."""
    inputs = read_inputs(PNDM, tmp_path)
    assert inputs["latents"].dtype == np.float32
    assert inputs["latents"].shape == (1, 4, 64, 64)
    assert inputs["latents"].ravel()[:2].tolist() == pytest.approx([1.76405235, 0.40015721])
    assert inputs["prompt"].tolist() == ["a photograph of an astronaut riding a horse"]
    assert (inputs["negative_prompt"].tolist(), inputs["guidance_scale"]) == ([""], 7.5)
    assert judged(FakePort(PNDM), PNDM, tmp_path)["verdict"] == "pass"


def line_of(row, verdict="pass"):
    """Return what the stamp looks at."""
    return {"scenario": row.scenario, "component": row.component, "verdict": verdict}


def test_stamp_wants_unet_and_vae_and_no_failure() -> None:
    """`real-weights` is earned by slices of every network that has some, if none that ran fails."""
    ordinary = {"scenario": "base", "component": "unet", "verdict": "fail"}
    assert [is_witness(line) for line in (ordinary, line_of(UNET))] == [False, True]
    assert stamp([ordinary, line_of(UNET), line_of(DECODE), line_of(PNDM, "skip")])
    assert not stamp([line_of(UNET), line_of(DECODE, "skip")])
    assert not stamp([line_of(UNET), line_of(DECODE), line_of(PNDM, "fail")])
    assert not stamp([line_of(UNET), line_of(DECODE, "error")])
    assert not stamp([ordinary])
    assert stamp([line_of(rows("v1-5")[0])])


def test_missing_file_is_no_error_of_the_port(tmp_path: Path) -> None:
    """What is missing is told apart from what is wrong."""
    with pytest.raises(UnsupportedError):
        read_inputs(SMALL, tmp_path)
