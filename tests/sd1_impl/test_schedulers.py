"""The schedulers against diffusers' and against published figures, and what their papers promise.

Open loop: model outputs and noise are random data. diffusers computes its tables in float32; in
float64 it is lent ours, which are themselves compared with its own.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from sd1_impl import (
    SD_V1_DDIM,
    SD_V1_DDPM,
    SD_V1_PNDM,
    DDIMScheduler,
    DDPMScheduler,
    PNDMScheduler,
)
from sd1_impl.config import SchedulerConfig
from sd1_impl.schedulers import NoiseSchedule, Run

diffusers = pytest.importorskip("diffusers")

PIXELS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "steps_offset": 0}
DDPM = replace(SD_V1_DDPM, **PIXELS, clip_sample=True)  # as in diffusers' own tests
DDIM = replace(SD_V1_DDIM, **PIXELS, clip_sample=True, set_alpha_to_one=True)
PNDM = replace(SD_V1_PNDM, **PIXELS)
VELOCITY = {"prediction_type": "v_prediction"}

SD_V1 = {"ddpm": SD_V1_DDPM, "ddim": SD_V1_DDIM, "pndm": SD_V1_PNDM}
VARIANTS = {
    "ddpm-pixels": DDPM,
    "ddpm-large": replace(SD_V1_DDPM, variance_type="fixed_large"),
    "ddpm-v": replace(DDPM, **VELOCITY),
    "ddim-pixels": DDIM,
    "ddim-eta0.5": replace(SD_V1_DDIM, eta=0.5),
    "ddim-eta1": replace(SD_V1_DDIM, eta=1.0),
    "ddim-eta1-pixels": replace(DDIM, eta=1.0),
    "ddim-one": replace(SD_V1_DDIM, set_alpha_to_one=True),
    "ddim-v": replace(SD_V1_DDIM, **VELOCITY),
    "pndm-pixels": PNDM,
    "pndm-one": replace(SD_V1_PNDM, set_alpha_to_one=True),
    "pndm-v": replace(SD_V1_PNDM, **VELOCITY),
}
ALL = SD_V1 | VARIANTS
STEPS = [1, 2, 3, 7, 20, 50, 999]
ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-5}  # float32: mostly that of diffusers' tables


@cache
def ours(case: str) -> DDPMScheduler | DDIMScheduler | PNDMScheduler:
    """Return our scheduler; one object serves the whole file."""
    kind = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler, "pndm": PNDMScheduler}
    return kind[case.split("-")[0]](ALL[case])


def reference(case: str, dtype: torch.dtype = torch.float32):
    """Return diffusers' scheduler of this case; in float64 with our tables in its place."""
    config = dict(vars(ALL[case]))
    for name in ("eta", "min_variance"):  # an argument of its step; written into its code
        config.pop(name, None)
    kind, *_ = case.split("-")
    if kind == "pndm":
        config["skip_prk_steps"] = True
    theirs = getattr(diffusers, f"{kind.upper()}Scheduler")(**config)
    if dtype == torch.float64:
        theirs.alphas_cumprod = torch.from_numpy(ours(case).alphas_cumprod.copy())
        theirs.final_alpha_cumprod = torch.tensor(ours(case).final_alpha_cumprod, dtype=dtype)
        theirs.one = torch.tensor(1.0, dtype=dtype)
    return theirs


def random(seed: int, dtype: torch.dtype, shape: tuple = (2, 4, 3, 5)) -> Tensor:
    """Return normal data, another for each seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Return the relative L2 distance."""
    return float((got - wanted).norm() / wanted.norm())
