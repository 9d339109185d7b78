"""Inpainting against diffusers' StableDiffusionInpaintPipeline, with 4 and with 9 channels.

The weights are small and random, the same in both.
"""

import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sd1_impl import (
    CheckpointError,
    Image2Image,
    Inpaint,
    Step,
    Text2Image,
    UNet,
    load_pipeline,
    synthetic_pipeline,
)
from sd1_impl.schedulers import SCHEDULERS

pytest.importorskip("diffusers")

PROMPT, NEGATIVE = "a photograph of an astronaut riding a horse", "blurry, low quality"
GUIDED = {"guidance_scale": 7.5, "negative_prompt": NEGATIVE}
SIZES = {4: "tiny", 9: "tiny-inpaint"}
GREYS = (0, 1, 126, 127, 128, 129, 254, 255)
"""Half of them are white."""


def random_bytes(*shape: int, seed: int = 2) -> Tensor:
    """Return random bytes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def black_or_white(*shape: int, seed: int = 2) -> Tensor:
    """Return bytes of 0 and 255 alone, which float32 maps to -1 and 1 exactly."""
    return (random_bytes(*shape, seed=seed) > 127).to(torch.uint8) * 255


def grey_mask(*shape: int) -> Tensor:
    """Return a mask of greys around black, the middle and white; its pixels differ in a square."""
    return torch.tensor(GREYS, dtype=torch.uint8)[random_bytes(*shape, seed=3).long() % len(GREYS)]


def algorithm(name: str, **changes):
    """Return a scheduler with SD v1's settings, but for some."""
    config, scheduler = SCHEDULERS[name]
    return scheduler(config(**changes))


STRENGTHS = {0.1: 20, 0.5: 5, 1.0: 3}
"""Steps of the run by strength: 2, 2 and 3 of them are taken."""


@pytest.mark.parametrize("channels", SIZES)
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_seed_means_what_it_means_in_diffusers(
    pair, same_pictures, name: str, strength: float, channels: int
):
    """In float32: all tensors of every step, pixels, and what the generator has left."""
    both = pair(Inpaint, SIZES[channels], scheduler=algorithm(name))
    image, mask = random_bytes(1, 64, 72, 3), grey_mask(1, 64, 72)
    run = {"strength": strength, "num_inference_steps": STRENGTHS[strength], **GUIDED}
    picture = same_pictures(both, PROMPT, image=image, mask=mask, **run)
    assert (picture.image_latents is None) == (channels == 9 and strength == 1)
    assert (picture.masked_image_latents is None) == (channels == 4)


TWO = {"prompt": [PROMPT, "a cat"], "negative_prompt": ["", NEGATIVE]}
RUNS = {
    "off-at-1": {"guidance_scale": 1.0},
    "off-at-0": {"guidance_scale": 0.0},
    "one-image-for-two": TWO,
    "an-image-each": {**TWO, "image": black_or_white(2, 64, 64, 3)},
    "a-mask-each": {**TWO, "mask": grey_mask(2, 64, 64)},
    "both-each": {**TWO, "image": black_or_white(2, 64, 64, 3), "mask": grey_mask(2, 64, 64)},
    "wide": {"image": black_or_white(1, 64, 104, 3), "mask": grey_mask(1, 64, 104)},
    "tall": {"image": black_or_white(1, 88, 64, 3), "mask": grey_mask(1, 88, 64)},
    "large-seed": {"seed": 2**32 + 1},
    "all-steps": {"strength": 1.0, "num_inference_steps": 3},
    "ddim": {"scheduler": algorithm("ddim", eta=0.5)},
    "ddpm-at-1": {"scheduler": algorithm("ddpm"), "strength": 1.0, "num_inference_steps": 2},
    "all-white": {"mask": torch.full((1, 64, 64), 255, dtype=torch.uint8)},
    "all-black": {"mask": torch.zeros(1, 64, 64, dtype=torch.uint8)},
}


@pytest.mark.parametrize("channels", SIZES)
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
@pytest.mark.usefixtures("float32_draws")
def test_float64_is_diffusers(pair, same_pictures, run: dict, channels: int):
    """Where the tables are float64 every step's tensors and the picture agree, to rounding."""
    defaults = {
        "prompt": PROMPT,
        "image": black_or_white(1, 64, 64, 3),
        "mask": grey_mask(1, 64, 64),
        "strength": 0.5,
        "num_inference_steps": 4,
        "scheduler": algorithm("pndm"),
        **GUIDED,
    }
    run = defaults | run
    scheduler = run.pop("scheduler")
    both = pair(Inpaint, SIZES[channels], dtype=torch.float64, scheduler=scheduler)
    same_pictures(both, **run)


IMAGE, MASK = random_bytes(1, 64, 72, 3), grey_mask(1, 64, 72)


@pytest.fixture(params=SIZES, ids=lambda channels: f"{channels}-channels")
def pipeline(pair, request) -> Inpaint:
    """Our pipeline in float32, an object of the test's own."""
    return pair(Inpaint, SIZES[request.param], scheduler=algorithm("ddim"))[0]


@pytest.fixture
def four(pair) -> Inpaint:
    """The one of 4 channels."""
    return pair(Inpaint, SIZES[4], scheduler=algorithm("ddim"))[0]


@pytest.fixture
def nine(pair) -> Inpaint:
    """The one of 9 channels."""
    return pair(Inpaint, SIZES[9], scheduler=algorithm("ddim"))[0]


def draw(pipeline: Inpaint, prompt: str | list[str] = PROMPT, **arguments) -> tuple:
    """Return a small picture, of two of four steps, and the steps."""
    steps: list[Step] = []
    defaults = {"image": IMAGE, "mask": MASK, "strength": 0.5, "num_inference_steps": 4}
    defaults |= {"callback": steps.append, "generator": torch.Generator().manual_seed(0)}
    return pipeline(prompt, **defaults | arguments), steps


def test_grey_from_128_up_is_white(four):
    """In the mask of the latents and in the masked image; each at its own resolution."""
    mask = torch.zeros(1, 16, 24, dtype=torch.uint8)
    mask[0, 0, :4] = torch.tensor([127, 128, 129, 255])
    mask[0, 8, 8], mask[0, 15, 23] = 128, 255  # the top left of a square, and the bottom right
    redrawn = four.binarize(mask)
    assert redrawn.nonzero()[:, 2:].tolist() == [[0, 1], [0, 2], [0, 3], [8, 8], [15, 23]]
    assert four.latent_mask(redrawn).tolist() == [[[[0, 0, 0], [0, 1, 0]]]]
    grey = four.mask_image(torch.full((1, 3, 16, 24), -0.5), redrawn) == 0
    assert torch.equal(grey, redrawn.expand(1, 3, 16, 24))


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "heun"])
def test_all_white_at_strength_1_is_text_to_image(four, name: str):
    """With 4 channels nothing is left of the image: the same bits."""
    four.scheduler = algorithm(name)
    plain = Text2Image(four.tokenizer, four.text_encoder, four.unet, four.vae, four.scheduler)
    data = {"latents": torch.ones(1, 4, 8, 9), "noise": torch.ones(7, 1, 4, 8, 9)}
    data["noise"] = data["noise"][: len(four.start_run(4, 1.0).timesteps)]
    wanted = plain(PROMPT, num_inference_steps=4, height=64, width=72, **data)
    got, _ = draw(four, mask=torch.full_like(MASK, 255), strength=1.0, **data)
    assert torch.equal(got.image, wanted.image)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_is_kept_is_the_image(four, name: str):
    """With 4 channels, as noisy as the next step expects, and to the bit after the last."""
    four.scheduler = algorithm(name)
    latents = torch.randn(1, 4, 8, 9, generator=torch.Generator().manual_seed(5))
    picture, steps = draw(four, latents=latents)
    kept = (picture.mask == 0).expand_as(latents)
    assert 0.2 < kept.double().mean() < 0.8
    assert torch.equal(picture.latents[kept], picture.image_latents[kept])
    assert not torch.isclose(picture.latents[~kept], picture.image_latents[~kept]).any()
    assert torch.equal(picture.latents, steps[-1].latents)
    run = four.start_run(4, 0.5)
    for step, t in zip(steps[:-1], run.timesteps[1:], strict=True):
        if hasattr(run, "calls"):
            run.calls = step.index + 1
        known = four.scheduler.add_noise(picture.image_latents, latents, t.item(), run)
        assert torch.equal(step.latents[kept], known[kept])
        assert torch.equal(step.latents[~kept], step.unblended[~kept])
        assert not torch.isclose(step.unblended[kept], known[kept]).all()


def test_what_nine_channels_hold(nine):
    """Scaled latents, the mask, the masked image's latents; these two the same in every step."""
    nine.scheduler = algorithm("euler")
    picture, steps = draw(nine, [PROMPT, "a cat"])
    sigmas = nine.start_run(4, 0.5).sigmas[2:]
    before = picture.initial_latents
    for step, sigma in zip(steps, sigmas, strict=False):
        scaled, mask, masked = step.model_input.split([4, 1, 4], dim=1)
        assert torch.allclose(scaled, before / (sigma**2 + 1) ** 0.5)
        assert torch.equal(mask, picture.mask.repeat(2, 1, 1, 1))
        assert torch.equal(masked, picture.masked_image_latents.repeat(2, 1, 1, 1))
        assert step.unblended is None
        before = step.latents


def test_nine_channels_see_nothing_of_what_is_drawn_anew(nine):
    """At strength 1 other pixels under the mask make the same picture; others elsewhere do not."""
    under = (MASK >= 128).unsqueeze(-1)
    picture, _ = draw(nine, strength=1.0)
    same, _ = draw(nine, image=torch.where(under, 255 - IMAGE, IMAGE), strength=1.0)
    other, _ = draw(nine, image=torch.where(under, IMAGE, 255 - IMAGE), strength=1.0)
    assert torch.equal(same.image, picture.image)
    assert not torch.equal(other.image, picture.image)
    assert (picture.image_latents, picture.masked_image.shape) == (None, (1, 3, 64, 72))


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_data_are_what_would_be_drawn(pipeline, strength: float):
    """In this order, of which some are not needed; and nothing given is changed."""
    pipeline.scheduler = algorithm("ddpm")
    channels = pipeline.unet.config.in_channels
    settings = {"prompt": [PROMPT] * 2, "strength": strength}
    wanted, steps = draw(pipeline, **settings)
    generator = torch.Generator().manual_seed(0)
    data = {}
    for name, count, is_needed in (
        ("image_noise", 1, channels == 4 or strength < 1),
        ("latents", 2, True),
        ("masked_image_noise", 1, channels == 9),
    ):
        if name != "image_noise" or is_needed:
            drawn = torch.randn(count, 4, 8, 9, generator=generator)
            data |= {name: drawn} if is_needed else {}
    data["noise"] = torch.stack([torch.randn(2, 4, 8, 9, generator=generator) for _ in steps])
    data |= {"image": IMAGE.clone(), "mask": MASK.clone()}
    copies = {name: tensor.clone() for name, tensor in data.items()}
    got, _ = draw(pipeline, **settings, **data)
    assert torch.equal(got.image, wanted.image)
    for name, tensor in data.items():
        assert torch.equal(tensor, copies[name]), name
        changed = draw(pipeline, **settings, **data | {name: tensor.flip(-2)})[0]
        assert not torch.equal(changed.image, wanted.image), name


def test_the_same_call_gives_the_same_bits(pipeline):
    """A run leaves nothing behind."""
    assert torch.equal(draw(pipeline)[0].image, draw(pipeline)[0].image)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("size", SIZES.values())
def test_a_seed_means_one_picture_in_every_dtype(pair, size: str, dtype: torch.dtype):
    """Draws are float32; mask, image and latents are rounded to the model's dtype."""
    wanted, _ = draw(pair(Inpaint, size, scheduler=algorithm("ddim"))[0])
    other = synthetic_pipeline(size, pipeline=Inpaint, dtype=dtype)
    other.scheduler = algorithm("ddim")
    got, _ = draw(other)
    assert {got.image.dtype, got.mask.dtype, got.initial_latents.dtype} == {dtype}
    assert (got.image.float() - wanted.image).abs().mean() < 0.05


TERMS = {"binarize": (1, 1), "latent_mask": (1, 1), "mask_image": (0, 1), "normalize": (1, 1)}
TERMS |= {"encode_image": (1, 1), "encode_masked_image": (0, 1), "encode_pixels": (1, 2)}
TERMS |= {"unet_input": (0, 2), "known_latents": (2, 0), "blend": (2, 0)}
TERMS |= {"to_batch": (2, 3), "noisy_latents": (1, 1), "initial_latents": (0, 0), "draw": (3, 3)}


@pytest.mark.parametrize("name", TERMS)
def test_every_term_can_be_replaced(pipeline, name: str):
    """An attribute of the instance takes a method's place, at every call."""
    calls, method = [], getattr(pipeline, name)
    setattr(pipeline, name, lambda *args, **kwargs: calls.append(name) or method(*args, **kwargs))
    draw(pipeline)
    assert len(calls) == TERMS[name][pipeline.unet.config.in_channels == 9]


def test_arguments_mean_what_they_mean_in_image_to_image():
    """Names and defaults are the same, but for the strength."""
    image, mask = (inspect.signature(kind.__call__).parameters for kind in (Image2Image, Inpaint))
    assert set(mask) - set(image) == {"mask", "masked_image_noise"}
    differ = {name for name in image if image[name].default != mask[name].default}
    assert differ == {"strength"}


LATENTS = torch.zeros(1, 4, 8, 9)
BAD_INPUTS = {
    "float": ({"mask": MASK / 255}, TypeError, "mask is torch.float32, expected a torch.uint8"),
    "bool": ({"mask": MASK > 127}, TypeError, "mask is torch.bool, expected a torch.uint8 tensor"),
    "float-image": ({"image": IMAGE / 255}, TypeError, "image is torch.float32, expected"),
    "size": (
        {"mask": MASK[:, :, :64]},
        ValueError,
        r"mask has shape \(1, 64, 64\), expected .*, with the image's height and width \(64, 72\)",
    ),
    "no-batch": ({"mask": MASK[0]}, ValueError, r"mask has shape \(64, 72\), expected \(masks, h"),
    "colour": ({"mask": IMAGE}, ValueError, r"mask has shape \(1, 64, 72, 3\), expected \(masks"),
    "no-mask": ({"mask": MASK[:0]}, ValueError, r"mask has shape \(0, 64, 72\), expected"),
    "masks": (
        {"mask": grey_mask(3, 64, 72), "prompt": ["a", "b"]},
        ValueError,
        "mask has 3 entries for 2 prompts: expected one for all, or one each",
    ),
    "images": (
        {"image": random_bytes(2, 64, 72, 3)},
        ValueError,
        "image has 2 entries for 1 prompts: expected one for all",
    ),
    "multiple": ({"image": IMAGE[:, :60], "mask": MASK[:, :60]}, ValueError, "image is 60 high"),
    "strength": ({"strength": 0}, ValueError, "strength is 0, expected more than 0 and at most 1"),
    "no-step": ({"strength": 0.2}, ValueError, "strength 0.2 leaves none of 4 steps"),
    "image-noise": ({"image_noise": LATENTS[..., 1:]}, ValueError, "image_noise has shape"),
    "latents": ({"latents": LATENTS[..., 1:]}, ValueError, "latents has shape"),
    "masked": ({"masked_image_noise": LATENTS[..., 1:]}, ValueError, "masked_image_noise has sh"),
    "noise": ({"noise": LATENTS}, ValueError, r"noise has .*expected \(2, 1, 4, 8, 9\)"),
    "negatives": ({"negative_prompt": ["a", "b"]}, ValueError, "2 negative prompts for 1 prompts"),
}


@pytest.mark.parametrize(("change", "kind", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_a_wrong_input_is_named(nine, change: dict, kind: type, message: str):
    """Before anything is computed, in one line."""
    nine.encode = nine.encode_pixels = nine.draw = pytest.fail
    with pytest.raises(kind, match=message) as caught:
        draw(nine, **change)
    assert "\n" not in str(caught.value)


def test_noise_that_nobody_reads_is_refused(four, nine):
    """The masked image's with 4 channels, and the image's with 9 where it is not encoded."""
    with pytest.raises(ValueError, match="masked_image_noise is given, but a UNet of 4 channels"):
        draw(four, masked_image_noise=LATENTS)
    with pytest.raises(ValueError, match=r"image_noise is given, but .*strength 1 .*: leave it"):
        draw(nine, image_noise=LATENTS, strength=1.0)


def test_a_unet_of_other_channels_is_refused(four):
    """The latents' alone, or with a mask and a masked image: nothing else has a meaning."""
    with torch.device("meta"):
        eight = UNet(replace(four.unet.config, in_channels=8))
    with pytest.raises(ValueError, match="latents have 4 channels, but the UNet reads 8"):
        Inpaint(four.tokenizer, four.text_encoder, eight, four.vae, four.scheduler)


def test_trained_weights_of_nine_channels_are_loaded(nine, weights_folder: Path, tmp_path: Path):
    """A folder as SD v1-5 inpainting's; text to image names it, and what it is for."""
    folder = shutil.copytree(weights_folder, tmp_path / "inpainting")
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps(config | {"in_channels": 9}))
    save_file(nine.unet.state_dict(), folder / "unet/diffusion_pytorch_model.safetensors")
    loaded = load_pipeline(folder, pipeline=Inpaint)
    assert loaded.unet.config == nine.unet.config
    assert torch.equal(loaded.unet.conv_in.weight, nine.unet.conv_in.weight)
    with pytest.raises(CheckpointError, match=r"inpainting: .* it is made for inpainting"):
        load_pipeline(folder)
