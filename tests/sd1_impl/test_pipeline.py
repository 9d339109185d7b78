"""Text to image against diffusers' StableDiffusionPipeline: steps, noise, pixels; and its manners.

The weights are small and random, the same in both.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import sd1_impl
from sd1_impl import CLIPTextEncoder, CLIPTokenizer, Step, Text2Image, synthetic_pipeline
from sd1_impl.schedulers import SCHEDULERS as ALGORITHMS
from sd1_impl.schedulers import Run

diffusers = pytest.importorskip("diffusers")

PROMPT, NEGATIVE = "a photograph of an astronaut riding a horse", "blurry, low quality"
SMALL = {"height": 64, "width": 64}
CHANGES = {
    **{n: {} for n in ("pndm", "ddim", "ddpm", "lms", "euler", "euler_ancestral", "dpmpp_2m")},
    "ddim-eta1": {"eta": 1.0},
    "ddpm-to-0": {"steps_offset": 0},
    "euler-leading": {"timestep_spacing": "leading"},
    "heun-karras": {"use_karras_sigmas": True},
}
"""Settings that differ from SD v1's."""
SCHEDULERS = {
    name: scheduler(config(**changes))
    for name, changes in CHANGES.items()
    for config, scheduler in [ALGORITHMS[name.partition("-")[0]]]
}


@pytest.fixture(scope="module")
def pipelines(pair) -> dict[torch.dtype, tuple]:
    """Our pipeline and diffusers' by dtype."""
    return {dtype: pair(Text2Image, dtype=dtype) for dtype in (torch.float32, torch.float64)}


@pytest.fixture
def pipeline(tiny) -> Text2Image:
    """Our pipeline in float32, an object of the test's own."""
    return Text2Image(tiny.tokenizer, tiny.text_encoder, tiny.unet, tiny.vae, tiny.scheduler)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return normal data."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


RUNS = {
    "guided": {"num_inference_steps": 7},
    "strong": {"guidance_scale": 30.0},
    "weak": {"guidance_scale": 1.01},
    "off-at-1": {"guidance_scale": 1.0},
    "off-at-0": {"guidance_scale": 0.0},
    "wide": {"height": 64, "width": 104},
    "tall": {"height": 88, "width": 64},
    "two-steps": {"num_inference_steps": 2},
    "batch": {"prompt": [PROMPT, "a cat"], "negative_prompt": ["", NEGATIVE]},
    "long-prompt": {"prompt": "a very " * 60 + "long prompt"},
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_float64_is_diffusers(pipelines, same_pictures, run: dict):
    """From the same latents every step's tensors and the picture agree, to rounding."""
    defaults = {"num_inference_steps": 3, "guidance_scale": 7.5, **SMALL}
    run = {"prompt": PROMPT, "negative_prompt": NEGATIVE, **defaults, **run}
    batch = len(run["prompt"]) if isinstance(run["prompt"], list) else 1
    size = run["height"] // 8, run["width"] // 8
    latents = normal(batch, 4, *size, dtype=torch.float64)
    same_pictures(pipelines[torch.float64], **run, latents=latents)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_seed_means_what_it_means_in_diffusers(pair, same_pictures, name: str):
    """In float32, latents and every step's noise are the same draws, and no draw is left over."""
    both = pair(Text2Image, scheduler=SCHEDULERS[name])
    run = {"num_inference_steps": 3, "guidance_scale": 7.5, "negative_prompt": [NEGATIVE] * 2}
    same_pictures(both, [PROMPT, "a cat"], **run, **SMALL)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str
)
def test_pixels_are_diffusers_bit_by_bit(pipeline, dtype: torch.dtype):
    """Values between, at and around the ties of rounding, and beyond both ends."""
    levels = torch.arange(-40, 552, dtype=torch.float64) / 2  # halves of a level, -20 to 275.5
    decoded = torch.stack([levels - 1e-6, levels, levels + 1e-6]) / 127.5 - 1
    decoded = decoded.reshape(1, 3, 16, 37).to(dtype)
    image = pipeline.to_image(decoded)
    pixels = pipeline.to_uint8(image)
    processor = diffusers.image_processor.VaeImageProcessor()
    assert torch.equal(image, processor.postprocess(decoded, "pt"))
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (1, 16, 37, 3))
    if dtype == torch.float64:  # diffusers would round to float32 before
        wanted = (255 * image).round().permute(0, 2, 3, 1)
        assert torch.equal(pixels.double(), wanted)
    else:
        (wanted,) = processor.postprocess(decoded, "pil")
        assert np.array_equal(pixels[0].numpy(), np.asarray(wanted))


def draw(pipeline: Text2Image, prompt: str | list[str] = PROMPT, **arguments) -> tuple:
    """Return a small picture of three steps, and the steps."""
    steps: list[Step] = []
    defaults = {"num_inference_steps": 3, **SMALL, "callback": steps.append}
    if "latents" not in arguments:
        defaults["generator"] = torch.Generator().manual_seed(0)
    return pipeline(prompt, **defaults | arguments), steps


def test_one_negative_prompt_serves_all(pipeline):
    """A text is the list of it; and a list of one prompt is the prompt."""
    prompts = [PROMPT, "a cat"]
    one, _ = draw(pipeline, prompts, negative_prompt=NEGATIVE)
    two, _ = draw(pipeline, prompts, negative_prompt=[NEGATIVE] * 2)
    assert torch.equal(one.image, two.image)
    assert not torch.equal(one.image[0], one.image[1])
    assert torch.equal(draw(pipeline, [PROMPT])[0].image, draw(pipeline, PROMPT)[0].image)


def test_the_picture_holds_what_it_was_made_of(pipeline):
    """Ids, encodings and latents are those of the parts, and of the first and the last step."""
    picture, steps = draw(pipeline, PROMPT, negative_prompt=NEGATIVE)
    for ids, embeds, text in (
        (picture.input_ids, picture.prompt_embeds, PROMPT),
        (picture.negative_input_ids, picture.negative_prompt_embeds, NEGATIVE),
    ):
        assert torch.equal(ids, pipeline.tokenizer(text))
        assert torch.equal(embeds, pipeline.text_encoder(ids)[0])
    assert torch.equal(picture.initial_latents, steps[0].model_input)
    assert torch.equal(picture.latents, steps[-1].latents)
    assert torch.equal(picture.decoded, pipeline.vae.decode(picture.latents))
    assert [step.timestep for step in steps] == pipeline.scheduler.timesteps(3).tolist()
    assert not picture.image.requires_grad


def test_guidance_is_off_at_one_and_below(pipeline):
    """Then the UNet sees one batch, nobody reads the negative prompt, and 0 and 1 are the same."""
    batches = []
    hook = pipeline.unet.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    off, steps = draw(pipeline, guidance_scale=1.0, negative_prompt="anything")
    same, _ = draw(pipeline, guidance_scale=0.0)
    on, guided = draw(pipeline, guidance_scale=1.5)
    hook.remove()
    assert batches == [1] * 8 + [2] * 4
    assert off.negative_input_ids is None
    assert off.negative_prompt_embeds is None
    assert torch.equal(off.image, same.image)
    assert not torch.equal(off.image, on.image)
    for step in steps:
        assert step.noise_pred_uncond is None
        assert step.noise_pred is step.noise_pred_text
    for step in guided:
        difference = step.noise_pred_text - step.noise_pred_uncond
        assert torch.equal(step.noise_pred, step.noise_pred_uncond + 1.5 * difference)


@pytest.mark.parametrize("name", ["ddpm", "ddim-eta1"])
def test_data_are_what_would_be_drawn(pipeline, name: str):
    """Latents and noise given as data are those drawn from a generator, in the loop's order."""
    pipeline.scheduler = SCHEDULERS[name]
    wanted, _ = draw(pipeline, [PROMPT] * 2)
    generator = torch.Generator().manual_seed(0)
    latents, *noise = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(4))
    noise = torch.stack(noise)
    copies = latents.clone(), noise.clone()
    got, _ = draw(pipeline, [PROMPT] * 2, latents=latents, noise=noise)
    assert torch.equal(got.image, wanted.image)
    assert torch.equal(latents, copies[0])
    assert torch.equal(noise, copies[1])
    other, _ = draw(pipeline, [PROMPT] * 2, latents=latents, noise=noise.flip(0))
    assert not torch.equal(other.image, wanted.image)


def test_the_default_generator_is_torchs(pipeline):
    """Without data and generator, `torch.manual_seed` decides."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        got, _ = draw(pipeline, generator=None)
    assert torch.equal(got.image, draw(pipeline)[0].image)


def test_unneeded_noise_is_not_read(pipeline):
    """PLMS adds none: not even NaN is seen."""
    noise = torch.full((4, 1, 4, 8, 8), torch.nan)
    assert torch.equal(draw(pipeline, noise=noise)[0].image, draw(pipeline)[0].image)


def test_latents_are_scaled_as_the_scheduler_says(pipeline):
    """They begin at its deviation, and the UNet reads what it makes of them."""

    class Scaled(sd1_impl.DDIMScheduler):
        def start(self, steps: int) -> Run:
            return replace(super().start(steps), init_noise_sigma=3.0)

        def scale_model_input(self, sample: Tensor, t: int, run: Run) -> Tensor:
            return sample / (t + len(run.timesteps))

    pipeline.scheduler = Scaled(sd1_impl.SD_V1_DDIM)
    latents = normal(1, 4, 8, 8)
    picture, steps = draw(pipeline, latents=latents)
    assert torch.equal(picture.initial_latents, 3 * latents)
    before = picture.initial_latents
    for step in steps:
        assert torch.equal(step.model_input, before / (step.timestep + 3))
        before = step.latents


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_seed_means_one_picture_in_every_dtype(pipelines, dtype: torch.dtype):
    """Draws are float32, whatever they become."""
    wanted, _ = draw(pipelines[torch.float32][0])
    got, steps = draw(synthetic_pipeline("tiny", dtype=dtype))
    assert torch.equal(got.initial_latents, wanted.initial_latents.to(dtype))
    assert {got.image.dtype, got.prompt_embeds.dtype, steps[-1].noise_pred.dtype} == {dtype}
    assert (got.image.float() - wanted.image).abs().mean() < 0.05


def test_parts_may_have_their_own_dtypes(pipelines, pipeline):
    """Text encoder and decoder in float64 around a float32 loop change rounding only."""
    wanted, _ = draw(pipeline)
    pipeline.text_encoder = pipelines[torch.float64][0].text_encoder
    pipeline.vae = pipelines[torch.float64][0].vae
    got, _ = draw(pipeline)
    assert {got.prompt_embeds.dtype, got.latents.dtype} == {torch.float32}
    assert torch.allclose(got.latents, wanted.latents, atol=1e-3)
    assert got.image.dtype == torch.float64
    assert torch.allclose(got.image, wanted.image.double(), atol=1e-3)


TERMS = {"encode": 2, "draw": 1, "initial_latents": 1, "predict_noise": 4, "guide": 4}
TERMS |= {"decode": 1, "to_image": 1, "to_uint8": 1, "encode_prompts": 1, "denoise": 1}
TERMS |= {"repeat_prompts": 1, "given_or_drawn": 1, "finish": 1}


@pytest.mark.parametrize("name", TERMS)
def test_every_term_can_be_replaced(pipeline, name: str):
    """An attribute of the instance takes a method's place, at every call."""
    calls, method = [], getattr(pipeline, name)
    setattr(pipeline, name, lambda *args, **kwargs: calls.append(name) or method(*args, **kwargs))
    draw(pipeline)
    assert len(calls) == TERMS[name]


BAD_INPUTS = {
    "height": ({"height": 60}, "height is 60, expected a multiple of 8"),
    "width": ({"width": 100}, "width is 100, expected a multiple of 8"),
    "zero": ({"height": 0}, "height is 0, expected a multiple of 8"),
    "nan": ({"guidance_scale": float("nan")}, "guidance_scale is nan, expected a finite number"),
    "no-prompt": ({"prompt": []}, "there is no prompt"),
    "negatives": ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts: expected"),
    "latents": ({"latents": torch.zeros(1, 4, 8, 9)}, r"\(1, 4, 8, 9\), expected \(1, 4, 8, 8\)"),
    "noise": ({"noise": torch.zeros(3, 1, 4, 8, 8)}, r"noise .*\(3, .*expected \(4, 1, 4, 8, 8\)"),
    "steps": ({"num_inference_steps": 1}, "num_inference_steps is 1, expected 2 or more"),
}


@pytest.mark.parametrize(("change", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_a_wrong_input_is_named(pipeline, change: dict, message: str):
    """Before anything is computed, in one line."""
    pipeline.encode = pytest.fail
    with pytest.raises(ValueError, match=message) as caught:
        draw(pipeline, **change)
    assert "\n" not in str(caught.value)


def test_a_prompt_has_to_be_a_text(pipeline):
    """A number in the list is refused by the tokenizer."""
    with pytest.raises(TypeError, match="text is int, expected str"):
        draw(pipeline, ["a", 1])


def test_parts_of_two_models_are_refused(pipeline):
    """The text encoder's width is what the UNet attends to; an inpainting UNet reads more."""
    with torch.device("meta"):
        other = CLIPTextEncoder(replace(sd1_impl.SD_V1_TEXT_ENCODER, num_layers=1))
        inpainting = sd1_impl.UNet(replace(pipeline.unet.config, in_channels=9))
    tokenizer, scheduler = CLIPTokenizer(), sd1_impl.PNDMScheduler(sd1_impl.SD_V1_PNDM)
    with pytest.raises(ValueError, match=r"hidden_size is 768, but .* cross_attention_dim is 64"):
        Text2Image(tokenizer, other, pipeline.unet, pipeline.vae, scheduler)
    with pytest.raises(ValueError, match=r"4 channels, but the UNet reads 9: .* inpainting"):
        Text2Image(tokenizer, pipeline.text_encoder, inpainting, pipeline.vae, scheduler)
