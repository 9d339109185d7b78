"""Mutants of the steps of LMS, Euler, Euler-ancestral, Heun and DPM-Solver++."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from conformance.mutants.mutant import Mutant, NotRun, Patch, wrapped
from sd1_impl.schedulers import dpmpp_2m, lms
from sd1_impl.schedulers.dpmpp_2m import DPMSolverMultistepScheduler
from sd1_impl.schedulers.euler import EulerDiscreteScheduler
from sd1_impl.schedulers.euler_ancestral import EulerAncestralDiscreteScheduler
from sd1_impl.schedulers.heun import HeunDiscreteScheduler
from sd1_impl.schedulers.lms import LMSDiscreteScheduler
from sd1_impl.schedulers.pndm import COEFFICIENTS as EVENLY_SPACED
from sd1_impl.schedulers.sigma_schedule import SigmaRun, SigmaSchedule

# What the model is told, and what its output means


def _unscaled(_plain: Any) -> Any:
    return lambda _self, sample, _t, _run=None: sample


def _scaled_as_at_the_begin(plain: Any) -> Any:
    """Scale what Heun's second call reads by the sigma at which its step began."""

    def scale_model_input(self: HeunDiscreteScheduler, sample: Any, t: Any, run: Any = None) -> Any:
        if run.x is None:
            return plain(self, sample, t, run)
        return sample / math.sqrt(run.sigmas[run.place(t) - 1] ** 2 + 1)

    return scale_model_input


def _velocity_of_the_unscaled(plain: Any) -> Any:
    """Take x for the scaled sample, whose velocity the model's output is."""

    def denoised(self: SigmaSchedule, output: Any, x: Any, sigma: float) -> Any:
        if self.config.prediction_type != "v_prediction":
            return plain(self, output, x, sigma)
        return (x - sigma * output) / math.sqrt(sigma**2 + 1)

    return denoised


def _second_match(_plain: Any) -> Any:
    """Look the step up by its timestep; of several with the same, take the second."""

    def place(self: SigmaRun, t: Any) -> int:
        matches = np.flatnonzero(self.timesteps == t)
        return self.begin_index + int(matches[:2][-1])

    return place


# Steps


def _evenly_spaced(patch: Patch) -> None:
    """Give LMS the coefficients of evenly spaced sigmas, which PLMS has."""

    def coefficients(nodes: list[float], end: float) -> list[float]:
        return [(end - nodes[0]) * share for share in EVENLY_SPACED[len(nodes) - 1]]

    patch.setattr(lms, "lms_coefficients", coefficients)


def _order_of_the_slopes(_plain: Any) -> Any:
    """Let the order rise with the slopes that there are, not with the place in the grid."""

    def solve(self: Any, output: Any, x: Any, i: int, run: Any, _noise: Any) -> Any:
        sigma = float(run.sigmas[i])
        d = (x - self.denoised(output, x, sigma)) / sigma
        run.slopes = [d, *run.slopes[: lms.ORDER - 1]]
        nodes = run.sigmas[i + 1 - len(run.slopes) : i + 1][::-1].tolist()
        coefficients = lms.lms_coefficients(nodes, float(run.sigmas[i + 1]))
        return x + sum(c * slope for c, slope in zip(coefficients, run.slopes, strict=True))

    return solve


def _down_for_up(_plain: Any) -> Any:
    """Go down to the deviation that is to be added, and add that which was to be gone down to."""

    def solve(self: Any, output: Any, x: Any, i: int, run: Any, noise: Any) -> Any:
        sigma, sigma_next = run.sigmas[i : i + 2].tolist()
        up, down = sigma_next**2 / sigma, sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
        d = (x - self.denoised(output, x, sigma)) / sigma
        return x + (down - sigma) * d + up * noise.to(x.dtype)

    return solve


def _one_noise_for_all(plain: Any) -> Any:
    def solve(self: Any, output: Any, x: Any, i: int, run: Any, noise: Any) -> Any:
        return plain(self, output, x, i, run, noise[:1].expand_as(noise))

    return solve


def _second_slope_alone(plain: Any) -> Any:
    def solve(self: Any, output: Any, x: Any, i: int, run: Any, noise: Any) -> Any:
        first_half = run.x is None
        along_the_mean = plain(self, output, x, i, run, noise)
        return along_the_mean if first_half else 2 * along_the_mean - x  # x lies along the first

    return solve


def _from_the_tried_sample(plain: Any) -> Any:
    def solve(self: Any, output: Any, x: Any, i: int, run: Any, noise: Any) -> Any:
        moved = 0 if run.x is None else x - run.x
        return plain(self, output, x, i, run, noise) + moved

    return solve


def _not_quite_the_mean(plain: Any) -> Any:
    def solve(self: Any, output: Any, x: Any, i: int, run: Any, noise: Any) -> Any:
        if run.x is not None:
            run.d = 0.9999 * run.d
        return plain(self, output, x, i, run, noise)

    return solve


def _weighed(weight: Callable[[Any, int], float]) -> Callable[[Any], Any]:
    """Weigh the difference of two predictions by so many times what the paper has."""

    def wrap(plain: Any) -> Any:
        def solve(self: Any, output: Any, x: Any, i: int, run: Any, noise: Any) -> Any:
            if run.x_0 is not None and not self.is_first_order(i, len(run.sigmas) - 1):
                x_0 = self.predict(output, x, float(run.sigmas[i]))
                run.x_0 = x_0 - weight(run, i) * (x_0 - run.x_0)
            return plain(self, output, x, i, run, noise)

        return solve

    return wrap


def _inverted_ratio(run: Any, i: int) -> float:
    """Return r^2: r / 2 stands where the paper has 1 / (2 r)."""
    before, step = np.diff(-np.log(run.sigmas[i - 1 : i + 2])).tolist()
    return float((before / step) ** 2)


def _sixteen_are_few(patch: Patch) -> None:
    patch.setattr(dpmpp_2m, "FEW_STEPS", dpmpp_2m.FEW_STEPS + 1)


def _minus_lost(patch: Patch) -> None:
    patch.wrap(math, "expm1", lambda plain: lambda x: -plain(x))


_LMS, _EULER, _ANCESTRAL = "scheduler/lms", "scheduler/euler", "scheduler/euler_ancestral"
_HEUN, _DPM = "scheduler/heun", "scheduler/dpmpp_2m"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        id="sch-lms-evenly-spaced",
        component=_LMS,
        wrong="Coefficients are those of evenly spaced sigmas, as PLMS has them",
        cases=("-/steps7", "-/base", "-/karras7"),
        evidence="I",
        size="visible",
        patch=_evenly_spaced,
    ),
    Mutant(
        id="fix-lms-late-order",
        component=_LMS,
        wrong="A run that begins late begins with the first order, as one from the start does",
        cases=("-/late", "-/karras-late"),
        evidence="fix",
        patch=wrapped(LMSDiscreteScheduler, "solve", _order_of_the_slopes),
    ),
    Mutant(
        id="sch-scale-model-input-missing",
        component=_EULER,
        wrong="The model is given the sample itself, not divided to variance 1",
        cases=("-/base", "-/steps7"),
        seen="diffusers#719, #1331, #9084; diffusers-rs#32",
        evidence="R",
        size="catastrophic",
        patch=wrapped(EulerDiscreteScheduler, "scale_model_input", _unscaled),
    ),
    Mutant(
        id="sch-velocity-unscaled",
        component=_EULER,
        wrong="A velocity is read as that of the sample itself, not of the scaled one",
        cases=("-/velocity", "-/karras-velocity"),
        evidence="I",
        size="dormant",
        dormant=True,
        patch=wrapped(EulerDiscreteScheduler, "denoised", _velocity_of_the_unscaled),
    ),
    Mutant(
        id="sch-ancestral-down-up",
        component=_ANCESTRAL,
        wrong="How far to go down and how much noise to add are exchanged",
        cases=("-/base", "-/steps7"),
        evidence="I",
        size="visible",
        patch=wrapped(EulerAncestralDiscreteScheduler, "solve", _down_for_up),
    ),
    Mutant(
        id="sch-ancestral-noise-shared",
        component=_ANCESTRAL,
        wrong="All samples of a batch are given the noise of the first",
        cases=("-/base", "-/steps7"),
        evidence="I",
        size="visible",
        patch=wrapped(EulerAncestralDiscreteScheduler, "solve", _one_noise_for_all),
    ),
    Mutant(
        id="sch-heun-wrong-sigma",
        component=_HEUN,
        wrong="What the second call reads is scaled by the sigma at which its step began",
        cases=("-/base", "-/steps7"),
        seen="diffusers#1512; the bug of stable-diffusion.cpp#1435 (2bcff67), in another sampler",
        evidence="R",
        size="visible",
        patch=wrapped(HeunDiscreteScheduler, "scale_model_input", _scaled_as_at_the_begin),
    ),
    Mutant(
        id="sch-heun-second-alone",
        component=_HEUN,
        wrong="A step is taken along the slope at its end, not along the mean of both ends",
        cases=("-/base", "-/steps7"),
        evidence="I",
        size="visible",
        patch=wrapped(HeunDiscreteScheduler, "solve", _second_slope_alone),
    ),
    Mutant(
        id="sch-heun-tried-sample",
        component=_HEUN,
        wrong="A step is taken from where it was tried to, not from where it began",
        cases=("-/base", "-/steps7"),
        evidence="I",
        size="catastrophic",
        patch=wrapped(HeunDiscreteScheduler, "solve", _from_the_tried_sample),
    ),
    Mutant(
        id="own-heun-mean",
        component=_HEUN,
        wrong="The first of two slopes is 0.01 % too small",
        cases=("-/base",),
        patch=wrapped(HeunDiscreteScheduler, "solve", _not_quite_the_mean),
    ),
    Mutant(
        id="sch-dpm-lower-order-final",
        component=_DPM,
        wrong="The last step is of second order too, and its end has no logarithm",
        cases=("-/base", "-/sigma-min7"),
        seen="diffusers#9007, #6953, #5541, #3413",
        evidence="R",
        size="catastrophic",
        patch=wrapped(
            DPMSolverMultistepScheduler, "is_first_order", lambda _: lambda *_args: False
        ),
    ),
    Mutant(
        id="sch-dpm-minus-lost",
        component=_DPM,
        wrong="The prediction is subtracted: exp(-h) - 1 is negative, and its minus is lost",
        cases=("-/base", "-/steps7"),
        evidence="I",
        size="catastrophic",
        patch=_minus_lost,
    ),
    Mutant(
        id="sch-dpm-ratio-inverted",
        component=_DPM,
        wrong="The ratio of two steps is inverted: r / 2 where the paper has 1 / (2 r)",
        cases=("-/base", "-/karras7"),
        evidence="I",
        patch=wrapped(DPMSolverMultistepScheduler, "solve", _weighed(_inverted_ratio)),
    ),
    Mutant(
        id="own-dpm-correction-sign",
        component=_DPM,
        wrong="The difference of two predictions is subtracted: the correction has the wrong sign",
        seen="a newcomer's port in NumPy",
        cases=("-/base", "-/karras7"),
        patch=wrapped(DPMSolverMultistepScheduler, "solve", _weighed(lambda *_: -1.0)),
    ),
    Mutant(
        id="sch-dpm-fifteen-steps",
        component=_DPM,
        wrong="Fifteen steps count as few: the last is of first order",
        cases=("-/sigma-min15",),
        evidence="I",
        size="dormant",
        dormant=True,
        patch=_sixteen_are_few,
    ),
    Mutant(
        id="sch-dup-timesteps-karras",
        component=_DPM,
        wrong="A step is looked up by its timestep; of several with the same the second is taken",
        cases=("-/karras50",),
        seen="diffusers#5687, #5746, #4347, #6085, #7386",
        evidence="R",
        size="visible",
        patch=wrapped(dpmpp_2m.DPMPP2MRun, "place", _second_match),
    ),
)

NOT_RUN: tuple[NotRun, ...] = (
    NotRun("sch-dpm-2s-wrong-sigma", "sd1_impl never offers DPM 2S; see `sch-heun-wrong-sigma`"),
)
