"""Mutants of the steps of DDPM, DDIM and PNDM: coefficients, noise, the clean sample."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from conformance.mutants.mutant import Mutant, NotRun, Patch, wrapped
from conformance.mutants.schedulers import configured
from sd1_impl.schedulers import pndm
from sd1_impl.schedulers.ddim import DDIMScheduler
from sd1_impl.schedulers.ddpm import DDPMScheduler
from sd1_impl.schedulers.noise_schedule import NoiseSchedule, Run
from sd1_impl.schedulers.pndm import PNDMScheduler


def _ends_clean(_plain: Any) -> Any:
    def alpha_cumprod(self: NoiseSchedule, t: int) -> float:
        return float(self.alphas_cumprod[t]) if t >= 0 else 1.0

    return alpha_cumprod


def _one_further(plain: Any) -> Any:
    def transfer(self: PNDMScheduler, epsilon: Any, t: int, prev_t: int, sample: Any) -> Any:
        return plain(self, epsilon, t, prev_t + 1 if prev_t >= 0 else prev_t, sample)

    return transfer


def _without_eta(plain: Any) -> Any:
    def sigma(self: DDIMScheduler, t: int, prev_t: int) -> float:
        return float(plain(self, t, prev_t)) / (self.config.eta or 1.0)

    return sigma


def _variance_added(plain: Any) -> Any:
    """Go towards x_t by the root of 1 - alpha + sigma^2, where the paper has a minus."""

    def step(
        self: DDIMScheduler, output: Any, t: Any, sample: Any, run: Any, noise: Any = None
    ) -> Any:
        before = run.check(t) - run.stride
        left = 1 - self.alpha_cumprod(before)
        variance = (self.config.eta * self.sigma(run.check(t), before)) ** 2
        farther = math.sqrt(left + variance) - math.sqrt(left - variance)
        right = plain(self, output, t, sample, run, noise)
        return right + farther * self.predict_noise(output, run.check(t), sample)

    return step


def _own_schedule(plain: Any) -> Any:
    def step(
        self: DDIMScheduler, output: Any, _t: Any, sample: Any, run: Any, noise: Any = None
    ) -> Any:
        taken = vars(run).get("taken", 0)
        vars(run)["taken"] = taken + 1
        whole = self.start(self.config.num_train_timesteps // run.stride)
        return plain(self, output, whole.timesteps[taken], sample, whole, noise)

    return step


def _place_by_value(plain: Any) -> Any:
    def step(self: PNDMScheduler, output: Any, t: Any, sample: Any, run: Any) -> Any:
        stride, timesteps = run.stride, run.timesteps.tolist()
        place = timesteps.index(int(t))
        if run.calls > 1 and place + 1 < len(timesteps):
            run.stride = timesteps[place] - timesteps[place + 1]
        result = plain(self, output, t, sample, run)
        run.stride = stride
        return result

    return step


def _stride(_plain: Any) -> Any:
    return lambda self, t: t - self.stride


def _next_timestep(plain: Any) -> Any:
    """Let DDIM step to the run's next timestep, wherever it is."""

    def step(
        self: DDIMScheduler, output: Any, t: Any, sample: Any, run: Any, noise: Any = None
    ) -> Any:
        own = replace(run, stride=int(t) - run.following(int(t)))
        return plain(self, output, t, sample, own, noise)

    return step


def _output_is_noise(plain: Any) -> Any:
    def predict_noise(self: NoiseSchedule, output: Any, t: int, sample: Any) -> Any:
        asked = self.config.prediction_type
        return output if asked == "sample" else plain(self, output, t, sample)

    return predict_noise


def _noise_of_the_clipped(plain: Any) -> Any:
    """Derive the noise anew from the clipped clean sample, as OpenAI's DDIM does."""

    def predict_noise(self: Any, output: Any, t: int, sample: Any) -> Any:
        if not self.config.clip_sample:
            return plain(self, output, t, sample)
        bound, alpha_bar = self.config.clip_sample_range, self.alpha_cumprod(t)
        x_0 = self.predict_original(output, t, sample).clamp(-bound, bound)
        return (sample - math.sqrt(alpha_bar) * x_0) / math.sqrt(1 - alpha_bar)

    return predict_noise


def _root_of_a_deviation(plain: Any) -> Any:
    def variance(self: DDPMScheduler, t: int, prev_t: int) -> float:
        found = float(plain(self, t, prev_t))
        return math.sqrt(found) if self.config.variance_type == "fixed_small_log" else found

    return variance


def _oldest_first(patch: Patch) -> None:
    rows = pndm.COEFFICIENTS
    patch.setattr(pndm, "COEFFICIENTS", tuple(row[::-1] for row in rows))


def _equal_shares(patch: Patch) -> None:
    patch.setattr(pndm, "RUNGE_KUTTA", (1 / 4,) * 4)


_DDPM, _DDIM, _PNDM = "scheduler/ddpm", "scheduler/ddim", "scheduler/pndm"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        id="sch-final-alpha-one",
        component=_DDIM,
        wrong="The last step goes to a clean sample instead of the noise level of timestep 0",
        cases=("-/base", "-/steps1", "-/steps7"),
        seen="tinygrad (16cb429), divamgupta, keras-cv; diffusers#465, #6068, #7128",
        evidence="C",
        size="subtle",
        patch=wrapped(NoiseSchedule, "alpha_cumprod", _ends_clean),
    ),
    Mutant(
        id="sch-alpha-prev-index",
        component=_PNDM,
        wrong="The noise level that a step goes to is read one place too far in the table",
        cases=("-/base", "-/steps7"),
        seen="diffusers#465",
        evidence="R",
        size="visible",
        patch=wrapped(PNDMScheduler, "transfer", _one_further),
    ),
    Mutant(
        id="sch-prediction-type",
        component=_DDPM,
        wrong="The model's output is read as a velocity, and it is the noise",
        cases=("-/base", "-/steps7"),
        seen="diffusers-rs (8d51528, 7e7fbb4)",
        evidence="R",
        size="catastrophic",
        patch=configured(prediction_type="v_prediction"),
    ),
    Mutant(
        id="sch-prev-t-fixed-stride",
        component=_DDPM,
        wrong="Every step goes a fixed stride back, and these timesteps are not a stride apart",
        cases=("-/linspace7", "-/trailing7"),
        seen="diffusers#9384, #11347",
        evidence="R",
        size="visible",
        patch=wrapped(Run, "following", _stride),
    ),
    Mutant(
        id="sch-log-variance-root",
        component=_DDPM,
        wrong="What is made of the variance's logarithm is the deviation already; its root is used",
        cases=("-/small-log",),
        evidence="I",
        size="visible",
        patch=wrapped(DDPMScheduler, "variance", _root_of_a_deviation),
    ),
    Mutant(
        id="sch-clip-range-baked",
        component=_DDPM,
        wrong="Clean samples are clipped to -1..1, whatever range is asked for",
        cases=("-/clip0.5",),
        evidence="I",
        size="dormant",
        dormant=True,
        patch=configured(clip_sample_range=1.0),
    ),
    Mutant(
        id="sch-ddim-clip-sample",
        component=_DDIM,
        wrong="The predicted latents are clipped to -1..1 as if they were pixels",
        cases=("-/base", "-/steps7"),
        seen="diffusers#1545, sdnext#2424, diffusers-rs#47",
        evidence="R",
        size="visible",
        patch=configured(clip_sample=True),
    ),
    Mutant(
        id="sch-clip-noise-derived",
        component=_DDIM,
        wrong="The noise is derived anew from the clipped clean sample",
        cases=("-/clip", "-/clip0.5"),
        evidence="I",
        size="dormant",
        dormant=True,
        patch=wrapped(DDIMScheduler, "predict_noise", _noise_of_the_clipped),
    ),
    Mutant(
        id="sch-ddim-sample-prediction",
        component=_DDIM,
        wrong="The output of a model that predicts clean samples is taken for the noise as well",
        cases=("-/x0", "-/x0-trailing"),
        seen="diffusers#2094, diffusers-rs#57",
        evidence="R",
        size="dormant",
        dormant=True,
        patch=wrapped(NoiseSchedule, "predict_noise", _output_is_noise),
    ),
    Mutant(
        id="sch-ddim-eta-noise",
        component=_DDIM,
        wrong="A step that adds noise adds as much of it as at eta 1",
        cases=("-/eta0.5",),
        seen="diffusers#594, #742, #1189",
        evidence="R",
        size="visible",
        patch=wrapped(DDIMScheduler, "sigma", _without_eta),
    ),
    Mutant(
        id="own-ddim-variance-sign",
        component=_DDIM,
        wrong="The variance of the noise is added to that of the direction, not taken from it",
        seen="a newcomer's port in NumPy",
        cases=("-/eta1", "-/eta0.5"),
        size="visible",
        patch=wrapped(DDIMScheduler, "step", _variance_added),
    ),
    Mutant(
        id="sch-eta-ignored",
        component=_DDIM,
        wrong="Eta is accepted and not used: no step adds noise",
        cases=("-/eta1", "-/eta0.5"),
        evidence="I",
        size="visible",
        patch=configured(eta=0.0),
    ),
    Mutant(
        id="sch-ddim-ignores-sigmas",
        component=_DDIM,
        wrong="A run that begins late is stepped through the timesteps of one that does not",
        cases=("-/late",),
        seen="stable-diffusion.cpp#1410 (7023fc4)",
        evidence="R",
        size="visible",
        patch=wrapped(DDIMScheduler, "step", _own_schedule),
    ),
    Mutant(
        id="sch-dup-timesteps-index",
        component=_PNDM,
        wrong="The next timestep is looked up by value, and PLMS has its second timestep twice",
        cases=("-/base", "-/steps7"),
        seen="diffusers#5687, #5746, #4347, #6085, #7386",
        evidence="R",
        size="visible",
        patch=wrapped(PNDMScheduler, "step", _place_by_value),
    ),
    Mutant(
        id="sch-pndm-oldest-first",
        component=_PNDM,
        wrong="PLMS's coefficients meet the predictions in reverse: the oldest first",
        cases=("-/base", "-/steps7"),
        evidence="I",
        size="visible",
        patch=_oldest_first,
    ),
    Mutant(
        id="sch-pndm-equal-shares",
        component=_PNDM,
        wrong="A Runge-Kutta step takes the plain mean of its four predictions",
        cases=("-/warm-up7", "-/warm-up4"),
        evidence="I",
        size="dormant",
        dormant=True,
        patch=_equal_shares,
    ),
    Mutant(
        id="fix-ddim-next-timestep",
        component=_DDIM,
        wrong="A step goes to the run's next timestep, where DDIM goes a fixed stride",
        cases=("-/linspace7", "-/trailing7"),
        seen="diffusers#9384",
        evidence="fix",
        patch=wrapped(DDIMScheduler, "step", _next_timestep),
    ),
    Mutant(
        id="fix-ddim-final-alpha-one",
        component=_DDIM,
        wrong="set_alpha_to_one is switched on, because DDIM's paper ends at a clean sample",
        cases=("-/base", "-/steps7"),
        seen="diffusers#465, #6068, #7128",
        evidence="fix",
        size="subtle",
        patch=configured(set_alpha_to_one=True),
    ),
)

NOT_RUN: tuple[NotRun, ...] = (
    NotRun("sch-ddpm-learned-var-log", "sd1_impl never offers learned variances: SD v1 has none"),
    NotRun("sch-threshold-dtype", "sd1_impl never offers dynamic thresholding"),
)
