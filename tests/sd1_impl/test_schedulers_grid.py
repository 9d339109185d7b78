"""Every scheduler over a grid of settings, against diffusers' own classes, step by step.

Open loop: model outputs and noise are random data. In float64 the reference is diffusers' source
with "float32" replaced by "float64", so that nothing but rounding is left between the two; in
float32 it is diffusers as it is, tables in float32 included.
"""

import importlib
import inspect
import sys
from dataclasses import replace
from functools import cache
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from sd1_impl.schedulers import SCHEDULERS, NoiseSchedule, SigmaSchedule

pytest.importorskip("diffusers")

SD_V1 = {name: config() for name, (config, _) in SCHEDULERS.items()}
MODULES = {
    **{name: name for name in ("ddpm", "ddim", "pndm")},
    **{name: f"{name}_discrete" for name in ("lms", "euler", "euler_ancestral", "heun")},
    "dpmpp_2m": "dpmsolver_multistep",
}
KARRAS = ("lms", "euler", "heun", "dpmpp_2m")
X_0 = ("ddpm", "ddim", "lms", "euler", "heun", "dpmpp_2m")  # offer prediction type "sample"
OWN = {  # settings of one scheduler alone
    "ddpm": {
        "large": {"variance_type": "fixed_large"},
        "log": {"variance_type": "fixed_small_log"},
        "clip": {"clip_sample": True, "clip_sample_range": 0.8},
    },
    "ddim": {
        "eta0.5": {"eta": 0.5},
        "eta1": {"eta": 1.0},
        "eta1-one-trailing": {
            "eta": 1.0,
            "set_alpha_to_one": True,
            "timestep_spacing": "trailing",
        },
        "clip": {"clip_sample": True, "clip_sample_range": 0.8},
        "clip-x0": {"clip_sample": True, "prediction_type": "sample"},
        "one": {"set_alpha_to_one": True},
    },
    "pndm": {
        "one": {"set_alpha_to_one": True},
        "prk": {"skip_prk_steps": False},
        "prk-v": {"skip_prk_steps": False, "prediction_type": "v_prediction"},
        "prk-linspace": {"skip_prk_steps": False, "timestep_spacing": "linspace"},
        "prk-trailing-one": {
            "skip_prk_steps": False,
            "timestep_spacing": "trailing",
            "set_alpha_to_one": True,
        },
    },
    "lms": {"karras-v": {"use_karras_sigmas": True, "prediction_type": "v_prediction"}},
    "euler": {
        "sigma-min": {"final_sigmas_type": "sigma_min"},
        "karras-sigma-min": {"final_sigmas_type": "sigma_min", "use_karras_sigmas": True},
        "karras-leading": {"use_karras_sigmas": True, "timestep_spacing": "leading"},
    },
    "euler_ancestral": {},
    "heun": {
        "clip": {"clip_sample": True, "clip_sample_range": 0.8},
        "karras-trailing": {"use_karras_sigmas": True, "timestep_spacing": "trailing"},
    },
    "dpmpp_2m": {
        "sigma-min": {"final_sigmas_type": "sigma_min"},
        "published": {"final_sigmas_type": "sigma_min", "lower_order_final": False},
        "euler-at-final": {"final_sigmas_type": "sigma_min", "euler_at_final": True},
        "trailing-sigma-min": {"final_sigmas_type": "sigma_min", "timestep_spacing": "trailing"},
        "karras-sigma-min": {"final_sigmas_type": "sigma_min", "use_karras_sigmas": True},
        "karras-v": {"use_karras_sigmas": True, "prediction_type": "v_prediction"},
    },
}
SHARED = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "T1100": {"num_train_timesteps": 1100},
    "leading": {"timestep_spacing": "leading"},
    "leading-offset0": {"timestep_spacing": "leading", "steps_offset": 0},
    "trailing": {"timestep_spacing": "trailing"},
    "linspace": {"timestep_spacing": "linspace"},
    "v": {"prediction_type": "v_prediction"},
    "x0": {"prediction_type": "sample"},
    "karras": {"use_karras_sigmas": True},
}
ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-4}  # float32: that of diffusers' tables
STEPS = (1, 2, 3, 7, 20, 30, 50, 999, 1000)


def refused(name: str, config, steps: int) -> bool:
    """Tell whether a run is one that the reference does not get through, or beyond its table."""
    leading = config.timestep_spacing == "leading"
    end = config.num_train_timesteps
    if name == "pndm" and steps < (2 if config.skip_prk_steps else 4):
        return True
    if name == "dpmpp_2m":
        most = {"leading": end - 1 - (config.steps_offset > 0), "linspace": end - 1}
        karras_most = most | {"linspace": end}
        limits = karras_most if config.use_karras_sigmas else most
        return steps > limits.get(config.timestep_spacing, end)
    return leading and (steps - 1) * (end // steps) + config.steps_offset >= end


def grid() -> dict[str, tuple]:
    """Return name, config and number of steps by readable id."""
    cases = {}
    for name, sd_v1 in SD_V1.items():
        variants = {"sd1": {}, **SHARED, **OWN[name]}
        for variant, changes in variants.items():
            if (variant == "x0" and name not in X_0) or (
                variant == "karras" and name not in KARRAS
            ):
                continue
            config = replace(sd_v1, **changes)
            spaced = variant in ("sd1", "leading", "leading-offset0", "trailing", "linspace")
            if spaced or variant == "karras":
                steps = STEPS if name != "lms" or variant == "trailing" else STEPS[:-2]
            elif "prk" in variant:
                steps = (4, 7, 50)
            else:
                steps = (2, 7, 20)
            for n in steps:
                cases[f"{name}-{variant}-{n}"] = name, config, n
    return {case: run for case, run in cases.items() if not refused(*run)}


GRID = grid()


@cache
def doubled(module: str) -> ModuleType:
    """Return a module of diffusers' schedulers whose float32 is float64."""
    plain = importlib.import_module(f"diffusers.schedulers.scheduling_{module}")
    name = f"diffusers.schedulers.doubled_{module}"
    double = ModuleType(name)
    double.__package__ = "diffusers.schedulers"
    sys.modules[name] = double
    source = inspect.getsource(plain).replace("float32", "float64")
    exec(compile(source, plain.__file__, "exec"), vars(double))  # noqa: S102 - diffusers' own code
    return double


def reference(name: str, config, dtype: torch.dtype):
    """Return diffusers' scheduler of a config."""
    module = f"diffusers.schedulers.scheduling_{MODULES[name]}"
    found = doubled(MODULES[name]) if dtype == torch.float64 else importlib.import_module(module)
    # Arguments of its step, numbers in its code, and what it has not.
    left_out = {"eta", "min_variance", *(() if name in KARRAS else ["use_karras_sigmas"])}
    options = {k: v for k, v in vars(config).items() if k not in left_out}
    return getattr(found, SCHEDULERS[name][1].__name__)(**options)


def ours(name: str, config) -> NoiseSchedule:
    """Return our scheduler of a config."""
    return SCHEDULERS[name][1](config)


def random(seed: int, dtype: torch.dtype) -> Tensor:
    """Return normal data, another for each seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((2, 2, 2, 3), generator=generator, dtype=dtype)


def walk(scheduler: NoiseSchedule, run, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Return every model input and every sample of a run of ours."""
    sample, steps = random(0, dtype) * run.init_noise_sigma, []
    for i, t in enumerate(run.timesteps.tolist()):
        model_input = scheduler.scale_model_input(sample, t, run)
        noise = (random(-i - 1, dtype),) if scheduler.adds_noise(t) else ()
        sample = scheduler.step(random(i + 1, dtype), t, sample, run, *noise)
        steps.append((model_input, sample))
    return steps


def reference_walk(
    theirs, dtype: torch.dtype, begin: int = 0, eta: float = 0.0
) -> list[tuple[Tensor, Tensor]]:
    """Return the same of diffusers, whose timesteps are set."""
    sample, steps = random(0, dtype) * theirs.init_noise_sigma, []
    if begin and hasattr(theirs, "set_begin_index"):
        theirs.set_begin_index(begin)
    takes = inspect.signature(theirs.step).parameters
    for i, t in enumerate(theirs.timesteps[begin:]):
        model_input = theirs.scale_model_input(sample, t)
        given = {}
        if eta:
            given = {"eta": eta, "variance_noise": random(-i - 1, dtype)}
        elif "generator" in takes:
            given = {"generator": torch.Generator().manual_seed(-i - 1)}
        sample = theirs.step(random(i + 1, dtype), t, sample, **given).prev_sample
        steps.append((model_input, sample))
    return steps


def worst(got: list, wanted: list) -> float:
    """Return the largest relative L2 distance of all steps' model inputs and samples."""
    assert len(got) == len(wanted)
    worst = 0.0
    for step, pairs in enumerate(zip(got, wanted, strict=True)):
        for a, b in zip(*pairs, strict=True):
            assert a.dtype == b.dtype
            assert a.isfinite().all(), step
            worst = max(worst, float((a - b).norm() / b.norm()))
    return worst


@pytest.mark.parametrize(("name", "config", "steps"), GRID.values(), ids=GRID.keys())
def test_every_step_is_diffusers(name: str, config, steps: int):
    """Timesteps, initial sigma, model inputs and samples are diffusers', in float64 to rounding."""
    scheduler, theirs = ours(name, config), reference(name, config, torch.float64)
    theirs.set_timesteps(steps)
    run = scheduler.start(steps)
    whole = not isinstance(scheduler, SigmaSchedule) or name == "dpmpp_2m"
    assert run.timesteps.dtype == (np.int64 if whole else np.float64)
    np.testing.assert_allclose(run.timesteps, theirs.timesteps.numpy(), rtol=1e-12, atol=1e-10)
    assert run.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma), rel=1e-13)
    dtype, eta = torch.float64, getattr(config, "eta", 0.0)
    error = worst(walk(scheduler, run, dtype), reference_walk(theirs, dtype, eta=eta))
    assert error < ROUNDING[dtype]


SINGLE = {case: run for case, run in GRID.items() if case.endswith(("-7", "-50"))}


@pytest.mark.parametrize(("name", "config", "steps"), SINGLE.values(), ids=SINGLE.keys())
def test_every_float32_step_is_diffusers(name: str, config, steps: int):
    """With diffusers' own tables, in float32, timesteps and samples agree as far as those do."""
    scheduler, theirs = ours(name, config), reference(name, config, torch.float32)
    theirs.set_timesteps(steps)
    run = scheduler.start(steps)
    wanted = theirs.timesteps.double().numpy()
    tolerance = 1e-3 if getattr(config, "use_karras_sigmas", False) else 1e-4
    np.testing.assert_allclose(run.timesteps, wanted, rtol=1e-6, atol=tolerance)
    dtype, eta = torch.float32, getattr(config, "eta", 0.0)
    error = worst(walk(scheduler, run, dtype), reference_walk(theirs, dtype, eta=eta))
    assert error < ROUNDING[dtype]


def starts() -> dict[str, tuple]:
    """Return name, config and begin index by readable id: runs of 50 steps that begin late."""
    cases = {}
    for name, sd_v1 in SD_V1.items():
        variants = {"sd1": {}, "leading": {"timestep_spacing": "leading"}}
        if name in KARRAS:
            variants["karras"] = {"use_karras_sigmas": True}
        for variant, changes in variants.items():
            for begin in (2, 4, 48, 98) if name == "heun" else (1, 2, 3, 5, 37, 49):
                cases[f"{name}-{variant}-from{begin}"] = name, replace(sd_v1, **changes), begin
    return cases


@pytest.mark.parametrize(("name", "config", "begin"), starts().values(), ids=starts().keys())
def test_a_run_that_begins_late_is_diffusers(name: str, config, begin: int):
    """Image-to-image leaves out the first timesteps: what is left agrees, multistep orders too."""
    scheduler, theirs = ours(name, config), reference(name, config, torch.float64)
    theirs.set_timesteps(50)
    run = scheduler.start(50, begin_index=begin)
    assert len(run.timesteps) == len(theirs.timesteps) - begin
    got, wanted = (
        walk(scheduler, run, torch.float64),
        reference_walk(theirs, torch.float64, begin),
    )
    assert worst(got, wanted) < ROUNDING[torch.float64]


OWN_TIMESTEPS = {
    "ddpm": [999, 700, 650, 12, 0],
    "euler": [999.0, 700.5, 650.25, 12.0, 0.5],
    "heun": [999.0, 700.5, 650.25, 12.0, 0.5],
    "dpmpp_2m": [999, 700, 650, 12, 1],
}


@pytest.mark.parametrize("name", OWN_TIMESTEPS)
def test_timesteps_of_the_callers_own_are_diffusers(name: str):
    """Where diffusers takes them, so do we; where not, that is said."""
    scheduler, theirs = ours(name, SD_V1[name]), reference(name, SD_V1[name], torch.float64)
    own = OWN_TIMESTEPS[name]
    theirs.set_timesteps(timesteps=own)
    run = scheduler.start(timesteps=own)
    assert run.timesteps.tolist() == theirs.timesteps.tolist()
    got, wanted = walk(scheduler, run, torch.float64), reference_walk(theirs, torch.float64)
    assert worst(got, wanted) < ROUNDING[torch.float64]


@pytest.mark.parametrize("name", ["ddpm", "ddim", "pndm", "lms", "euler_ancestral", "dpmpp_2m"])
def test_trailing_runs_never_reach_timestep_minus_one(name: str):
    """Where rounding gives diffusers' "trailing" spacing one timestep more, -1, it is left out."""
    config = replace(SD_V1[name], timestep_spacing="trailing")
    scheduler, theirs = ours(name, config), reference(name, config, torch.float64)
    for steps in (50, 61, 103, 999):
        theirs.set_timesteps(steps)
        wanted = [t for t in theirs.timesteps.tolist() if t >= 0]
        assert scheduler.timesteps(steps).tolist() == wanted
    assert len(set(scheduler.timesteps(61).tolist())) == 61


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("name", [*KARRAS, "euler_ancestral"])
def test_add_noise_is_diffusers(name: str, spacing: str):
    """A clean sample is taken to the noise level of a run's timestep: where it begins, or any."""
    config = replace(SD_V1[name], timestep_spacing=spacing)
    scheduler, theirs = ours(name, config), reference(name, config, torch.float64)
    theirs.set_timesteps(20)
    original, noise = random(0, torch.float64), random(1, torch.float64)
    begin = 8
    run = scheduler.start(20, begin_index=begin)
    chosen = theirs.timesteps[[begin, begin + 5]]
    wanted = theirs.add_noise(original, noise, chosen)
    torch.testing.assert_close(scheduler.add_noise(original, noise, chosen, run), wanted)
    theirs.set_begin_index(begin)
    wanted = theirs.add_noise(original, noise, chosen[:1])
    got = scheduler.add_noise(original, noise, float(chosen[0]), run)
    torch.testing.assert_close(got, wanted, rtol=1e-14, atol=1e-14)
    with pytest.raises(ValueError, match="run is missing"):
        scheduler.add_noise(original, noise, chosen)
    with pytest.raises(ValueError, match=r"timestep 3\.5 is not of this run"):
        scheduler.add_noise(original, noise, 3.5, run)
