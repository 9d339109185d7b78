"""Quiet mutants: the project's own, fixed before the first of them was judged.

Each is one small wrong choice, often of one number: chosen to pass under tolerances of 1e-3 or
1e-4. Those of schedulers and pipeline are here, those of the networks in `quiet_networks`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from conformance.mutants import quiet_networks
from conformance.mutants.mutant import Change, Mutant, NotRun, Patch, wrapped
from sd1_impl.pipeline import Text2Image
from sd1_impl.schedulers import pndm
from sd1_impl.schedulers.ddim import DDIMScheduler
from sd1_impl.schedulers.ddpm import DDPMScheduler
from sd1_impl.schedulers.noise_schedule import NoiseSchedule

DDPM, DDIM, PNDM = "scheduler/ddpm", "scheduler/ddim", "scheduler/pndm"
PICTURE = "pipeline/txt2img"

Fun = Callable[..., Any]


def _configured(**changes: Callable[[float], float]) -> Change:
    """Return schedulers with other settings, each a function of the right one."""

    def make(plain: Fun) -> Fun:
        def init(self: Any, config: Any, **how: bool) -> None:
            values = {name: change(getattr(config, name)) for name, change in changes.items()}
            plain(self, replace(config, **values), **how)

        return init

    return wrapped(NoiseSchedule, "__init__", make)


def _afterwards(change: Callable[[Any], None]) -> Change:
    """Return schedulers that are changed when they have been made."""

    def make(plain: Fun) -> Fun:
        def init(self: Any, config: Any, **how: bool) -> None:
            plain(self, config, **how)
            change(self)

        return init

    return wrapped(NoiseSchedule, "__init__", make)


def _entry_500(schedule: Any) -> None:
    table = schedule.alphas_cumprod.copy()
    table[500] *= 1.0001
    schedule.alphas_cumprod = table


def _four_digits(schedule: Any) -> None:
    schedule.final_alpha_cumprod = round(schedule.final_alpha_cumprod, 4)


def _coefficient(patch: Patch) -> None:
    rows = pndm.COEFFICIENTS
    patch.setattr(pndm, "COEFFICIENTS", (*rows[:3], (2.2917, *rows[3][1:])))


def _louder_in_one_step(plain: Fun) -> Fun:
    return lambda self, t, prev_t: (
        plain(self, t, prev_t) * (1.0001 if t // 10 == 42 else 1)  # 421 of 50 steps, 427 of 7
    )


def _red_too_bright(plain: Fun) -> Fun:
    def to_image(self: Any, decoded: Tensor) -> Tensor:
        image = plain(self, decoded)
        image[:, 0] += 1e-4
        return image

    return to_image


def _blue_rounded_at_501(plain: Fun) -> Fun:
    def to_uint8(self: Any, image: Tensor) -> Tensor:
        pixels = plain(self, image)
        pixels[..., 2] = (image[:, 2].cpu().double() * 255 + 0.499).floor().to(torch.uint8)
        return pixels

    return to_uint8


def _last_time_too_early(plain: Fun) -> Fun:
    return lambda self, model_input, t, text: plain(self, model_input, t - (t == 1), text)


def _last_negative_place(plain: Fun) -> Fun:
    def encode(self: Any, prompts: list[str], negative: list[str] | None) -> Any:
        text = plain(self, prompts, negative)
        if text.negative_prompt_embeds is not None:
            text.negative_prompt_embeds[:, -1] = text.negative_prompt_embeds[:, -2]
        return text

    return encode


def _own(
    name: str, component: str, case: str, wrong: str, patch: Change, dtype: str = "float32"
) -> Mutant:
    return Mutant(
        id=f"own-{name}", component=component, cases=(case,), wrong=wrong, patch=patch,
        dtype=dtype,
    )  # fmt: skip


MUTANTS: tuple[Mutant, ...] = (
    *quiet_networks.MUTANTS,
    _own("ddim-entry-500", DDIM, "-/base", "One entry of alphas_cumprod is 0.01 % too large",
         _afterwards(_entry_500)),
    _own("pndm-beta-start", PNDM, "-/base", "The first beta is 0.0008501",
         _configured(beta_start=lambda beta: 0.0008501 if beta == 0.00085 else beta)),
    _own("ddim-final-alpha", DDIM, "-/base", "The final alpha has four digits",
         _afterwards(_four_digits)),
    # In float32 it is 1.9 times what the reference's own float32 tables are off by, and so lawful.
    _own("pndm-coefficient", PNDM, "-/steps7", "55/24 is written 2.2917", _coefficient, "float64"),
    _own("ddpm-variance", DDPM, "-/loud-noise", "The variance of one step is 0.01 % too large",
         wrapped(DDPMScheduler, "variance", _louder_in_one_step)),
    _own("ddpm-least-variance", DDPM, "-/loud-last", "The least variance is 1e-10",
         wrapped(DDPMScheduler, "variance", lambda plain: lambda self, t, prev_t: (
             max(plain(self, t, prev_t), 1e-10)))),
    _own("ddim-eta", DDIM, "-/eta1", "Eta is 0.1 % too large",
         wrapped(DDIMScheduler, "sigma", lambda plain: lambda self, t, prev_t: (
             1.001 * plain(self, t, prev_t)))),
    _own("ddim-clip-range", DDIM, "-/clip", "Clean samples are clipped at 0.9999",
         _configured(clip_sample_range=lambda bound: 0.9999 * bound)),
    _own("guidance-7.501", PICTURE, "tiny/base", "Guidance is 0.001 too strong",
         wrapped(Text2Image, "guide", lambda plain: lambda self, uncond, text, scale: (
             plain(self, uncond, text, scale + 0.001)))),
    _own("latents-louder", PICTURE, "tiny/base", "The first latents are 0.01 % too large",
         wrapped(Text2Image, "initial_latents", lambda plain: lambda self, noise, run: (
             1.0001 * plain(self, noise, run)))),
    _own("last-time-0", PICTURE, "tiny/base", "The UNet is told 0 at the last step",
         wrapped(Text2Image, "predict_noise", _last_time_too_early)),
    _own("negative-place-76", PICTURE, "tiny/base",
         "The last place of the negative prompt repeats the one before",
         wrapped(Text2Image, "encode_prompts", _last_negative_place)),
    _own("image-red", PICTURE, "tiny/base", "One colour is 0.0001 too bright",
         wrapped(Text2Image, "to_image", _red_too_bright)),
    _own("uint8-blue", PICTURE, "tiny/base", "One colour is rounded up from 0.501",
         wrapped(Text2Image, "to_uint8", _blue_rounded_at_501)),
)  # fmt: skip

NOT_RUN: tuple[NotRun, ...] = quiet_networks.NOT_RUN
