"""The NumPy port's pipelines conform, and are caught where something in them is wrong."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from conformance.case import find_case
from conformance.execution import Execution
from conformance.port import resolve
from conformance.tolerance import LIMIT

PORT = Path(__file__).resolve().parents[2] / "examples" / "numpy" / "port.py"
CASES = [
    "txt2img/tiny/base",
    "txt2img/tiny/guidance0",
    "txt2img/tiny/each2",
    "txt2img/tiny/karras",
    "txt2img/tiny/leading",
    "img2img/tiny/base",
    "img2img/tiny/strength1",
    "img2img/tiny/heun",
    "img2img/tiny/pndm",
    "inpaint/tiny/base",
    "inpaint/tiny/each2",
    "inpaint/tiny/strength1",
    "inpaint/tiny/dpmpp-2m",
    "inpaint/tiny-inpaint/base",
    "inpaint/tiny-inpaint/shared",
    "inpaint/tiny-inpaint/everywhere",
]
EXACT = "inpaint/tiny/heun"


@pytest.fixture
def pipeline():
    """The port's file of pipelines."""
    resolve(f"{PORT}:factory")
    return importlib.import_module("sd1_numpy.pipeline")


def judged(runner, case_id: str, dtype: str = "float32", mode: str = "trace"):
    """Run one case."""
    case = find_case(f"pipeline/{case_id}")
    return runner.run(case, Execution(dtype=dtype, mode=mode).for_case(case))


@pytest.mark.parametrize("case_id", CASES)
def test_conforms(runner, case_id: str) -> None:
    """Every term of every step passes, at no more than half the limit."""
    result = judged(runner, case_id)
    assert result.verdict == "pass", result.message
    assert result.worst.ratio < LIMIT / 2


@pytest.mark.parametrize("case_id", ["txt2img/tiny/each2", EXACT, "inpaint/tiny-inpaint/shared"])
def test_conforms_in_float64(runner, case_id: str) -> None:
    """With nothing but the rounding of float64 between the two, the same."""
    result = judged(runner, case_id, "float64")
    assert result.verdict == "pass", result.message
    assert result.worst.ratio < LIMIT / 2


@pytest.mark.parametrize("case_id", ["inpaint/tiny/base", "inpaint/tiny-inpaint/base"])
def test_splices(runner, case_id: str) -> None:
    """In splice mode every term alone is within the limit."""
    pytest.importorskip("diffusers")
    result = judged(runner, case_id, mode="splice")
    assert result.verdict == "pass", result.message
    assert result.worst.ratio < LIMIT / 2


def later_noise(wrapped):
    """Mix noise in for the call after the one that comes."""
    return lambda self, k, *rest: wrapped(self, k + 1, *rest)


def as_a_whole(wrapped):
    """Repeat the prompts of a batch as a whole, not each for itself."""

    def encode(self, see, prefix, texts, each):
        return wrapped(self, see, prefix, np.tile(texts, each), 1)

    return encode


def exchanged(wrapped):
    """Give the UNet the masked picture before the mask."""

    def draw(*args, beside=(), **others):
        return wrapped(*args, beside=beside[::-1], **others)

    return draw


def unblended(wrapped):
    """Put nothing back around the hole."""

    def draw(*args, after=None, **others):
        return wrapped(*args, after=lambda k, x: (after(k, x), x)[1], **others)

    return draw


def small_noise(_wrapped):
    """Begin with noise of deviation 1, whatever the first sigma."""
    return lambda _self, _sigma: 1.0


WRONG = {
    "later-noise": (
        "schedulers.shares:ShareScheduler.mix",
        later_noise,
        "img2img/tiny/base",
        "initial_latents",
    ),
    "as-a-whole": ("pipeline:Pipeline.encode", as_a_whole, "txt2img/tiny/each2", "input_ids"),
    "exchanged": (
        "pipeline:Pipeline.draw",
        exchanged,
        "inpaint/tiny-inpaint/base",
        "model_input#0",
    ),
    "unblended": ("pipeline:Pipeline.draw", unblended, "inpaint/tiny/base", "latents#0"),
    "white": ("pipeline:WHITE", 1, "inpaint/tiny/base", "mask"),
    "small-noise": (
        "schedulers.sigmas:SigmaScheduler.first_deviation",
        small_noise,
        "txt2img/tiny/euler",
        "initial_latents",
    ),
}
"""What is replaced, by file, what is put there, the case and the term where it shows first."""


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_choice_is_caught(runner, monkeypatch, wrong: str) -> None:
    """The first divergence is the term that was made wrong."""
    place, value, case_id, term = WRONG[wrong]
    room, _, name = place.partition(":")
    *owners, last = name.split(".")
    owner = importlib.import_module(f"sd1_numpy.{room}")
    for step in owners:
        owner = getattr(owner, step)
    monkeypatch.setattr(owner, last, value(getattr(owner, last)) if callable(value) else value)
    result = judged(runner, case_id)
    assert result.verdict == "fail", result.message
    assert result.first_divergence["probe"] == term


def given(case_id: str) -> dict:
    """Return the inputs of a case."""
    return find_case(f"pipeline/{case_id}").inputs()


@pytest.mark.parametrize(
    ("steps", "strength", "calls"),
    [(4, 0.5, 2), (4, 1.0, 4), (10, 0.1, 1), (100, 0.29, 28), (7, 0.99, 6)],
)
def test_strength_leaves_out_the_first_steps(pipeline, steps: int, strength: float, calls: int):
    """The share of steps that are taken is rounded down, in float64 (100 * 0.29 is below 29)."""
    config = json.loads(given("img2img/tiny/base")["config"].item())
    config["num_inference_steps"] = steps
    whole, part = (pipeline.begin(config, share) for share in (None, strength))
    assert part.timesteps == whole.timesteps[steps - calls :]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strength": np.array(0.1)}, "strength is 0.1, expected"),
        ({"strength": np.array(1.1)}, "strength is 1.1, expected"),
        ({"strength": np.array(-0.1)}, "strength is -0.1, expected"),
        ({"image": np.zeros((2, 64, 56, 3), np.uint8)}, r"image has shape \(2, 64, 56, 3\)"),
        ({"image": np.zeros((3, 64, 64, 3), np.uint8)}, "need 1 or 2 of 64 x 64"),
        ({"mask": np.zeros((2, 64, 56), np.uint8)}, r"mask has shape \(2, 64, 56\)"),
    ],
)
def test_refuses_what_it_would_misread(runner, changes: dict, message: str) -> None:
    """Sizes, numbers and shares that do not fit are named, before anything is computed."""
    loaded = runner.load(find_case("pipeline/inpaint/tiny/base"), Execution())
    with pytest.raises(ValueError, match=message):
        loaded.run(given("inpaint/tiny/base") | changes)


@pytest.mark.parametrize("missing", ["image_noise", "masked_image_noise"])
def test_refuses_to_encode_without_noise(runner, missing: str) -> None:
    """A picture whose posterior has no noise is refused, by the name of the input."""
    inputs = given("inpaint/tiny-inpaint/base")
    del inputs[missing]
    loaded = runner.load(find_case("pipeline/inpaint/tiny-inpaint/base"), Execution())
    with pytest.raises(ValueError, match=f"{missing} is missing"):
        loaded.run(inputs)


def test_a_unet_that_inpaints_does_nothing_else(runner) -> None:
    """Text to image with a UNet of 9 channels is refused."""
    case = find_case("pipeline/inpaint/tiny-inpaint/base")
    loaded = runner.port.load("pipeline/txt2img", case.variant, case.weights(), "float32", "cpu")
    with pytest.raises(ValueError, match="the UNet reads 9 channels, not 4"):
        loaded.run(given("txt2img/tiny/base"))


def test_begin_index_is_not_strength(runner) -> None:
    """A picture's run begins where strength says: another beginning is declined, not ignored."""
    inputs = given("img2img/tiny/base")
    config = json.loads(inputs["config"].item()) | {"begin_index": 1}
    loaded = runner.load(find_case("pipeline/img2img/tiny/base"), Execution())
    with pytest.raises(Exception, match="begin_index") as raised:
        loaded.run(inputs | {"config": np.array(json.dumps(config))})
    assert type(raised.value).__name__ == "UnsupportedError"


def test_greys_of_a_mask_are_black_or_white(runner) -> None:
    """128 is the first white; of every 8 x 8 pixels the top left one decides."""
    inputs = given("inpaint/tiny/base")
    mask = np.full_like(inputs["mask"], 127)
    mask[:, ::8, ::16] = 128
    loaded = runner.load(find_case("pipeline/inpaint/tiny/base"), Execution())
    _, probes = loaded.run(inputs | {"mask": mask}, ["mask"])
    assert probes["mask"].shape == (2, 1, 8, 8)
    assert np.array_equal(probes["mask"][0, 0], np.tile([1.0, 0.0], (8, 4)))
