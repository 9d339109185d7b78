"""Mutants of image to image: the picture, its latents, and where the run begins."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from conformance.mutants.mutant import Change, Mutant, NotRun, Patch, wrapped
from conformance.sampling import IMAGE_TO_IMAGE
from sd1_impl import image_to_image
from sd1_impl.image_to_image import Image2Image
from sd1_impl.schedulers.dpmpp_2m import DPMSolverMultistepScheduler
from sd1_impl.schedulers.euler import EulerDiscreteScheduler
from sd1_impl.schedulers.heun import HeunDiscreteScheduler
from sd1_impl.schedulers.lms import LMSDiscreteScheduler
from sd1_impl.schedulers.noise_schedule import NoiseSchedule
from sd1_impl.schedulers.sigma_schedule import SigmaSchedule

# The picture


def _normalized(change: Callable[[Any], Any]) -> Change:
    """Return what makes a picture in -1..1 by `change`, given the right one."""
    return wrapped(
        Image2Image, "normalize", lambda plain: lambda self, image: change(plain(self, image))
    )


def _mean_for_sample(plain: Any) -> Any:
    return lambda self, pixels, noise: plain(self, pixels, 0 * noise)


def _not_scaled(plain: Any) -> Any:
    def encode_image(self: Image2Image, *args: Any) -> Any:
        return plain(self, *args) / self.vae.config.scaling_factor

    return encode_image


_MULTIPLE = 32


def _floored_sides(plain: Any) -> Any:
    """Cut the picture, and all that has its size, to sides that are multiples of 32."""

    def call(self: Image2Image, prompt: Any, *, image: Any, **given: Any) -> Any:
        factor = self.vae.config.downsampling_factor
        height, width = (side // _MULTIPLE * _MULTIPLE for side in image.shape[1:3])
        for name in ("image_noise", "latents", "noise"):
            if given.get(name) is not None:
                given[name] = given[name][..., : height // factor, : width // factor]
        return plain(self, prompt, image=image[:, :height, :width], **given)

    return call


def _each_several_times(_plain: Any) -> Any:
    """Repeat every picture for the whole batch, and keep as many as there are to be."""

    def to_batch(_self: Image2Image, tensor: Any, pictures: int) -> Any:
        return tensor.repeat_interleave(pictures, dim=0)[:pictures]

    return to_batch


# Where the run begins


def _rounded_up(_plain: Any) -> Any:
    return lambda steps, strength: math.ceil(steps * strength)


def _step_before(_plain: Any) -> Any:
    def noisy_latents(self: Image2Image, image_latents: Any, noise: Any, run: Any) -> Any:
        last = self.scheduler.config.num_train_timesteps - 1
        before = min(int(run.timesteps[0]) + run.stride, last)
        return self.scheduler.add_noise(image_latents, noise.to(image_latents), before, run)

    return noisy_latents


def _one_call_a_step(_plain: Any) -> Any:
    def start(self: HeunDiscreteScheduler, count: int, *, begin_index: int = 0) -> Any:
        return SigmaSchedule.start(self, count, begin_index=begin_index // 2)

    return start


def _as_ddim(plain: Any) -> Any:
    """Mix picture and noise as DDIM does at this timestep, whatever the sampler."""

    def noisy_latents(self: Image2Image, image_latents: Any, noise: Any, run: Any) -> Any:
        if not isinstance(self.scheduler, EulerDiscreteScheduler):
            return plain(self, image_latents, noise, run)
        alpha_bar = self.scheduler.alpha_cumprod(int(run.timesteps[0]))
        noise = noise.to(image_latents)
        return math.sqrt(alpha_bar) * image_latents + math.sqrt(1 - alpha_bar) * noise

    return noisy_latents


def _of_variance_one(plain: Any) -> Any:
    def levels(self: LMSDiscreteScheduler, t: Any, run: Any) -> Any:
        signal, sigma = plain(self, t, run)
        variance = signal**2 + sigma**2
        return signal / variance**0.5, sigma / variance**0.5

    return levels


def _of_growing_variance(_plain: Any) -> Any:
    return SigmaSchedule.levels


def _levels_not_reshaped(_plain: Any) -> Any:
    """Add noise at a timestep for each picture; their levels are not given the latents' axes."""

    def add_noise(self: NoiseSchedule, original: Any, noise: Any, t: Any, run: Any = None) -> Any:
        each = torch.as_tensor(t).repeat(len(original)).numpy()
        signal, sigma = (torch.tensor(level).to(original) for level in self.levels(each, run))
        return signal * original + sigma * noise

    return add_noise


def _noise_at_full_strength(patch: Patch) -> None:
    """Begin with noise alone at full strength, where image to image still mixes the picture in."""

    def remember(plain: Any) -> Any:
        def start_run(self: Image2Image, count: int, strength: float) -> Any:
            vars(self)["full"] = strength == 1
            return plain(self, count, strength)

        return start_run

    def begin(plain: Any) -> Any:
        def noisy_latents(self: Image2Image, image_latents: Any, noise: Any, run: Any) -> Any:
            noisy = plain(self, image_latents, noise, run)
            return noise.to(noisy) * run.init_noise_sigma if vars(self)["full"] else noisy

        return noisy_latents

    patch.wrap(Image2Image, "start_run", remember)
    patch.wrap(Image2Image, "noisy_latents", begin)


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        id="pipe-image-range",
        component=IMAGE_TO_IMAGE,
        wrong="The encoder is given the picture in 0..1, not in -1..1",
        cases=("tiny/base", "tiny/nonsquare"),
        seen="mlcommons/training#721; diffusers#4676",
        evidence="R",
        size="visible",
        patch=_normalized(lambda image: (image + 1) / 2),
    ),
    Mutant(
        id="pipe-image-bgr",
        component=IMAGE_TO_IMAGE,
        wrong="The picture's blue is taken for its red, and the reverse",
        cases=("tiny/base", "tiny/nonsquare"),
        evidence="I",
        size="visible",
        patch=_normalized(lambda image: image.flip(1)),
    ),
    Mutant(
        id="pipe-resize-multiple",
        component=IMAGE_TO_IMAGE,
        wrong="Sides of the picture are floored to multiples of 32, not of 8",
        cases=("tiny/oddsize",),
        seen="diffusers#1571, #2350; InvokeAI#210; A1111#10942, #11512",
        evidence="R",
        size="visible",
        patch=wrapped(Image2Image, "__call__", _floored_sides),
    ),
    Mutant(
        id="pipe-image-mean",
        component=IMAGE_TO_IMAGE,
        wrong="The picture's latents are the mean of their distribution, not a sample of it",
        cases=("tiny/base", "tiny/shared"),
        seen="candle#3841, mindone#531, ComfyUI#8705",
        evidence="R",
        patch=wrapped(Image2Image, "encode_pixels", _mean_for_sample),
    ),
    Mutant(
        id="pipe-image-latents-unscaled",
        component=IMAGE_TO_IMAGE,
        wrong="The picture's latents are not multiplied by 0.18215",
        cases=("tiny/base", "tiny/shared"),
        evidence="I",
        size="catastrophic",
        patch=wrapped(Image2Image, "encode_image", _not_scaled),
    ),
    Mutant(
        id="pipe-init-image-batch",
        component=IMAGE_TO_IMAGE,
        wrong="Pictures are repeated for the whole batch each: all prompts are given the first",
        cases=("tiny/base", "tiny/batch3"),
        seen="diffusers#793",
        evidence="R",
        size="visible",
        patch=wrapped(Image2Image, "to_batch", _each_several_times),
    ),
    Mutant(
        id="pipe-strength-rounded-up",
        component=IMAGE_TO_IMAGE,
        wrong="The share of the steps that the strength leaves is rounded up",
        cases=("tiny/strength0.1",),
        evidence="I",
        patch=wrapped(image_to_image, "count_steps", _rounded_up),
        refuses=True,
    ),
    Mutant(
        id="pipe-img2img-t-plus-one",
        component=IMAGE_TO_IMAGE,
        wrong="The picture is given the noise of the timestep before the run's first",
        cases=("tiny/base", "tiny/ddim"),
        seen="CompVis/stable-diffusion#533, InvokeAI#1946, sdkit#4",
        evidence="R",
        size="visible",
        patch=wrapped(Image2Image, "noisy_latents", _step_before),
    ),
    Mutant(
        id="pipe-img2img-order-stride",
        component=IMAGE_TO_IMAGE,
        wrong="Heun's run leaves out as many calls as steps are to be, and a step has two calls",
        cases=("tiny/heun",),
        seen="diffusers#3116, #3128",
        evidence="R",
        size="catastrophic",
        refuses=True,
        patch=wrapped(HeunDiscreteScheduler, "start", _one_call_a_step),
    ),
    Mutant(
        id="pipe-img2img-kdiff-noise",
        component=IMAGE_TO_IMAGE,
        wrong="The picture is noised as for DDIM, and the sampler is Euler",
        cases=("tiny/euler",),
        seen="InvokeAI#889, imaginAIry#277",
        evidence="R",
        size="visible",
        patch=wrapped(Image2Image, "noisy_latents", _as_ddim),
    ),
    Mutant(
        id="sch-lms-add-noise",
        component=IMAGE_TO_IMAGE,
        wrong="LMS adds noise for samples of variance 1, and its own are not divided to that",
        cases=("tiny/lms",),
        seen="diffusers#253 (da7d4cf)",
        evidence="R",
        size="visible",
        patch=wrapped(LMSDiscreteScheduler, "levels", _of_variance_one),
    ),
    Mutant(
        id="sch-dpm-add-noise",
        component=IMAGE_TO_IMAGE,
        wrong="DPM-Solver++ adds noise as samplers do whose variance grows, and its own is 1",
        cases=("tiny/dpmpp-2m",),
        seen="diffusers#5158",
        evidence="R",
        size="visible",
        patch=wrapped(DPMSolverMultistepScheduler, "levels", _of_growing_variance),
    ),
    Mutant(
        id="sch-add-noise-noflatten",
        component=IMAGE_TO_IMAGE,
        wrong="Noise levels of a batch are not given the axes of the latents",
        cases=("tiny/base", "tiny/batch3"),
        seen="diffusers#648 (3304538)",
        evidence="R",
        size="catastrophic",
        refuses=True,
        patch=wrapped(NoiseSchedule, "add_noise", _levels_not_reshaped),
    ),
    Mutant(
        id="fix-img2img-full-strength",
        component=IMAGE_TO_IMAGE,
        wrong="At full strength the run begins with noise alone, as inpainting does",
        cases=("tiny/strength1",),
        evidence="fix",
        patch=_noise_at_full_strength,
    ),
)

NOT_RUN: tuple[NotRun, ...] = ()
