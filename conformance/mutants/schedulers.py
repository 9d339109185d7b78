"""Mutants of the schedulers: noise schedule, timesteps, DDPM's, DDIM's and PLMS's steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from conformance.adapters import sd1_impl_sampling as adapter
from conformance.mutants.mutant import Mutant, NotRun, Patch
from sd1_impl.schedulers.ddim import DDIMScheduler
from sd1_impl.schedulers.noise_schedule import NoiseSchedule
from sd1_impl.schedulers.pndm import PNDMScheduler

Change = Callable[[Patch], None]


def method(owner: type, name: str, make: Callable[[Any], Any]) -> Change:
    """Return what replaces a method by `make(the right one)`."""
    return lambda patch: patch.wrap(owner, name, make)


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


def _ends_clean(_plain: Any) -> Any:
    def alpha_cumprod(self: NoiseSchedule, t: int) -> float:
        return float(self.alphas_cumprod[t]) if t >= 0 else 1.0

    return alpha_cumprod


def _one_further(plain: Any) -> Any:
    def transfer(self: PNDMScheduler, epsilon: Any, t: int, prev_t: int, sample: Any) -> Any:
        return plain(self, epsilon, t, prev_t + 1 if prev_t >= 0 else prev_t, sample)

    return transfer


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


def _without_eta(plain: Any) -> Any:
    def sigma(self: DDIMScheduler, t: int, prev_t: int) -> float:
        return float(plain(self, t, prev_t)) / (self.config.eta or 1.0)

    return sigma


def _own_schedule(plain: Any) -> Any:
    def step(
        self: DDIMScheduler, output: Any, _t: Any, sample: Any, run: Any, noise: Any = None
    ) -> Any:
        taken = vars(run).get("taken", 0)
        vars(run)["taken"] = taken + 1
        whole = self.start(self.config.num_train_timesteps // run.stride)
        return plain(self, output, whole.timesteps[taken], sample, whole, noise)

    return step


def _added(_plain: Any) -> Any:
    def timesteps(self: PNDMScheduler, count: int) -> Any:
        plain = NoiseSchedule.timesteps(self, count)
        return plain[:2] + plain[1:]

    return timesteps


def _second_once(plain: Any) -> Any:
    return lambda self, count: np.delete(plain(self, count), 1)


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


def _runge_kutta(patch: Patch) -> None:
    """Begin with three steps of four predictions each, as PNDM's paper and its defaults do."""
    plms = PNDMScheduler.step

    def timesteps(self: PNDMScheduler, count: int) -> Any:
        ends = NoiseSchedule.timesteps(self, count)
        middles = ends[1:4] + self.config.num_train_timesteps // count // 2
        both = np.array([ends[0], *np.stack([middles, ends[1:4]], axis=1).ravel()])
        return np.concatenate([both.repeat(2)[1:-1], ends[3:]])

    def step(self: PNDMScheduler, output: Any, t: Any, sample: Any, run: Any) -> Any:
        if run.calls >= 12:
            return plms(self, output, t, sample, run)
        run.last_t = run.check(t)
        stage = run.calls % 4
        if stage == 0:
            run.outputs, run.first_sample = [output, *run.outputs], sample
            vars(run)["slopes"] = []
        slopes = vars(run)["slopes"]
        slopes.append(output)
        if stage == 3:
            output = (slopes[0] + 2 * slopes[1] + 2 * slopes[2] + slopes[3]) / 6
        begin = int(run.timesteps[run.calls - stage])
        prev_t = run.last_t - (run.stride // 2 if stage % 2 == 0 else 0)
        run.calls += 1
        epsilon = self.predict_noise(output, begin, run.first_sample)
        return self.transfer(epsilon, begin, prev_t, run.first_sample)

    patch.setattr(PNDMScheduler, "timesteps", timesteps)
    patch.setattr(PNDMScheduler, "step", step)


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
        patch=method(NoiseSchedule, "__init__", _half_table),
    ),
    Mutant(
        id="sch-final-alpha-one",
        component=_DDIM,
        wrong="The last step goes to a clean sample instead of the noise level of timestep 0",
        cases=("-/base", "-/steps1", "-/steps7"),
        seen="tinygrad (16cb429), divamgupta, keras-cv; diffusers#465, #6068, #7128",
        evidence="C",
        size="subtle",
        patch=method(NoiseSchedule, "alpha_cumprod", _ends_clean),
    ),
    Mutant(
        id="sch-alpha-prev-index",
        component=_PNDM,
        wrong="The noise level that a step goes to is read one place too far in the table",
        cases=("-/base", "-/steps7"),
        seen="diffusers#465",
        evidence="R",
        size="visible",
        patch=method(PNDMScheduler, "transfer", _one_further),
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
        patch=method(NoiseSchedule, "timesteps", _range_with_a_stride),
    ),
    Mutant(
        id="sch-spacing-mismatch",
        component=_DDPM,
        wrong="Timesteps are spread from the first to the last instead of beginning every stride",
        cases=("-/base", "-/steps7"),
        seen="apple#88 (e3db2ec), diffusers#3947, keras-cv#2303, diffusers-rs (7e7fbb4)",
        evidence="R",
        size="visible",
        patch=method(NoiseSchedule, "timesteps", _linspace),
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
        id="sch-ddim-eta-noise",
        component=_DDIM,
        wrong="A step that adds noise adds as much of it as at eta 1",
        cases=("-/eta0.5",),
        seen="diffusers#594, #742, #1189",
        evidence="R",
        size="visible",
        patch=method(DDIMScheduler, "sigma", _without_eta),
    ),
    Mutant(
        id="sch-ddim-ignores-sigmas",
        component=_DDIM,
        wrong="A run that begins late is stepped through the timesteps of one that does not",
        cases=("-/late",),
        seen="stable-diffusion.cpp#1410 (7023fc4)",
        evidence="R",
        size="visible",
        patch=method(DDIMScheduler, "step", _own_schedule),
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
        patch=method(PNDMScheduler, "timesteps", _added),
    ),
    Mutant(
        id="sch-pndm-prk-steps",
        component=_PNDM,
        wrong="The run begins with Runge-Kutta steps, which SD v1 skips",
        cases=("-/base", "-/steps7"),
        seen="diffusers#9090, #298",
        evidence="R",
        size="visible",
        patch=_runge_kutta,
    ),
    Mutant(
        id="sch-dup-timesteps-index",
        component=_PNDM,
        wrong="The next timestep is looked up by value, and PLMS has its second timestep twice",
        cases=("-/base", "-/steps7"),
        seen="diffusers#5687, #5746, #4347, #6085, #7386",
        evidence="R",
        size="visible",
        patch=method(PNDMScheduler, "step", _place_by_value),
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
        patch=method(NoiseSchedule, "timesteps", _over_count_less_one),
    ),
    Mutant(
        id="fix-pndm-second-timestep",
        component=_PNDM,
        wrong="PLMS's repeated second timestep is taken for a mistake and removed",
        cases=("-/base", "-/steps7"),
        seen="diffusers#9090",
        evidence="fix",
        size="visible",
        patch=method(PNDMScheduler, "timesteps", _second_once),
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

_SIGMA = "lands with the goldens of LMS and Euler: those of DDPM, DDIM and PLMS know no sigmas"
_DPM = "lands with the goldens of DPM-Solver++"

NOT_RUN: tuple[NotRun, ...] = (
    NotRun(
        "sch-prev-t-fixed-stride",
        "no case has another spacing than leading, whose stride is the same everywhere, so the "
        "fixed stride is right; lands with other spacings",
    ),
    NotRun("sch-ddpm-learned-var-log", "sd1_impl never offers learned variances: SD v1 has none"),
    NotRun(
        "sch-ddim-sample-prediction",
        "no case asks for a model that predicts x_0; lands with that prediction type",
    ),
    NotRun("sch-lms-init-scale", _SIGMA),
    NotRun("sch-scale-model-input-missing", f"{_SIGMA}, and their model input is the sample"),
    NotRun("sch-lms-add-noise", f"{_SIGMA}, and no case adds noise to an image"),
    NotRun("sch-lms-sigma-order", _SIGMA),
    NotRun("sch-dpm-final-sigma", _DPM),
    NotRun("sch-dpm-lower-order-final", _DPM),
    NotRun("sch-dpm-2s-wrong-sigma", "sd1_impl never offers DPM 2S"),
    NotRun(
        "sch-dup-timesteps-1000", f"{_DPM}, whose spacing it is: in leading spacing none coincide"
    ),
    NotRun("sch-add-noise-noflatten", "lands with image to image: no case calls add_noise"),
    NotRun("sch-karras-hardcoded-range", "lands with goldens of Karras sigmas"),
    NotRun("sch-threshold-dtype", "sd1_impl never offers dynamic thresholding"),
)
