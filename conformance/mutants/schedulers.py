"""Mutants of the noise schedule and its timesteps, as DDPM, DDIM and PNDM have them."""

from __future__ import annotations

from typing import Any

import numpy as np

from conformance.adapters import sd1_impl_sampling as adapter
from conformance.mutants.mutant import Change, Mutant, NotRun, wrapped
from sd1_impl.schedulers.noise_schedule import NoiseSchedule
from sd1_impl.schedulers.pndm import PNDMScheduler


def configured(**changes: Any) -> Change:
    """Return what gives every scheduler that has such settings other ones than asked for."""

    def make(plain: Any) -> Any:
        def make_scheduler(algorithm: str, config: dict[str, Any]) -> Any:
            own = {name: value for name, value in changes.items() if name in config}
            return plain(algorithm, config | own)

        return make_scheduler

    return lambda patch: patch.wrap(adapter, "make_scheduler", make)


def _half_table(plain: Any) -> Any:
    def init(self: NoiseSchedule, config: Any, *, set_alpha_to_one: bool) -> None:
        plain(self, config, set_alpha_to_one=set_alpha_to_one)
        self.alphas_cumprod = self.alphas_cumprod.astype(np.float16).astype(np.float64)
        if not set_alpha_to_one:
            self.final_alpha_cumprod = float(self.alphas_cumprod[0])

    return init


def _range_with_a_stride(_plain: Any) -> Any:
    def timesteps(self: NoiseSchedule, count: int) -> Any:
        total, offset = self.config.num_train_timesteps, self.config.steps_offset
        return np.arange(offset, total, total // count, dtype=np.int64)[::-1].copy()

    return timesteps


def _linspace(_plain: Any) -> Any:
    def timesteps(self: NoiseSchedule, count: int) -> Any:
        last = self.config.num_train_timesteps - 1
        return np.linspace(0, last, count).round()[::-1].astype(np.int64)

    return timesteps


def _over_count_less_one(_plain: Any) -> Any:
    def timesteps(self: NoiseSchedule, count: int) -> Any:
        last = (count - 1) * (self.config.num_train_timesteps // count)
        stride = last / (count - 1)
        return (np.arange(count)[::-1] * stride).round().astype(np.int64) + self.config.steps_offset

    return timesteps


def _added(_plain: Any) -> Any:
    def timesteps(self: PNDMScheduler, count: int) -> Any:
        plain = NoiseSchedule.timesteps(self, count)
        return plain[:2] + plain[1:]

    return timesteps


def _second_once(plain: Any) -> Any:
    return lambda self, count: np.delete(plain(self, count), 1)


def _truncated(_plain: Any) -> Any:
    return lambda self, count: self.spaced(count).astype(np.int64)


def _whole_stride(plain: Any) -> Any:
    def spaced(self: NoiseSchedule, count: int) -> Any:
        if self.config.timestep_spacing != "trailing":
            return plain(self, count)
        total = self.config.num_train_timesteps
        return total - 1.0 - np.arange(count) * (total // count)

    return spaced


_DDPM, _DDIM, _PNDM = "scheduler/ddpm", "scheduler/ddim", "scheduler/pndm"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        id="sch-linear-betas",
        component=_DDPM,
        wrong="The betas themselves are spaced evenly, not their square roots",
        cases=("-/base", "-/steps7"),
        seen="diffusers#557, tinygrad#3681",
        evidence="R",
        size="catastrophic",
        patch=configured(beta_schedule="linear"),
    ),
    Mutant(
        id="sch-alphas-fp16",
        component=_DDIM,
        wrong="alphas_cumprod is held in half precision, as all else that the model holds",
        cases=("-/base",),
        seen="A1111#14071, tinygrad#5239 (88763eb)",
        evidence="R",
        size="visible",
        patch=wrapped(NoiseSchedule, "__init__", _half_table),
    ),
    Mutant(
        id="sch-steps-offset",
        component=_DDIM,
        wrong="Timesteps end at 0, not at 1",
        cases=("-/base", "-/steps7"),
        seen="diffusers#465, PR#479; diffusers-rs (7e7fbb4); hkproj ddpm.py",
        evidence="R",
        size="subtle",
        patch=configured(steps_offset=0),
    ),
    Mutant(
        id="sch-step-count-nondivisor",
        component=_DDIM,
        wrong="Timesteps are counted with a stride to the end of the table: eight for seven steps",
        cases=("-/steps7", "-/steps30"),
        seen="keras-cv#2303, diffusers#444, #466, #2076, #1912; divamgupta, tinygrad",
        evidence="R",
        size="visible",
        patch=wrapped(NoiseSchedule, "timesteps", _range_with_a_stride),
    ),
    Mutant(
        id="sch-spacing-mismatch",
        component=_DDPM,
        wrong="Timesteps are spread from the first to the last instead of beginning every stride",
        cases=("-/base", "-/steps7"),
        seen="apple#88 (e3db2ec), diffusers#3947, keras-cv#2303, diffusers-rs (7e7fbb4)",
        evidence="R",
        size="visible",
        patch=wrapped(NoiseSchedule, "timesteps", _linspace),
    ),
    Mutant(
        id="sch-pndm-concat-vs-add",
        component=_PNDM,
        wrong="The two parts of PLMS's timesteps are arrays by now, and are added, not joined",
        cases=("-/base", "-/steps7"),
        seen="diffusers#298, #299 (384fcac)",
        evidence="R",
        size="catastrophic",
        refuses=True,
        patch=wrapped(PNDMScheduler, "timesteps", _added),
    ),
    Mutant(
        id="sch-pndm-prk-steps",
        component=_PNDM,
        wrong="The run begins with Runge-Kutta steps, which SD v1 skips",
        cases=("-/base", "-/steps7"),
        seen="diffusers#9090, #298",
        evidence="R",
        size="visible",
        patch=configured(skip_prk_steps=False),
    ),
    Mutant(
        id="sch-linspace-one-step",
        component=_DDIM,
        wrong="The stride is divided by the number of steps less one, which is zero for one step",
        cases=("-/steps1",),
        seen="candle#1358, keras-cv#2373, stable-diffusion.cpp (34a118d)",
        evidence="R",
        size="catastrophic",
        refuses=True,
        patch=wrapped(NoiseSchedule, "timesteps", _over_count_less_one),
    ),
    Mutant(
        id="sch-linspace-truncated",
        component=_DDIM,
        wrong="Timesteps spread from the first to the last are cut to whole numbers, not rounded",
        cases=("-/linspace7", "-/linspace20"),
        evidence="I",
        patch=wrapped(NoiseSchedule, "timesteps", _truncated),
    ),
    Mutant(
        id="sch-trailing-whole-stride",
        component=_DDIM,
        wrong="Trailing timesteps are whole strides apart, and 1000 over 7 is no whole number",
        cases=("-/trailing7", "-/trailing30"),
        evidence="I",
        patch=wrapped(NoiseSchedule, "spaced", _whole_stride),
    ),
    Mutant(
        id="fix-pndm-second-timestep",
        component=_PNDM,
        wrong="PLMS's repeated second timestep is taken for a mistake and removed",
        cases=("-/base", "-/steps7"),
        seen="diffusers#9090",
        evidence="fix",
        size="visible",
        patch=wrapped(PNDMScheduler, "timesteps", _second_once),
    ),
)

NOT_RUN: tuple[NotRun, ...] = (
    NotRun(
        "sch-dup-timesteps-1000",
        "1000 evenly spaced timesteps of DPM-Solver++ coincide in the reference itself, which then "
        "divides by zero: the case is refused, and has no golden",
    ),
)
