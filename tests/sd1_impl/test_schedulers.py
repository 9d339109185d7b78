"""DDPM, DDIM and PNDM against diffusers'; more settings are in `test_schedulers_grid`.

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
from sd1_impl.schedulers import Run

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
ROUNDING = {torch.float64: 1e-14, torch.float32: 1e-4}  # float32: that of diffusers' tables, at 999


@cache
def ours(case: str) -> DDPMScheduler | DDIMScheduler | PNDMScheduler:
    """Return our scheduler; one object serves the whole file."""
    kind = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler, "pndm": PNDMScheduler}
    return kind[case[:4]](ALL[case])


def reference(case: str, dtype: torch.dtype = torch.float32):
    """Return diffusers' scheduler of this case; in float64 with our tables in its place."""
    config = dict(vars(ALL[case]))
    for name in ("eta", "min_variance"):  # an argument of its step; written into its code
        config.pop(name, None)
    theirs = getattr(diffusers, f"{case[:4].upper()}Scheduler")(**config)
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


def walk(case: str, steps: int, dtype: torch.dtype, begin: int = 0) -> list[Tensor]:
    """Return all our samples of a run, open loop."""
    scheduler, sample, samples = ours(case), random(0, dtype), []
    run = scheduler.start(steps)
    for i, t in enumerate(run.timesteps[begin:]):
        noise = () if case.startswith("pndm") else (random(-i - 1, dtype),)
        sample = scheduler.step(random(i + 1, dtype), t, sample, run, *noise)
        samples.append(sample)
    return samples


def reference_walk(case: str, steps: int, dtype: torch.dtype, begin: int = 0) -> list[Tensor]:
    """Return diffusers' samples of the same run, from the same data."""
    scheduler, sample, samples = reference(case, dtype), random(0, dtype), []
    scheduler.set_timesteps(steps)
    for i, t in enumerate(scheduler.timesteps[begin:]):
        noise = {}
        if case.startswith("ddpm"):
            noise = {"generator": torch.Generator().manual_seed(-i - 1)}
        elif case.startswith("ddim") and ALL[case].eta:
            noise = {"eta": ALL[case].eta, "variance_noise": random(-i - 1, dtype)}
        sample = scheduler.step(random(i + 1, dtype), t, sample, **noise).prev_sample
        samples.append(sample)
    return samples


@pytest.mark.parametrize("case", ALL)
def test_timesteps_are_diffusers(case: str):
    """Every number of steps gives exactly diffusers' timesteps, as int64; one step is no PLMS."""
    theirs, offset = reference(case), ALL[case].steps_offset
    for steps in range(2 if case.startswith("pndm") else 1, 1001 - offset):
        theirs.set_timesteps(steps)
        timesteps = ours(case).timesteps(steps)
        assert timesteps.dtype == np.int64
        assert timesteps.tolist() == theirs.timesteps.tolist(), steps


def test_timesteps_are_the_published_ones():
    """DDIM's list of diffusers' test_steps_offset; PLMS asks twice at the second."""
    assert ours("ddim").timesteps(5).tolist() == [801, 601, 401, 201, 1]
    assert ours("ddim-pixels").timesteps(10).tolist() == list(range(900, -1, -100))
    assert ours("pndm").timesteps(5).tolist() == [801, 601, 601, 401, 201, 1]
    assert ours("pndm").timesteps(2).tolist() == [501, 1, 1]


@pytest.mark.parametrize("case", ["ddpm", "ddim", "pndm", "ddpm-pixels", "ddim-one"])
def test_tables_are_diffusers_to_float32_rounding(case: str):
    """Betas and alphas to 2 units in the last place, their 1000-fold products to 8; in float64."""
    theirs = reference(case)
    for name, units in {"betas": 2, "alphas": 1, "alphas_cumprod": 8}.items():
        table = getattr(ours(case), name)
        assert table.dtype == np.float64
        assert not table.flags.writeable
        limit = units * torch.finfo(torch.float32).eps
        np.testing.assert_allclose(getattr(theirs, name).numpy(), table, rtol=limit, err_msg=name)
    if not case.startswith("ddpm"):
        final = float(theirs.final_alpha_cumprod)
        assert ours(case).final_alpha_cumprod == pytest.approx(final, rel=1e-7)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(
    ("case", "steps"),
    [(case, steps) for case in SD_V1 for steps in STEPS if (case, steps) != ("pndm", 1)]
    + [(case, steps) for case in VARIANTS for steps in (2 if "pndm" in case else 1, 7, 50)]
    + [(case, 1000) for case in ("ddpm-pixels", "ddim-pixels", "pndm-pixels")],
    ids=str,
)
def test_every_sample_is_diffusers(case: str, steps: int, dtype: torch.dtype):
    """Open loop from random outputs, every step's sample agrees, to rounding."""
    got, wanted = walk(case, steps, dtype), reference_walk(case, steps, dtype)
    assert len(got) == len(wanted) == len(ours(case).timesteps(steps))
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert a.dtype == b.dtype == dtype
        assert relative_error(a, b) < ROUNDING[dtype], f"step {i}"


@pytest.mark.parametrize("begin", [1, 2, 37])
@pytest.mark.parametrize("case", SD_V1)
def test_a_run_that_begins_late_is_diffusers(case: str, begin: int):
    """Image-to-image, which leaves out the first timesteps, agrees too."""
    got = walk(case, 50, torch.float64, begin)
    wanted = reference_walk(case, 50, torch.float64, begin)
    for a, b in zip(got, wanted, strict=True):
        assert relative_error(a, b) < ROUNDING[torch.float64]


@pytest.mark.parametrize("case", ["ddpm", "ddim", "pndm"])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_add_noise_is_diffusers(case: str, dtype: torch.dtype):
    """One timestep, a tensor of one, or one per sample: the same as diffusers, for any rank."""
    theirs = reference(case, dtype)
    for shape in [(3,), (3, 4), (3, 4, 2, 5), (3, 1, 2, 2, 2)]:
        original, noise = random(0, dtype, shape), random(1, dtype, shape)
        for t in (torch.tensor([0, 500, 999]), torch.tensor([7]), torch.tensor(7)):
            wanted = theirs.add_noise(original, noise, t.reshape(-1))
            got = ours(case).add_noise(original, noise, t)
            assert got.dtype == dtype
            assert got.shape == shape
            assert relative_error(got, wanted) < ROUNDING[dtype]
        assert torch.equal(ours(case).add_noise(original, noise, 7), got)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("case", SD_V1)
def test_steps_keep_dtype_layout_and_arguments(case: str, dtype: torch.dtype):
    """Any floating dtype, any memory format, and no argument is edited, during a whole run."""
    scheduler = ours(case)
    run, n = scheduler.start(7), 1 if case.startswith("pndm") else 2
    sample = random(0, dtype).contiguous(memory_format=torch.channels_last)
    data = [random(i, dtype).contiguous(memory_format=torch.channels_last) for i in range(40)]
    copies = [tensor.clone() for tensor in data]
    for i, t in enumerate(run.timesteps):
        before = sample.clone()
        output, *noise = data[n * i : n * i + n]
        new = scheduler.step(output, t, sample, run, *noise)
        assert new.dtype == dtype
        assert new.is_contiguous(memory_format=torch.channels_last)
        assert new.isfinite().all()
        assert torch.equal(sample, before)
        assert scheduler.scale_model_input(new, t) is new
        sample = new
    assert all(torch.equal(a, b) for a, b in zip(data, copies, strict=True))


@pytest.mark.parametrize("case", ["ddpm", "ddim-eta0.5", "pndm"])
def test_runs_of_one_scheduler_do_not_meet(case: str):
    """Two runs, step by step in turn, after a third that was given up: as each alone."""
    scheduler = ours(case)
    noise = () if case == "pndm" else (random(8, torch.float64),)

    def step(seed: int, i: int, sample: Tensor, run: Run) -> Tensor:
        output = random(100 * seed + i, torch.float64)
        return scheduler.step(output, run.timesteps[i], sample, run, *noise)

    def alone(seed: int, steps: int) -> Tensor:
        run, sample = scheduler.start(steps), random(seed, torch.float64)
        for i in range(len(run.timesteps)):
            sample = step(seed, i, sample, run)
        return sample

    wanted = [alone(1, 7), alone(2, 20)]
    runs = [scheduler.start(7), scheduler.start(20)]
    step(3, 0, random(3, torch.float64), scheduler.start(50))
    samples = [random(1, torch.float64), random(2, torch.float64)]
    for i in range(len(runs[1].timesteps)):
        for k, run in enumerate(runs):
            if i < len(run.timesteps):
                samples[k] = step(k + 1, i, samples[k], run)
    assert torch.equal(samples[0], wanted[0])
    assert torch.equal(samples[1], wanted[1])
