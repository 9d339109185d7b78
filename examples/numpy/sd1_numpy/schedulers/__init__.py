"""Schedulers: from noise to latents, step by step, one algorithm a file.

`base` is what all share; `shares` goes before ddpm, ddim and pndm, `sigmas` before the others.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sd1_numpy.layers import Array
from sd1_numpy.schedulers.base import Scheduler, UnsupportedError
from sd1_numpy.schedulers.ddim import DDIM
from sd1_numpy.schedulers.ddpm import DDPM
from sd1_numpy.schedulers.dpmpp_2m import DPMPP2M
from sd1_numpy.schedulers.euler import Euler
from sd1_numpy.schedulers.euler_ancestral import EulerAncestral
from sd1_numpy.schedulers.heun import Heun
from sd1_numpy.schedulers.lms import LMS
from sd1_numpy.schedulers.pndm import PNDM

SCHEDULERS: dict[str, type[Scheduler]] = {
    "ddpm": DDPM,
    "ddim": DDIM,
    "pndm": PNDM,
    "lms": LMS,
    "euler": Euler,
    "euler_ancestral": EulerAncestral,
    "heun": Heun,
    "dpmpp_2m": DPMPP2M,
}


def scheduler_of(name: str, config: Mapping[str, Any]) -> Scheduler:
    """Begin a run of the scheduler of that name.

    Raises:
        UnsupportedError: There is none, or a setting is not known.
        ValueError: There is no such run.
    """
    if name not in SCHEDULERS:
        raise UnsupportedError(f"there is no scheduler {name!r}")
    return SCHEDULERS[name](config)


def open_loop(
    scheduler: Scheduler, sample: Array, model_outputs: Array, noise: Array | None = None
) -> dict[str, Array]:
    """Run a scheduler on what a model is said to have said.

    Args:
        scheduler: The scheduler.
        sample: (B, 4, h, w), as noisy as the run begins.
        model_outputs: (N, B, 4, h, w).
        noise: Of each call, (N, B, 4, h, w), where some is added.

    Returns:
        `timesteps` (N,), int64 or float64; `model_inputs`, what the model is given, and `samples`,
        what comes of each call, (N, B, 4, h, w).
    """
    inputs, samples, x = [], [], sample
    for k, said in enumerate(model_outputs):
        inputs.append(scheduler.scale(k, x))
        x = scheduler.step(k, said, x, None if noise is None else noise[k])
        samples.append(x)
    return {
        "timesteps": np.array(scheduler.timesteps),
        "model_inputs": np.stack(inputs),
        "samples": np.stack(samples),
    }


__all__ = [
    "DDIM",
    "DDPM",
    "DPMPP2M",
    "LMS",
    "PNDM",
    "SCHEDULERS",
    "Euler",
    "EulerAncestral",
    "Heun",
    "Scheduler",
    "UnsupportedError",
    "open_loop",
    "scheduler_of",
]
