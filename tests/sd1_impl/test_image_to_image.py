"""Image to image against diffusers' StableDiffusionImg2ImgPipeline; and its manners.

The weights are small and random, the same in both.
"""

import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sd1_impl import Image2Image, Step, Text2Image, load_pipeline, synthetic_pipeline
from sd1_impl.schedulers import SCHEDULERS

pytest.importorskip("diffusers")

PROMPT, NEGATIVE = "a photograph of an astronaut riding a horse", "blurry, low quality"
GUIDED = {"guidance_scale": 7.5, "negative_prompt": NEGATIVE}


def random_image(*shape: int, extreme: bool = False) -> Tensor:
    """Return an image of random bytes; of 0 and 255 alone, which float32 maps to -1 and 1."""
    generator = torch.Generator().manual_seed(2)
    low = torch.randint(0, 256, (*shape, 3), generator=generator, dtype=torch.uint8)
    return (low > 127).to(torch.uint8) * 255 if extreme else low


def normal(*shape: int) -> Tensor:
    """Return normal data."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def algorithm(name: str, **changes):
    """Return a scheduler with SD v1's settings, but for some."""
    config, scheduler = SCHEDULERS[name]
    return scheduler(config(**changes))


STRENGTHS = {0.1: 20, 0.5: 5, 1.0: 3}
"""Steps of the run by strength: 2, 2 and 3 of them are taken."""


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_seed_means_what_it_means_in_diffusers(pair, same_pictures, name: str, strength: float):
    """In float32: all tensors of every step, pixels, and what the generator has left."""
    both = pair(Image2Image, scheduler=algorithm(name))
    image = random_image(1, 64, 72)
    steps = STRENGTHS[strength]
    run = {"image": image, "strength": strength, "num_inference_steps": steps, **GUIDED}
    same_pictures(both, PROMPT, **run)


SETTINGS = {
    "ddim-eta1": ("ddim", {"eta": 1.0}),
    "ddpm-to-0": ("ddpm", {"steps_offset": 0}),
    "euler-linspace": ("euler", {"timestep_spacing": "linspace"}),
    "heun-linspace": ("heun", {"timestep_spacing": "linspace"}),
    "dpmpp-karras": ("dpmpp_2m", {"use_karras_sigmas": True}),
    "lms-trailing": ("lms", {"timestep_spacing": "trailing"}),
    "pndm-trailing": ("pndm", {"timestep_spacing": "trailing"}),
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_settings_of_schedulers_begin_late_too(pair, same_pictures, setting: tuple):
    """Where steps add noise, arrive at 0, have fractions or timesteps that are told twice."""
    name, changes = setting
    both = pair(Image2Image, scheduler=algorithm(name, **changes))
    run = {"image": random_image(1, 64, 64), "strength": 0.6, "num_inference_steps": 7, **GUIDED}
    same_pictures(both, PROMPT, **run)


TWO = {"prompt": [PROMPT, "a cat"], "negative_prompt": ["", NEGATIVE]}
RUNS = {
    "guided": {},
    "off-at-1": {"guidance_scale": 1.0},
    "off-at-0": {"guidance_scale": 0.0},
    "one-image-for-two": TWO,
    "an-image-each": {**TWO, "image": random_image(2, 64, 64, extreme=True)},
    "wide": {"image": random_image(1, 64, 104, extreme=True)},
    "tall": {"image": random_image(1, 88, 64, extreme=True)},
    "large-seed": {"seed": 2**32 + 1},
    "all-steps": {"strength": 1.0, "num_inference_steps": 3},
    "part-of-a-step": {"strength": 0.7},
    "ddim": {"scheduler": algorithm("ddim", eta=0.5)},
    "ddpm": {"scheduler": algorithm("ddpm")},
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
@pytest.mark.usefixtures("float32_draws")
def test_float64_is_diffusers(pair, same_pictures, run: dict):
    """Where the tables are float64 every step's tensors and the picture agree, to rounding."""
    defaults = {
        "prompt": PROMPT,
        "image": random_image(1, 64, 64, extreme=True),
        "strength": 0.5,
        "num_inference_steps": 4,
        "scheduler": algorithm("pndm"),
        **GUIDED,
    }
    run = defaults | run
    both = pair(Image2Image, dtype=torch.float64, scheduler=run.pop("scheduler"))
    same_pictures(both, **run)


@pytest.fixture
def pipeline(tiny) -> Image2Image:
    """Our pipeline in float32, an object of the test's own."""
    return Image2Image(tiny.tokenizer, tiny.text_encoder, tiny.unet, tiny.vae, algorithm("ddim"))


IMAGE = random_image(1, 64, 72)


def draw(pipeline: Image2Image, prompt: str | list[str] = PROMPT, **arguments) -> tuple:
    """Return a small picture, of two of four steps, and the steps."""
    steps: list[Step] = []
    defaults = {"image": IMAGE, "strength": 0.5, "num_inference_steps": 4}
    defaults |= {"callback": steps.append, "generator": torch.Generator().manual_seed(0)}
    return pipeline(prompt, **defaults | arguments), steps


def test_the_picture_holds_what_it_was_made_of(pipeline):
    """The image, its latents, the same made noisy, and the first and the last step's."""
    draws = torch.Generator().manual_seed(0)
    image_noise, noise = (torch.randn(1, 4, 8, 9, generator=draws) for _ in range(2))
    picture, steps = draw(pipeline)
    posterior = pipeline.vae.encode(picture.init_image)
    latents = 0.18215 * (posterior.mean + (posterior.logvar / 2).exp() * image_noise)
    assert torch.allclose(picture.image_latents, latents, rtol=1e-5, atol=1e-6)
    first = pipeline.scheduler.add_noise(picture.image_latents, noise, steps[0].timestep)
    assert torch.equal(picture.initial_latents, first)
    assert torch.equal(picture.initial_latents, steps[0].model_input)
    assert torch.equal(picture.latents, steps[-1].latents)
    assert [step.timestep for step in steps] == [251, 1]
    assert all(step.unblended is None for step in steps)
    assert not picture.image_latents.requires_grad


def test_an_image_becomes_numbers_from_minus_one_to_one(pipeline):
    """All 256 levels, to a float32's last bit; channels before rows."""
    image = torch.arange(256, dtype=torch.uint8).reshape(1, 8, 32, 1).repeat(1, 1, 1, 3)
    image[..., 1] = image[..., 1].flip(2)
    init_image = pipeline.normalize(image)
    levels = torch.arange(256, dtype=torch.float64).reshape(8, 32) / 127.5 - 1
    assert (init_image.dtype, init_image.shape) == (torch.float32, (1, 3, 8, 32))
    assert torch.allclose(init_image[0, 0].double(), levels, rtol=0, atol=1.2e-7)
    assert torch.equal(init_image[0, 1], init_image[0, 0].flip(1))
    assert torch.equal(init_image[0, 2], init_image[0, 0])
    assert torch.equal(pipeline.to_uint8(pipeline.to_image(init_image)), image)


def test_data_are_what_would_be_drawn(pipeline):
    """Noise given is that drawn from a generator, in the same order; nothing is changed."""
    pipeline.scheduler = algorithm("ddpm")
    wanted, _ = draw(pipeline, [PROMPT] * 2)
    generator = torch.Generator().manual_seed(0)
    one, *others = (torch.randn(i, 4, 8, 9, generator=generator) for i in (1, 2, 2, 2))
    data = {"image_noise": one, "latents": others[0], "noise": torch.stack(others[1:])}
    data |= {"image": IMAGE.clone()}
    copies = {name: tensor.clone() for name, tensor in data.items()}
    got, _ = draw(pipeline, [PROMPT] * 2, **data)
    assert torch.equal(got.image, wanted.image)
    for name, tensor in data.items():
        assert torch.equal(tensor, copies[name]), name
        if name != "image":
            other, _ = draw(pipeline, [PROMPT] * 2, **data | {name: tensor + 1})
            assert not torch.equal(other.image, wanted.image), name


def test_the_same_call_gives_the_same_bits(pipeline):
    """A run leaves nothing behind."""
    assert torch.equal(draw(pipeline)[0].image, draw(pipeline)[0].image)


def test_one_image_serves_all(pipeline):
    """It is the list of it, where its noise is too; and images do not change places."""
    prompts, other = [PROMPT, "a cat"], random_image(2, 64, 72)[1:]
    image_noise = normal(1, 4, 8, 9)
    one, _ = draw(pipeline, prompts, image_noise=image_noise)
    both = {"image": torch.cat([IMAGE] * 2), "image_noise": torch.cat([image_noise] * 2)}
    assert torch.allclose(draw(pipeline, prompts, **both)[0].latents, one.latents, atol=1e-4)
    data = {"latents": normal(2, 4, 8, 9), "image_noise": normal(2, 4, 8, 9).flip(0)}
    each, _ = draw(pipeline, prompts, image=torch.cat([IMAGE, other]), **data)
    for i, image in enumerate((IMAGE, other)):
        own = {name: tensor[i : i + 1] for name, tensor in data.items()}
        alone, _ = draw(pipeline, prompts[i], image=image, **own)
        assert torch.allclose(each.latents[i], alone.latents[0], atol=1e-4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_run_begins_where_the_whole_one_would_be(pipeline, name: str):
    """`int(steps * strength)` steps are taken, of Heun's each twice, and the last is the last."""
    pipeline.scheduler = algorithm(name)
    whole = pipeline.scheduler.start(10).timesteps
    calls = 2 if name == "heun" else 1
    for strength, left_out in ((1.0, 0), (0.99, 1), (0.7, 3), (0.29, 8), (0.1, 9)):
        run = pipeline.start_run(10, strength)
        assert run.timesteps.tolist() == whole[calls * left_out :].tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_seed_means_one_picture_in_every_dtype(pipeline, dtype: torch.dtype):
    """Draws are float32, and the image is exact before it is rounded to the model's dtype."""
    wanted, _ = draw(pipeline)
    other = synthetic_pipeline("tiny", pipeline=Image2Image, dtype=dtype)
    other.scheduler = pipeline.scheduler
    got, _ = draw(other)
    assert {got.image.dtype, got.init_image.dtype, got.image_latents.dtype} == {dtype}
    assert torch.allclose(got.init_image.to(wanted.init_image), wanted.init_image, atol=4e-3)
    assert (got.image.float() - wanted.image).abs().mean() < 0.05


def test_the_autoencoder_may_have_its_own_dtype(pipeline):
    """A float64 one around a float32 loop changes rounding only."""
    wanted, _ = draw(pipeline)
    pipeline.vae = synthetic_pipeline("tiny", dtype=torch.float64).vae
    got, _ = draw(pipeline)
    assert (got.init_image.dtype, got.image_latents.dtype) == (torch.float64, torch.float32)
    assert torch.allclose(got.latents, wanted.latents, atol=1e-3)


TERMS = {"normalize": 1, "encode_image": 1, "encode_pixels": 1, "to_batch": 1, "noisy_latents": 1}
TERMS |= {"start_run": 1, "draw": 2, "initial_latents": 0, "repeat_prompts": 1, "finish": 1}


@pytest.mark.parametrize("name", TERMS)
def test_every_term_can_be_replaced(pipeline, name: str):
    """An attribute of the instance takes a method's place, at every call."""
    calls, method = [], getattr(pipeline, name)
    setattr(pipeline, name, lambda *args, **kwargs: calls.append(name) or method(*args, **kwargs))
    draw(pipeline)
    assert len(calls) == TERMS[name]


def test_arguments_mean_what_they_mean_in_text_to_image():
    """Names and defaults are the same, but for the size, which is the image's."""
    text, image = (
        inspect.signature(kind.__call__).parameters for kind in (Text2Image, Image2Image)
    )
    assert set(text) - set(image) == {"height", "width"}
    assert set(image) - set(text) == {"image", "strength", "image_noise"}
    shared = set(text) & set(image)
    assert {n: image[n].default for n in shared} == {n: text[n].default for n in shared}


LATENTS = torch.zeros(1, 4, 8, 8)
BAD_INPUTS = {
    "float": ({"image": IMAGE / 255}, TypeError, "image is torch.float32, expected a torch.uint8"),
    "array": (
        {"image": IMAGE.numpy()},
        TypeError,
        "image is ndarray, expected a torch.uint8 tensor",
    ),
    "no-tensor": ({"image": "p.png"}, TypeError, "image is str, expected a torch.uint8 tensor"),
    "channels-first": (
        {"image": IMAGE.permute(0, 3, 1, 2)},
        ValueError,
        r"image has shape \(1, 3, 64, 72\), expected \(images, height, width, 3\), RGB",
    ),
    "no-batch": ({"image": IMAGE[0]}, ValueError, r"image has shape \(64, 72, 3\), expected"),
    "no-image": ({"image": IMAGE[:0]}, ValueError, r"image has shape \(0, 64, 72, 3\), expected"),
    "high": ({"image": IMAGE[:, :60]}, ValueError, "image is 60 high and 72 wide, expected mult"),
    "wide": (
        {"image": IMAGE[:, :, :70]},
        ValueError,
        "high and 70 wide, expected multiples of 8: crop or",
    ),
    "empty": ({"image": IMAGE[:, :0]}, ValueError, "image is 0 high and 72 wide, expected"),
    "images": (
        {"image": random_image(3, 64, 72), "prompt": ["a", "b"]},
        ValueError,
        "image has 3 entries for 2 prompts: expected one for all, or one each",
    ),
    "strength-0": ({"strength": 0.0}, ValueError, "strength is 0.0, expected more than 0 and at m"),
    "strength-2": ({"strength": 1.01}, ValueError, "strength is 1.01, expected more than 0"),
    "nan": ({"strength": float("nan")}, ValueError, "strength is nan, expected more than 0"),
    "no-step": (
        {"strength": 0.2},
        ValueError,
        "strength 0.2 leaves none of 4 steps: expected num_inference_steps times strength to be 1",
    ),
    "steps": ({"num_inference_steps": 1001}, ValueError, "num_inference_steps is 1001, expected"),
    "image-noise": (
        {"image_noise": LATENTS},
        ValueError,
        r"image_noise has shape \(1, 4, 8, 8\), expected \(1, 4, 8, 9\)",
    ),
    "latents": ({"latents": LATENTS}, ValueError, r"latents has .*, expected \(1, 4, 8, 9\)"),
    "noise": (
        {"noise": torch.zeros(4, 1, 4, 8, 9)},  # of the whole run
        ValueError,
        r"noise has shape \(4, 1, 4, 8, 9\), expected \(2, 1, 4, 8, 9\)",
    ),
    "guidance": ({"guidance_scale": float("inf")}, ValueError, "guidance_scale is inf, expected"),
    "no-prompt": ({"prompt": []}, ValueError, "there is no prompt"),
}


@pytest.mark.parametrize(("change", "kind", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_a_wrong_input_is_named(pipeline, change: dict, kind: type, message: str):
    """Before anything is computed, in one line."""
    pipeline.encode = pipeline.encode_pixels = pipeline.draw = pytest.fail
    with pytest.raises(kind, match=message) as caught:
        draw(pipeline, **change)
    assert "\n" not in str(caught.value)


def test_a_runge_kutta_warm_up_cannot_begin_late(pipeline):
    """PNDM's own refusal is passed on; a whole run is drawn."""
    pipeline.scheduler = algorithm("pndm", skip_prk_steps=False)
    with pytest.raises(ValueError, match="cannot begin within its Runge-Kutta warm-up"):
        draw(pipeline, num_inference_steps=8)
    _, steps = draw(pipeline, num_inference_steps=4, strength=1.0)
    assert len(steps) == 4 + 9


def test_an_inpainting_unet_is_refused():
    """It reads a mask, of which this pipeline knows nothing."""
    with pytest.raises(ValueError, match=r"UNet reads 9: it is made for inpainting \(`Inpaint`, "):
        synthetic_pipeline("tiny-inpaint", pipeline=Image2Image)


def test_trained_weights_are_loaded_for_it(pipeline, weights_folder: Path):
    """Those of text to image: the same picture as of the weights in memory."""
    loaded = load_pipeline(weights_folder, pipeline=Image2Image)
    loaded.scheduler = pipeline.scheduler
    assert torch.equal(draw(loaded)[0].image, draw(pipeline)[0].image)
