"""Mutants of the text-to-image pipeline: guidance, sizes, latents, pixels; and of its runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from conformance.mutants.mutant import Change, Mutant, NotRun, wrapped
from conformance.sampling import TEXT_TO_IMAGE
from sd1_impl.pipeline import Text2Image

_term = partial(wrapped, Text2Image)
"""Return what replaces one term of the pipeline by `make(the right one)`."""


def _bytes(convert: Callable[[Any], Any]) -> Change:
    """Return what makes bytes by `convert`, given (B, H, W, 3) pixels in 0..255."""

    def make(_plain: Any) -> Any:
        def to_uint8(_self: Text2Image, image: Any) -> Any:
            pixels = image.cpu().to(torch.promote_types(image.dtype, torch.float32)) * 255
            return convert(pixels.permute(0, 2, 3, 1).contiguous()).to(torch.uint8)

        return to_uint8

    return _term("to_uint8", make)


def _halves_exchanged(plain: Any) -> Any:
    def predict_noise(self: Text2Image, model_input: Any, t: Any, text: Any) -> Any:
        uncond, conditional = plain(self, model_input, t, text)
        return (uncond, conditional) if uncond is None else (conditional, uncond)

    return predict_noise


def _scale_less_one(_plain: Any) -> Any:
    return lambda _self, uncond, conditional, scale: uncond + (scale - 1) * (conditional - uncond)


def _before_the_last_step(plain: Any) -> Any:
    def denoise(
        self: Text2Image, latents: Any, *args: Any, callback: Any = None, **settings: Any
    ) -> Any:
        trail = [latents]

        def remember(step: Any) -> None:
            trail.append(step.latents)
            if callback is not None:
                callback(step)

        plain(self, latents, *args, callback=remember, **settings)
        return trail[-2]

    return denoise


def _square(plain: Any) -> Any:
    def initial_latents(self: Text2Image, noise: Any, run: Any) -> Any:
        side = min(noise.shape[-2:])
        return plain(self, noise[..., :side, :side], run)

    return initial_latents


def _unclamped(_plain: Any) -> Any:
    return lambda _self, decoded: decoded / 2 + 0.5


def _read_as_bytes(pixels: Any) -> Any:
    """Read the memory of 32-bit integers as bytes, as many as there should be."""
    whole = pixels.round().to(torch.int32)
    return whole.view(torch.uint8).flatten()[: whole.numel()].reshape(whole.shape)


def _rows_as_long_as_high(pixels: Any) -> Any:
    """Read each row of a picture where it would begin if its width were its height."""
    height, width = pixels.shape[1:3]
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    places = (rows * height + columns) % (height * width)
    return pixels.round().flatten(1, 2)[:, places]


def _device_gamma(pixels: Any) -> Any:
    """Take pixels from sRGB's curve to a screen's plain power of 2.2."""
    value = pixels / 255
    linear = torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return (255 * linear ** (1 / 2.2)).round()


def _unscaled(_plain: Any) -> Any:
    return lambda self, noise, _run: noise.to(next(self.unet.parameters()))


def _still_small(plain: Any) -> Any:
    return lambda self, latents: plain(self, latents * self.vae.config.scaling_factor)


def _all_prompts_again(_plain: Any) -> Any:
    """Repeat the batch of prompts as a whole, so that a prompt's pictures do not lie together."""

    def repeat_prompts(_self: Text2Image, text: Any, count: int) -> Any:
        embeds, negative = text.prompt_embeds, text.negative_prompt_embeds
        return replace(
            text,
            prompt_embeds=embeds.repeat(count, 1, 1),
            negative_prompt_embeds=None if negative is None else negative.repeat(count, 1, 1),
        )

    return repeat_prompts


def _noise_of_the_next_step(plain: Any) -> Any:
    def denoise(self: Text2Image, *args: Any, noise: Any = None, **settings: Any) -> Any:
        other = None if noise is None else noise.roll(-1, 0)
        return plain(self, *args, noise=other, **settings)

    return denoise


def _constant_text(module: Any) -> None:
    """Let the text encoder return zeros."""
    norm = module["text_encoder"].text_model.final_layer_norm
    norm.register_forward_hook(lambda _module, _args, output: torch.zeros_like(output))


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        id="pipe-cfg-swap",
        component=TEXT_TO_IMAGE,
        wrong="The prediction for the prompt is taken for the negative prompt's, and the reverse",
        cases=("tiny/base", "tiny/ddim"),
        seen="diffusers#8947",
        evidence="R",
        size="catastrophic",
        patch=_term("predict_noise", _halves_exchanged),
    ),
    Mutant(
        id="pipe-cfg-formula",
        component=TEXT_TO_IMAGE,
        wrong="Guidance goes one distance of the two predictions less far than asked",
        cases=("tiny/base", "tiny/guidance1.5"),
        evidence="I",
        size="visible",
        patch=_term("guide", _scale_less_one),
    ),
    Mutant(
        id="pipe-no-clamp",
        component=TEXT_TO_IMAGE,
        wrong="What the decoder leaves beyond 0..1 is not clamped",
        cases=("tiny/base", "tiny/ddim"),
        seen="candle#1041 (716883e)",
        evidence="R",
        size="visible",
        patch=_term("to_image", _unclamped),
    ),
    Mutant(
        id="pipe-uint8-cast-on-device",
        component=TEXT_TO_IMAGE,
        wrong="The backend's cast leaves 32-bit integers, whose memory is then read as bytes",
        cases=("tiny/base", "tiny/ddim"),
        seen="tinygrad#2032",
        evidence="R",
        size="catastrophic",
        patch=_bytes(_read_as_bytes),
    ),
    Mutant(
        id="pipe-image-wh-swap",
        component=TEXT_TO_IMAGE,
        wrong="A picture's rows are read as if they were as long as it is high",
        cases=("tiny/nonsquare", "tiny/oddsize"),
        seen="apple#168, #239; diffusers#2558",
        evidence="R",
        size="visible",
        patch=_bytes(_rows_as_long_as_high),
    ),
    Mutant(
        id="pipe-size-ignored",
        component=TEXT_TO_IMAGE,
        wrong="The picture is square, of the model's own size, whatever was asked for",
        cases=("tiny/nonsquare", "tiny/oddsize"),
        seen="diffusers#848, #1289",
        evidence="R",
        size="visible",
        patch=_term("initial_latents", _square),
    ),
    Mutant(
        id="pipe-colour-space",
        component=TEXT_TO_IMAGE,
        wrong="Pixels are converted from sRGB to the screen's gamma of 2.2",
        cases=("tiny/base", "tiny/ddim"),
        seen="apple (5c62fab)",
        evidence="R",
        size="subtle",
        patch=_bytes(_device_gamma),
    ),
    Mutant(
        id="vae-decode-noisy-latent",
        component=TEXT_TO_IMAGE,
        wrong="The latents before the last step are decoded, not those after it",
        cases=("tiny/base", "tiny/ddim", "tiny/ddim2"),
        seen="apple#230 (b392a0a)",
        evidence="R",
        size="visible",
        patch=_term("denoise", _before_the_last_step),
    ),
    Mutant(
        id="sch-lms-init-scale",
        component=TEXT_TO_IMAGE,
        wrong="The first latents are not multiplied by the first sigma",
        cases=("tiny/lms", "tiny/leading"),
        seen="diffusers (b50a9ae), #719, #3532",
        evidence="R",
        size="catastrophic",
        patch=_term("initial_latents", _unscaled),
    ),
    Mutant(
        id="pipe-latent-scale",
        component=TEXT_TO_IMAGE,
        wrong="The last latents are not divided by 0.18215 before they are decoded",
        cases=("tiny/base", "tiny/ddim"),
        seen="tinygrad (1043fa0), diffusers#5166, apple (ce8ee78)",
        evidence="R",
        size="catastrophic",
        patch=_term("decode", _still_small),
    ),
    Mutant(
        id="pipe-images-tiled",
        component=TEXT_TO_IMAGE,
        wrong="Several pictures of a prompt: the batch of prompts is repeated, not each prompt",
        cases=("tiny/each2",),
        evidence="I",
        size="visible",
        patch=_term("repeat_prompts", _all_prompts_again),
    ),
    Mutant(
        id="pipe-noise-next-step",
        component=TEXT_TO_IMAGE,
        wrong="Every step adds the noise of the one to come",
        cases=("tiny/ddpm", "tiny/euler-ancestral"),
        evidence="I",
        size="none",
        patch=_term("denoise", _noise_of_the_next_step),
    ),
    Mutant(
        id="rt-trt-solid-colour",
        component=TEXT_TO_IMAGE,
        wrong="The optimised text encoder returns zeros for every prompt",
        cases=("tiny/base", "tiny/ddim"),
        seen="NVIDIA/TensorRT#3039, #3785",
        evidence="R",
        size="catastrophic",
        module=_constant_text,
    ),
    Mutant(
        id="fix-uint8-truncate",
        component=TEXT_TO_IMAGE,
        wrong="Pixels are truncated, as CompVis' scripts do, where the contract rounds",
        cases=("tiny/base", "tiny/ddim"),
        seen="CompVis scripts/txt2img.py",
        evidence="fix",
        size="subtle",
        patch=_bytes(lambda pixels: pixels),
    ),
)

_NOISE = "noise is data here: no case lets a port draw it"

NOT_RUN: tuple[NotRun, ...] = (
    NotRun("pipe-guidance-rescale-std", "sd1_impl never offers guidance rescale"),
    NotRun("pipe-seed-width", _NOISE),
    NotRun("pipe-rng-device", _NOISE),
    NotRun("pipe-seed-not-threaded", _NOISE),
    NotRun(
        "rt-sdpa-65536",
        "SD v1's UNet passes no mask, and more than 65,536 tokens of self-attention fit no case",
    ),
    NotRun("rt-rng-sm-count", f"{_NOISE}, and the bug is inside the CUDA generator"),
    NotRun(
        "rt-inductor-nan",
        "the bug is inside one version of a compiler and shows on one generation of GPUs: there "
        "is no wrong choice of a port to make",
    ),
)
