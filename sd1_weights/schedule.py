"""The noise schedule of SD v1, as single files hold it: written with them, checked when read.

The betas are the squares of even steps between the square roots of 0.00085 and 0.012, over 1,000
timesteps (``make_beta_schedule`` "linear", ``register_schedule``; ldm of CompVis).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sd1_weights.errors import CheckpointError
from sd1_weights.stored import Stored

TRAIN_STEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012

_COMPUTED = 1e-5
"""What programs lose that compute the tables in float32, relative to the largest entry."""
_ROUNDING = {"F64": 0.0, "F32": 2**-24, "F16": 2**-11, "BF16": 2**-8}
"""Of one entry, relative to itself."""


def schedule() -> dict[str, np.ndarray]:
    """Return the tables of a single file, float64 (1000,) each, by name."""
    betas = np.linspace(BETA_START**0.5, BETA_END**0.5, TRAIN_STEPS) ** 2
    alphas = 1 - betas
    cumprod = np.cumprod(alphas)
    before = np.append(1.0, cumprod[:-1])
    variance = betas * (1 - before) / (1 - cumprod)
    return {
        "betas": betas,
        "alphas_cumprod": cumprod,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(cumprod),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - cumprod),
        "log_one_minus_alphas_cumprod": np.log(1 - cumprod),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / cumprod),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / cumprod - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - cumprod),
        "posterior_mean_coef2": (1 - before) * np.sqrt(alphas) / (1 - cumprod),
    }


def check_schedule(tables: Mapping[str, Stored], file: str) -> None:
    """Refuse another noise schedule than SD v1's: its weights would need another sampler.

    Args:
        tables: Those that a file holds.
        file: What it is called in messages.

    Raises:
        CheckpointError: `betas` or `alphas_cumprod` differ.
    """
    own = schedule()
    for name in ("betas", "alphas_cumprod"):
        if name not in tables:
            continue
        table = tables[name]
        if not table.is_weight or table.shape != own[name].shape:
            raise CheckpointError(
                f"{file}: {name} is {table.dtype} of shape {table.shape}, expected a floating "
                f"dtype and {own[name].shape}"
            )
        allowed = (_COMPUTED + 2 * _ROUNDING[table.dtype]) * np.abs(own[name]).max()
        with np.errstate(invalid="ignore"):  # of a NaN
            off = np.abs(table.float32() - own[name])
        worst = int(np.argmax(off))  # of a NaN, that
        if not off[worst] <= allowed:
            raise CheckpointError(
                f"{file}: {name}[{worst}] is {table.float32()[worst]:.6g}, in Stable Diffusion v1 "
                f"it is {own[name][worst]:.6g}: the file is of a model with another noise schedule"
            )
