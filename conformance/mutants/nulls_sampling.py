"""Null mutants of the samplers in sigmas, and of the pipelines that begin with a picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from conformance.mutants.mutant import Change, Mutant, NotRun, replaced, wrapped
from conformance.sampling import IMAGE_TO_IMAGE, INPAINT, SIGMA_FAMILY, TEXT_TO_IMAGE
from sd1_impl.image_to_image import Image2Image
from sd1_impl.inpainting import Inpaint
from sd1_impl.pipeline import Text2Image
from sd1_impl.schedulers import SCHEDULERS, dpmpp_2m, lms
from sd1_impl.schedulers.euler import EulerDiscreteScheduler
from sd1_impl.schedulers.euler_ancestral import EulerAncestralDiscreteScheduler
from sd1_impl.schedulers.heun import HeunDiscreteScheduler
from sd1_impl.schedulers.sigma_schedule import SigmaRun, SigmaSchedule

_GRID = ("-/base", "-/steps7", "-/karras7", "-/late", "-/velocity", "-/leading7", "-/steps1")
_CASES = {
    "scheduler/lms": _GRID,
    "scheduler/euler": (*_GRID, "-/steps999", "-/sigma-min7"),
    "scheduler/euler_ancestral": tuple(case for case in _GRID if "karras" not in case),
    "scheduler/heun": (*_GRID, "-/steps999", "-/clip"),
    "scheduler/dpmpp_2m": (*_GRID, "-/steps999", "-/second-order-final"),
    TEXT_TO_IMAGE: ("tiny/euler", "tiny/lms", "tiny/leading", "tiny/each2"),
    IMAGE_TO_IMAGE: ("tiny/base", "tiny/ddpm", "tiny/heun", "tiny/dpmpp-2m", "tiny/batch3"),
    INPAINT: ("tiny/base", "tiny/euler", "tiny/ddpm", "tiny-inpaint/base", "tiny-inpaint/lms"),
}

Fun = Callable[..., Any]


def _null(name: str, component: str, way: str, patch: Change) -> Mutant:
    return Mutant(
        id=f"null-{name}", component=component, wrong=f"Nothing: {way}", cases=_CASES[component],
        evidence="null", size="none", patch=patch,
    )  # fmt: skip


# Tables


def _rounded_grid(plain: Fun) -> Fun:
    """Round the grid to float32, as most ports have it."""

    def grid(self: Any, timesteps: Any) -> Any:
        told, sigmas = plain(self, timesteps)
        return told, sigmas.astype(np.float32).astype(np.float64)

    return grid


def _sigmas_by_logarithms(plain: Fun) -> Fun:
    """Compute sigmas by way of the logarithm of the signal-to-noise ratio."""

    def init(self: SigmaSchedule, *args: Any, **how: Any) -> None:
        plain(self, *args, **how)
        log_signal = np.cumsum(np.log1p(-self.betas))
        self.training_sigmas = np.exp((np.log(-np.expm1(log_signal)) - log_signal) / 2)

    return init


def _symbols_in_float32(sigma: float) -> tuple[float, float, float]:
    """Return alpha, sigma and lambda; the last is a difference of logarithms, all in float32."""
    level = np.float32(sigma)
    alpha = 1 / np.sqrt(level**2 + 1)
    sigma_t = level * alpha
    with np.errstate(divide="ignore"):  # of the clean sample, whose lambda is infinite
        return float(alpha), float(sigma_t), float(np.log(alpha) - np.log(sigma_t))


# Steps


def _along_the_noise(plain: Fun) -> Fun:
    """Step along the predicted noise, which is the slope, without the clean sample."""

    def solve(self: Any, output: Tensor, x: Tensor, i: int, run: Any, noise: Any) -> Tensor:
        if self.config.prediction_type != "epsilon":
            moved: Tensor = plain(self, output, x, i, run, noise)
            return moved
        return x + float(run.sigmas[i + 1] - run.sigmas[i]) * output

    return solve


def _to_the_clean_sample(self: Any, output: Tensor, x: Tensor, i: int, run: Any, _: Any) -> Tensor:
    """Step as a mean of sample and clean sample, weighted by the ratio of the sigmas."""
    sigma, sigma_next = run.sigmas[i : i + 2].tolist()
    kept = sigma_next / sigma
    return kept * x + (1 - kept) * self.denoised(output, x, sigma)


def _integrated(nodes: list[float], end: float) -> list[float]:
    """Integrate Lagrange's polynomials by their coefficients, and round the areas to float32."""
    shifted = [node - nodes[0] for node in nodes]
    areas = []
    for k, node in enumerate(shifted):
        others = [other for j, other in enumerate(shifted) if j != k]
        factors = (Polynomial([-other, 1]) / (node - other) for other in others)
        basis = math.prod(factors, start=Polynomial([1]))
        areas.append(float(np.float32(basis.integ()(end - nodes[0]))))
    return areas


def _ancestral(self: Any, output: Tensor, x: Tensor, i: int, run: Any, noise: Tensor) -> Tensor:
    """Split the next sigma as k-diffusion does: first what goes up, by squares."""
    sigma, sigma_next = run.sigmas[i : i + 2].tolist()
    up = math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2)
    down = math.sqrt(sigma_next**2 - up**2)
    kept = down / sigma
    return kept * x + (1 - kept) * self.denoised(output, x, sigma) + up * noise.to(x.dtype)


def _in_two_halves(plain: Fun) -> Fun:
    """Correct the tried sample by half the difference of the slopes."""

    def solve(self: Any, output: Tensor, x: Tensor, i: int, run: Any, noise: Any) -> Tensor:
        if run.x is None or self.config.clip_sample:
            moved: Tensor = plain(self, output, x, i, run, noise)
            return moved
        sigma, sigma_next = run.sigmas[i - 1 : i + 1].tolist()
        d = (x - self.denoised(output, x, sigma_next)) / sigma_next
        moved = x + (sigma_next - sigma) / 2 * (d - run.d)
        run.x = run.d = None
        return moved

    return solve


# Pipelines


def _picture_by_picture(self: Text2Image, noise: Tensor, run: Any) -> Tensor:
    like = next(self.unet.parameters())
    return torch.stack([latents.to(like) * run.init_noise_sigma for latents in noise])


def _by_place(self: SigmaRun, _t: Any) -> float:
    """Look the noise level up by how far the run is, not by its timestep."""
    return float(self.sigmas[self.begin_index + self.calls])


def _from_the_middle(self: Image2Image, image: Tensor) -> Tensor:
    like = next(self.vae.parameters())
    return ((image.permute(0, 3, 1, 2).to(like) - 127.5) / 127.5).contiguous()


def _chosen(_self: Inpaint, latents: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask > 0, latents, known)


def _moved(_self: Inpaint, latents: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    return known + mask * (latents - known)


def _nearest(plain: Fun) -> Fun:
    """Scale the mask with the framework's nearest neighbour."""

    def latent_mask(self: Inpaint, redrawn: Tensor) -> Tensor:
        like: Tensor = plain(self, redrawn)
        return torch.nn.functional.interpolate(redrawn.to(like), like.shape[-2:], mode="nearest")

    return latent_mask


_DPM = "scheduler/dpmpp_2m"

MUTANTS: tuple[Mutant, ...] = (
    *(_null(f"{name}-float32-grid", f"scheduler/{name}", "sigmas are rounded to float32 once",
            wrapped(SCHEDULERS[name][1], "grid", _rounded_grid))
      for name in SIGMA_FAMILY),
    _null("euler-sigmas-by-logarithms", "scheduler/euler", "sigmas as exponentials of logarithms",
          wrapped(SigmaSchedule, "__init__", _sigmas_by_logarithms)),
    _null("euler-along-the-noise", "scheduler/euler", "the predicted noise is the slope",
          wrapped(EulerDiscreteScheduler, "solve", _along_the_noise)),
    _null("euler-to-the-clean-sample", "scheduler/euler", "a mean of sample and clean sample",
          replaced(EulerDiscreteScheduler, "solve", _to_the_clean_sample)),
    _null("lms-integrated", "scheduler/lms", "polynomials are integrated by their coefficients",
          replaced(lms, "lms_coefficients", _integrated)),
    _null("ancestral-by-squares", "scheduler/euler_ancestral", "what goes up first, by squares",
          replaced(EulerAncestralDiscreteScheduler, "solve", _ancestral)),
    _null("heun-corrected", "scheduler/heun", "the tried sample is corrected by the second slope",
          wrapped(HeunDiscreteScheduler, "solve", _in_two_halves)),
    _null("dpm-lambdas-by-logarithms", _DPM, "lambda is a difference of logarithms in float32",
          replaced(dpmpp_2m, "_symbols", _symbols_in_float32)),
    _null("latents-one-by-one", TEXT_TO_IMAGE, "first latents are scaled picture by picture",
          replaced(Text2Image, "initial_latents", _picture_by_picture)),
    _null("image-from-the-middle", IMAGE_TO_IMAGE, "pixels less 127.5 are divided by 127.5",
          replaced(Image2Image, "normalize", _from_the_middle)),
    _null("noise-by-place", IMAGE_TO_IMAGE, "noise levels are looked up by place, not by timestep",
          replaced(SigmaRun, "sigma_at", _by_place)),
    _null("inpaint-chosen", INPAINT, "what is known is chosen, not weighted",
          replaced(Inpaint, "blend", _chosen)),
    _null("inpaint-moved", INPAINT, "what is known is moved by the masked difference",
          replaced(Inpaint, "blend", _moved)),
    _null("inpaint-mask-nearest", INPAINT, "the mask is scaled by nearest neighbours",
          wrapped(Inpaint, "latent_mask", _nearest)),
)  # fmt: skip

NOT_RUN: tuple[NotRun, ...] = ()
