"""Scenarios: which there are, and what each hands over."""

from __future__ import annotations

import re

import numpy as np
import pytest

from conformance import spec
from conformance.case import COMPONENTS, NETWORKS, all_cases
from conformance.errors import UsageError
from conformance.recipe import digest
from conformance.sampling import IMAGE_TO_IMAGE, INPAINT
from conformance.scenarios import scenarios
from conformance.variants import parse_variant, variant_names

START, END = 49406, 49407
TIMES = ["t0", "t1", "t500", "t999", "t1000", "t976.8889", "t0.55", "tfloat", "tsamples"]
VAE = ["base", "nonsquare", "oddsize", "border", "constant", "saturated", "offset", "quiet", "loud",
       "batch1", "batch3"]  # fmt: skip
TINY = {
    "text_encoder": ["base", "empty", "short", "tokens75", "tokens76", "tokens77", "long",
                     "several-eos", "repeated", "batch3"],
    "unet": ["base", *TIMES, "quiet", "loud", "brink", "beyond", "nonsquare", "oddsize", "small",
             "batch1", "batch3", "tokens7"],
    "vae_encoder": VAE,
    "vae_decoder": [*VAE[:9], "brink", "beyond", *VAE[9:]],
}  # fmt: skip

IMAGES = {
    "base": (2, 48, 48),
    "nonsquare": (2, 40, 72),
    "oddsize": (2, 52, 44),
    "border": (2, 48, 48),
    "constant": (1, 48, 48),
    "saturated": (2, 48, 48),
    "offset": (2, 48, 48),
    "quiet": (2, 48, 48),
    "loud": (2, 48, 48),
    "batch1": (1, 64, 64),
    "batch3": (3, 32, 40),
}
LATENTS = {
    "base": (2, 2, 3),
    "nonsquare": (1, 2, 5),
    "oddsize": (1, 5, 3),
    "border": (1, 4, 3),
    "constant": (1, 3, 3),
    "saturated": (1, 3, 3),
    "offset": (1, 3, 3),
    "quiet": (1, 3, 3),
    "loud": (1, 3, 3),
    "brink": (1, 3, 3),
    "beyond": (1, 3, 3),
    "batch1": (1, 3, 3),
    "batch3": (3, 2, 2),
}
DRAWN = 255 / 128
"""The largest drawn input."""


def inputs(component: str, name: str, variant: str = "tiny") -> dict[str, np.ndarray]:
    """Draw the inputs of a scenario."""
    chosen = parse_variant(variant)
    (scenario,) = [s for s in scenarios(component, chosen) if s.name == name]
    return scenario.inputs(chosen)


def names(component: str, variant: str) -> list[str]:
    """Return the scenarios of a variant."""
    return [s.name for s in scenarios(component, parse_variant(variant))]


@pytest.mark.parametrize("component", TINY)
def test_tiny_runs_every_scenario(component: str) -> None:
    """The smallest size runs them all, in this order."""
    assert names(component, "tiny") == TINY[component]


@pytest.mark.parametrize("size", ["odd", "sd1"])
@pytest.mark.parametrize("component", TINY)
def test_larger_sizes_run_some(component: str, size: str) -> None:
    """A larger size runs `base` and some of the others, in the same order, and one of its own."""
    found = names(component, size)
    own = ["latent64"] if (component, size) == ("unet", "sd1") else []
    assert found == [*(name for name in TINY[component] if name in found), *own]
    assert found[0] == "base"
    assert len(found) > 1


@pytest.mark.parametrize("size", ["tiny-inpaint", "sd1-inpaint"])
def test_inpainting(size: str) -> None:
    """Inpainting has a UNet of its own, which differs in the channels that enter it."""
    assert names("unet", size) == ["base", "nonsquare"]
    assert inputs("unet", "base", size)["sample"].shape == (2, 9, 16, 16)


@pytest.mark.parametrize("component", NETWORKS)
def test_other_regimes_run_base(component: str) -> None:
    """In every regime but `unit` the one scenario is `base`."""
    armed = [n for n in variant_names(component) if n not in spec.architectures(component)]
    assert len(armed) == 3 * 5
    for variant in armed:
        assert names(component, variant) == ["base"], variant


@pytest.mark.parametrize("component", COMPONENTS)
def test_names_and_purposes(component: str) -> None:
    """Names are lower-case words and unique; every scenario says in one line what it hunts."""
    for variant in variant_names(component):
        found = scenarios(component, parse_variant(variant))
        not_run = variant == "sd1" and component in {IMAGE_TO_IMAGE, INPAINT}
        assert len({s.name for s in found}) == len(found)
        assert bool(found) is not not_run
        assert all(re.fullmatch(r"[a-z0-9.]+([-_][a-z0-9.]+)*", s.name) for s in found)
        assert all(len(s.hunts) > 10 and "\n" not in s.hunts for s in found)


def test_unknown_component() -> None:
    """A component that does not exist is refused with those that do."""
    with pytest.raises(UsageError, match="unknown component 'vae': choose from tokenizer, block/"):
        scenarios("vae", parse_variant("tiny"))


def test_inputs_are_drawn_alike() -> None:
    """Drawn twice, inputs are the same, floating ones finite, and float32 but for plain numbers."""
    for case in all_cases():
        first, second = case.inputs(), case.inputs()
        assert list(first) == list(second)
        for name, array in first.items():
            assert digest(array) == digest(second[name]), case.id
            wide = np.float64 if name in {"guidance_scale", "strength"} else np.float32
            assert array.dtype.kind in "Uiu" or array.dtype == wide, case.id
            assert array.dtype.kind == "U" or np.isfinite(array).all(), case.id


@pytest.mark.parametrize("name", VAE)
def test_shapes_of_images(name: str) -> None:
    """Images are (B, 3, H, W), the noise is shaped as the latents: an eighth, rounded down."""
    batch, height, width = IMAGES[name]
    found = inputs("vae_encoder", name)
    assert {key: array.shape for key, array in found.items()} == {
        "image": (batch, 3, height, width),
        "noise": (batch, 4, height // 8, width // 8),
    }


@pytest.mark.parametrize("name", VAE)
def test_shapes_of_latents(name: str) -> None:
    """Latents are (B, 4, H, W)."""
    batch, height, width = LATENTS[name]
    found = inputs("vae_decoder", name)
    assert {key: array.shape for key, array in found.items()} == {
        "latents": (batch, 4, height, width)
    }


@pytest.mark.parametrize(
    ("component", "name", "key", "largest"),
    [
        ("vae_encoder", "base", "image", DRAWN / 2),
        ("vae_encoder", "quiet", "image", DRAWN / 2 / 64),
        ("vae_encoder", "loud", "image", DRAWN / 2 * 8),
        ("vae_encoder", "quiet", "noise", DRAWN),
        ("vae_encoder", "loud", "noise", DRAWN),
        ("vae_decoder", "base", "latents", DRAWN),
        ("vae_decoder", "quiet", "latents", DRAWN / 64),
        ("vae_decoder", "loud", "latents", DRAWN * 8),
    ],
)
def test_ranges(component: str, name: str, key: str, largest: float) -> None:
    """Images lie in -1..1, noise and latents in -2..2; `quiet` and `loud` scale what is encoded."""
    array = np.abs(inputs(component, name)[key])
    assert 0.6 * largest < array.max() <= largest
    assert array.min() > 0


@pytest.mark.parametrize(
    ("component", "key", "border", "drawn"),
    [("vae_encoder", "image", 2, "base"), ("vae_decoder", "latents", 1, "batch1")],
    ids=["vae_encoder", "vae_decoder"],
)
def test_border(component: str, key: str, border: int, drawn: str) -> None:
    """Zero inside; at the edges what is drawn elsewhere, never zero."""
    array = inputs(component, "border")[key]
    inside = array[..., border:-border, border:-border]
    assert inside.size > 0
    assert not inside.any()
    assert np.count_nonzero(array) == array.size - inside.size
    assert array.std() < inputs(component, drawn)[key].std()


@pytest.mark.parametrize(
    ("component", "key", "level"), [("vae_encoder", "image", 1), ("vae_decoder", "latents", 4)]
)
def test_saturated(component: str, key: str, level: float) -> None:
    """Two values, about as often each."""
    array = inputs(component, "saturated")[key]
    assert set(np.unique(array)) == {-level, level}
    assert 0.3 < np.mean(array > 0) < 0.7


@pytest.mark.parametrize(
    ("component", "key"), [("vae_encoder", "image"), ("vae_decoder", "latents")]
)
def test_constant(component: str, key: str) -> None:
    """One value throughout: every norm of the first layers sees variance from the padding alone."""
    assert np.all(inputs(component, "constant")[key] == 0.5)


@pytest.mark.parametrize(
    ("component", "key", "mean", "spread"),
    [("vae_encoder", "image", 0.75, 2**-5), ("vae_decoder", "latents", 3, 2**-2)],
    ids=["vae_encoder", "vae_decoder"],
)
def test_offset(component: str, key: str, mean: float, spread: float) -> None:
    """A small signal on a large mean, still within the range of images."""
    array = inputs(component, "offset")[key]
    assert np.abs(array - mean).max() <= spread
    assert abs(array.mean() - mean) < spread / 4
    assert array.std() > spread / 4


@pytest.mark.parametrize("component", ["unet", "vae_encoder", "vae_decoder"])
def test_dense_inputs_in_dense_only(component: str) -> None:
    """Drawn inputs need 24 bits where the weights do, and 8 everywhere else."""
    for variant in map(parse_variant, variant_names(component)):
        for scenario in scenarios(component, variant):
            recipes = scenario.recipes(variant)
            assert len(recipes) > 0
            dense = {recipe.dense for recipe in recipes.values()}
            assert dense == {variant.regime == "dense"}, (variant.name, scenario.name)


@pytest.mark.parametrize("name", TINY["text_encoder"])
def test_prompts(name: str) -> None:
    """Ids of a prompt are rows of 77 from start to end, then padding with end."""
    found = inputs("text_encoder", name)
    assert list(found) == ["input_ids"]
    ids = found["input_ids"]
    assert (ids.dtype, ids.shape) == (np.int64, (3 if name == "batch3" else 1, 77))
    assert np.all(ids[:, 0] == START)
    assert np.all(ids[:, -1] == END)
    assert np.all((ids >= 0) & (ids <= END))


@pytest.mark.parametrize(
    ("name", "first_end"),
    [
        ("empty", [1]),
        ("short", [3]),
        ("tokens75", [76]),
        ("tokens76", [76]),
        ("tokens77", [76]),
        ("long", [76]),
    ],
)
def test_ends_of_prompts(name: str, first_end: list[int]) -> None:
    """The first end, where the text encoder pools, is behind the text or in the last place."""
    ids = inputs("text_encoder", name)["input_ids"]
    assert (ids == END).argmax(axis=1).tolist() == first_end


def test_several_ends() -> None:
    """In `several-eos` the text goes on after the first end, and ends again before the padding."""
    (ids,) = inputs("text_encoder", "several-eos")["input_ids"]
    ends = np.flatnonzero(ids == END)
    first, second, third = ends[:3].tolist()
    assert second > first + 1
    assert third > second + 1


def test_lengths_in_a_batch() -> None:
    """In `batch3` each row ends in another place."""
    ids = inputs("text_encoder", "batch3")["input_ids"]
    assert len(set((ids == END).argmax(axis=1).tolist())) == 3


def test_repeated_token() -> None:
    """In `repeated` one id stands at many places."""
    (ids,) = inputs("text_encoder", "repeated")["input_ids"]
    _, counts = np.unique(ids[ids != END], return_counts=True)
    assert sorted(counts.tolist()) == [1, 75]  # the start, the word


def test_ids_are_the_frozen_ones() -> None:
    """Ids come from `golden/spec/prompts.json`, which test_discover compares with the reference."""
    own = {s.name: s for s in scenarios("text_encoder", parse_variant("tiny"))}
    own["captions"] = scenarios("text_encoder", parse_variant("toy"))[0]
    for name, entry in spec.golden_prompts().items():
        ids = own[name].inputs(parse_variant("tiny"))["input_ids"]
        assert ids.tolist() == entry["input_ids"], name
    assert list(spec.golden_prompts()) == [*TINY["text_encoder"], "captions"]


def test_texts() -> None:
    """The tokenizer is given the strings of `golden/spec/strings.json`, one or several at once."""
    strings = spec.golden_strings()
    found = scenarios("tokenizer", parse_variant("-"))
    assert [s.name for s in found] == list(strings)
    for scenario in found:
        text = strings[scenario.name]["text"]
        handed = scenario.inputs(parse_variant("-"))["text"]
        assert handed.dtype.kind == "U"
        assert handed.tolist() == ([text] if isinstance(text, str) else text)
        assert scenario.recipes(parse_variant("-")) == {}
