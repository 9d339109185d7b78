"""Mutants of the grids of sigmas, and of the timesteps that go with them.

Each is wrong in one scheduler, although others may share what is wrong: its cases are to say so.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from conformance.mutants.mutant import Mutant, NotRun, Patch, wrapped
from conformance.mutants.schedulers import configured
from sd1_impl.schedulers import sigma_schedule
from sd1_impl.schedulers.dpmpp_2m import DPMSolverMultistepScheduler
from sd1_impl.schedulers.euler import EulerDiscreteScheduler
from sd1_impl.schedulers.lms import LMSDiscreteScheduler
from sd1_impl.schedulers.sigma_schedule import SigmaSchedule


def _offset_everywhere(plain: Any) -> Any:
    def spaced(self: SigmaSchedule, count: int) -> Any:
        leading = self.config.timestep_spacing == "leading"
        return plain(self, count) + (0 if leading else self.config.steps_offset)

    return spaced


def _whole_timesteps_for_sigmas(plain: Any) -> Any:
    return lambda self, timesteps: plain(self, np.floor(timesteps))


def _told_whole_timesteps(plain: Any) -> Any:
    def grid(self: SigmaSchedule, timesteps: Any) -> Any:
        told, sigmas = plain(self, timesteps)
        return np.floor(told), sigmas

    return grid


def _not_reversed(plain: Any) -> Any:
    def grid(self: SigmaSchedule, timesteps: Any) -> Any:
        told, sigmas = plain(self, timesteps)
        return told, np.append(sigmas[-2::-1], sigmas[-1])

    return grid


def _baked_range(patch: Patch) -> None:
    right = sigma_schedule.karras_sigmas
    patch.setattr(sigma_schedule, "karras_sigmas", lambda _, __, count: right(10.0, 0.1, count))


def _looked_up_on_the_line(_plain: Any) -> Any:
    def timestep_of(self: SigmaSchedule, sigmas: Any) -> Any:
        return np.interp(sigmas, self.training_sigmas, np.arange(len(self.betas)))

    return timestep_of


def _range_of_the_timesteps(plain: Any) -> Any:
    """Let Karras' sigmas end at those of the evenly spaced timesteps that they replace."""

    def grid(self: DPMSolverMultistepScheduler, timesteps: Any) -> Any:
        if not self.config.use_karras_sigmas:
            return plain(self, timesteps)
        count, last = len(timesteps), self.config.num_train_timesteps - 1
        largest, smallest = self.sigma_of(np.linspace(0, last, count + 1)[[-1, 1]]).tolist()
        sigmas = sigma_schedule.karras_sigmas(largest, smallest, count)
        told = self.timestep_of(sigmas).round().astype(np.int64)
        return told, np.append(sigmas, self.final_sigma)

    return grid


def _largest_sigma(_plain: Any) -> Any:
    return lambda _self, sigma_max: sigma_max


def _steeper(patch: Patch) -> None:
    patch.setattr(sigma_schedule, "RHO", 7.02)


_LMS, _EULER = "scheduler/lms", "scheduler/euler"
_HEUN, _DPM = "scheduler/heun", "scheduler/dpmpp_2m"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        id="sch-lms-sigma-order",
        component=_LMS,
        wrong="Sigmas are in the order of the training, the smallest first",
        cases=("-/base", "-/steps7"),
        seen="diffusers#664 (765506c)",
        evidence="R",
        size="catastrophic",
        patch=wrapped(LMSDiscreteScheduler, "grid", _not_reversed),
    ),
    Mutant(
        id="sch-karras-hardcoded-range",
        component=_EULER,
        wrong="Karras' sigmas go from 10 to 0.1, whatever the model was trained on",
        cases=("-/karras20", "-/karras7"),
        seen="A1111 shared_options.py; stable-diffusion.cpp#1138",
        evidence="R",
        size="visible",
        patch=_baked_range,
    ),
    Mutant(
        id="sch-sigma-whole-timesteps",
        component=_EULER,
        wrong="Sigmas are those of the timesteps with their fractions cut off",
        cases=("-/base", "-/steps7"),
        seen="diffusers#664 (765506c)",
        evidence="R",
        patch=wrapped(EulerDiscreteScheduler, "sigma_of", _whole_timesteps_for_sigmas),
    ),
    Mutant(
        id="sch-timesteps-cut",
        component=_EULER,
        wrong="The model is told timesteps without their fractions",
        cases=("-/base", "-/karras7"),
        evidence="I",
        patch=wrapped(EulerDiscreteScheduler, "grid", _told_whole_timesteps),
    ),
    Mutant(
        id="sch-offset-everywhere",
        component=_EULER,
        wrong="The offset is added in every spacing, not in leading alone",
        cases=("-/trailing7", "-/base"),
        evidence="I",
        patch=wrapped(EulerDiscreteScheduler, "spaced", _offset_everywhere),
    ),
    Mutant(
        id="sch-init-sigma-leading",
        component=_EULER,
        wrong="A run of leading spacing begins with the largest sigma alone, x_0 left out",
        cases=("-/leading7", "-/leading20"),
        evidence="I",
        patch=wrapped(EulerDiscreteScheduler, "initial_sigma", _largest_sigma),
    ),
    Mutant(
        id="sch-karras-linear-lookup",
        component=_EULER,
        wrong="The timestep of a sigma is looked up between two on the line, not by the logarithm",
        cases=("-/karras20", "-/karras50"),
        evidence="I",
        patch=wrapped(EulerDiscreteScheduler, "timestep_of", _looked_up_on_the_line),
    ),
    Mutant(
        id="own-karras-rho",
        component=_HEUN,
        wrong="Karras' exponent is 7.02",
        cases=("-/karras7",),
        patch=_steeper,
    ),
    Mutant(
        id="sch-dpm-final-sigma",
        component=_DPM,
        wrong="The last step ends at the smallest sigma, not at the clean sample",
        cases=("-/base", "-/steps7"),
        seen="diffusers#6477 (ac61eef), #5689",
        evidence="R",
        size="visible",
        patch=configured(final_sigmas_type="sigma_min"),
    ),
    Mutant(
        id="fix-dpm-karras-range",
        component=_DPM,
        wrong="Karras' sigmas go from the first to the last of the spacing, as in the others",
        cases=("-/karras7", "-/karras20"),
        evidence="fix",
        patch=wrapped(DPMSolverMultistepScheduler, "grid", _range_of_the_timesteps),
    ),
)

NOT_RUN: tuple[NotRun, ...] = ()
