"""What holds for every scheduler, whatever its settings: in float64, over drawn configurations."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sd1_impl import (
    SD_V1_DDIM,
    SD_V1_DDPM,
    SD_V1_EULER,
    SD_V1_PNDM,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)
from sd1_impl.schedulers import SCHEDULERS, NoiseSchedule, Run, SigmaRun, SigmaSchedule
from sd1_impl.schedulers.lms import lms_coefficients

EXAMPLES = settings(max_examples=60, deadline=None)
SPACINGS = ("leading", "trailing", "linspace")
SETTINGS = {  # of which each scheduler draws those that it has
    "beta_schedule": ("linear", "scaled_linear"),
    "num_train_timesteps": (40, 1000, 1100),
    "steps_offset": (0, 1, 3),
    "timestep_spacing": SPACINGS,
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "eta": (0.0, 0.5, 1.0),
    "set_alpha_to_one": (False, True),
    "variance_type": ("fixed_small", "fixed_large"),
    "skip_prk_steps": (False, True),
    "use_karras_sigmas": (False, True),
    "final_sigmas_type": ("zero", "sigma_min"),
    "lower_order_final": (False, True),
    "euler_at_final": (False, True),
}


@st.composite
def schedulers(draw: st.DrawFn, **fixed: object) -> NoiseSchedule:
    """Draw any scheduler that there is."""
    config, scheduler = SCHEDULERS[draw(st.sampled_from(sorted(SCHEDULERS)))]
    names = [field.name for field in fields(config) if field.name in SETTINGS]
    drawn = {name: draw(st.sampled_from(SETTINGS[name])) for name in names}
    drawn |= {name: value for name, value in fixed.items() if name in names}
    try:
        return scheduler(config(**drawn))
    except ValueError:  # Euler-ancestral without Karras sigmas, and the like
        assume(condition=False)
        raise


def started(scheduler: NoiseSchedule, steps: int) -> Run:
    """Return a run; where there is none the reason names a setting, and the example is dropped."""
    try:
        return scheduler.start(steps)
    except ValueError as error:
        assert any(word in str(error) for word in ("num_inference_steps", "timestep_spacing"))  # noqa: PT017
        assume(condition=False)
        raise


def random(seed: int) -> Tensor:
    """Return normal data, another for each seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((2, 1, 2, 3), generator=generator, dtype=torch.float64)


def levels(scheduler: NoiseSchedule, run: Run, i: int) -> tuple[float, float]:
    """Return the shares of x_0 and of the noise in the sample at call i of a run."""
    if isinstance(run, SigmaRun):
        sigma = float(run.sigmas[run.begin_index + i])
        variance = 1 if run.init_noise_sigma != 1 else sigma**2 + 1
        return variance**-0.5, sigma * variance**-0.5
    alpha_bar = scheduler.alpha_cumprod(int(run.timesteps[i]))
    return alpha_bar**0.5, (1 - alpha_bar) ** 0.5


@EXAMPLES
@given(schedulers(), st.integers(1, 60), st.integers(0, 2**32))
def test_a_model_that_knows_x_0_leads_to_it(scheduler: NoiseSchedule, steps: int, seed: int):
    """Whatever it is asked to predict, and along any grid, up to the noise of the run's end.

    PNDM has its own test: of several predictions it makes one, at one of their noise levels.
    """
    assume(not isinstance(scheduler, PNDMScheduler))
    if isinstance(scheduler, DDIMScheduler):  # whose steps are a stride long, whatever the spacing
        assume(scheduler.config.timestep_spacing == "leading")
    assume(getattr(scheduler.config, "variance_type", "") != "fixed_large")  # adds some at the end
    run, original = started(scheduler, steps), random(seed)
    signal, sigma = levels(scheduler, run, 0)
    sample = signal * original + sigma * random(seed + 1)
    for i, t in enumerate(run.timesteps.tolist()):
        signal, sigma = levels(scheduler, run, i)
        noise = (sample - signal * original) / sigma
        total = (signal**2 + sigma**2) ** 0.5  # a velocity is that of the sample of variance 1
        output = {
            "epsilon": noise,
            "v_prediction": (signal * noise - sigma * original) / total,
            "sample": original,
        }[scheduler.config.prediction_type]
        new = (random(seed + 2 + i),) if scheduler.adds_noise(t) else ()
        sample = scheduler.step(output, t, sample, run, *new)
    error = (sample - original).abs().max()
    if isinstance(scheduler, SigmaSchedule):
        end = scheduler.final_sigma
    else:
        last = int(run.timesteps[-1])
        ends = isinstance(scheduler, DDPMScheduler) or last < run.stride
        arrived = (
            scheduler.final_alpha_cumprod if ends else scheduler.alpha_cumprod(last - run.stride)
        )
        end = (1 - arrived) ** 0.5
    assert error <= 1e-9 + 20 * end


@EXAMPLES
@given(st.integers(4, 200), st.booleans(), st.integers(0, 2**32))
def test_a_model_that_knows_the_noise_leads_pndm_to_x_0(n: int, skip: bool, seed: int):  # noqa: FBT001 - drawn
    """With a Runge-Kutta warm-up and without one, whose orders all are exact for a constant."""
    config = replace(SD_V1_PNDM, skip_prk_steps=skip, set_alpha_to_one=True)
    scheduler, original, noise = PNDMScheduler(config), random(seed), random(seed + 1)
    run = scheduler.start(n)
    sample = scheduler.add_noise(original, noise, int(run.timesteps[0]))
    for t in run.timesteps:
        sample = scheduler.step(noise, t, sample, run)
    torch.testing.assert_close(sample, original, rtol=1e-10, atol=1e-10)


@EXAMPLES
@given(schedulers(), st.integers(1, 1100))
def test_tables_and_grids_fall(scheduler: NoiseSchedule, steps: int):
    """Timesteps are of the table; alphas_cumprod, timesteps and sigmas fall from step to step."""
    assert (np.diff(scheduler.alphas_cumprod) < 0).all()
    run = started(scheduler, steps)
    assert (run.timesteps >= 0).all()
    assert (run.timesteps < scheduler.config.num_train_timesteps).all()
    heun, pndm = len(run.timesteps) > steps, isinstance(scheduler, PNDMScheduler)
    rounded = getattr(scheduler.config, "use_karras_sigmas", False)
    assert (np.diff(run.timesteps) <= 0).all()
    if not (heun or pndm or rounded):
        assert (np.diff(run.timesteps) < 0).all()
    if isinstance(run, SigmaRun):
        assert (np.diff(scheduler.training_sigmas) > 0).all()
        own = run.sigmas[:-1][:: 1 if not heun else 2]
        assert (np.diff(own) < 0).all()
        assert run.sigmas[-1] == scheduler.final_sigma <= own[-1] * (1 + 1e-12)


@EXAMPLES
@given(schedulers(num_train_timesteps=40), st.integers(1, 40), st.data())
def test_every_output_is_finite(scheduler: NoiseSchedule, steps: int, data: st.DataObject):
    """From any beginning, in float32, every sample of every run is finite."""
    whole = started(scheduler, steps)
    begin = data.draw(st.integers(0, len(whole.timesteps) - 1))
    try:
        run = scheduler.start(steps, begin_index=begin)
    except ValueError as error:
        assert "begin_index" in str(error)  # noqa: PT017
        run = whole
    sample = random(0).float() * run.init_noise_sigma
    for i, t in enumerate(run.timesteps.tolist()):
        assert scheduler.scale_model_input(sample, t, run).isfinite().all()
        noise = (random(-i - 1).float(),) if scheduler.adds_noise(t) else ()
        sample = scheduler.step(random(i).float(), t, sample, run, *noise)
        assert sample.dtype == torch.float32
        assert sample.isfinite().all()


@EXAMPLES
@given(st.integers(2, 500), st.sampled_from(SPACINGS), st.integers(0, 2**32), st.data())
def test_ddim_there_and_back(n: int, spacing: str, seed: int, data: st.DataObject):
    """A step along a noise, and the step back along the same noise, lead to where it began."""
    config = replace(SD_V1_DDIM, timestep_spacing=spacing)
    ddim, back = DDIMScheduler(config), PNDMScheduler(replace(SD_V1_PNDM))
    run = ddim.start(n)
    t = int(run.timesteps[data.draw(st.integers(0, n - 2))])
    assume(t >= run.stride)
    sample, epsilon = random(seed), random(seed + 1)
    there = ddim.step(epsilon, t, sample, run)
    again = back.transfer(epsilon, t - run.stride, t, there)
    torch.testing.assert_close(again, sample, rtol=1e-10, atol=1e-10)


@EXAMPLES
@given(
    st.sampled_from([1, 2, 5, 8, 20, 50, 100, 250, 500]),
    st.sampled_from(["leading", "trailing"]),
    st.integers(0, 2**32),
    st.data(),
)
def test_ddim_with_all_its_noise_is_ddpm(n: int, spacing: str, seed: int, data: st.DataObject):
    """Section 4.1 of Song et al., where DDIM's stride is what lies between the timesteps."""
    shared = {"timestep_spacing": spacing, "steps_offset": 0}
    ddim = DDIMScheduler(replace(SD_V1_DDIM, eta=1.0, set_alpha_to_one=True, **shared))
    ddpm = DDPMScheduler(replace(SD_V1_DDPM, **shared))
    t = int(ddpm.timesteps(n)[data.draw(st.integers(0, n - 1))])
    sample, output, noise = random(seed), random(seed + 1), random(seed + 2)
    got = ddim.step(output, t, sample, ddim.start(n), noise)
    wanted = ddpm.step(output, t, sample, ddpm.start(n), noise)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@EXAMPLES
@given(
    st.sampled_from([1, 2, 5, 8, 20, 50, 100]),
    st.sampled_from(["leading", "trailing"]),
    st.integers(0, 2**32),
)
def test_euler_is_ddim_seen_in_sigmas(n: int, spacing: str, seed: int):
    """The same noises lead both to the same x_0: x is x_t over the root of alphas_cumprod."""
    shared = {"timestep_spacing": spacing}
    ddim = DDIMScheduler(replace(SD_V1_DDIM, set_alpha_to_one=True, **shared))
    euler = EulerDiscreteScheduler(replace(SD_V1_EULER, **shared))
    run, in_sigmas = ddim.start(n), euler.start(n)
    x_t = random(seed)
    x = x_t / ddim.alpha_cumprod(int(run.timesteps[0])) ** 0.5
    for i, t in enumerate(run.timesteps.tolist()):
        torch.testing.assert_close(euler.scale_model_input(x, t, in_sigmas), x_t)
        epsilon = random(seed + 1 + i)
        x_t, x = ddim.step(epsilon, t, x_t, run), euler.step(epsilon, t, x, in_sigmas)
    torch.testing.assert_close(x, x_t)


@EXAMPLES
@given(st.integers(1, 100), st.booleans(), st.integers(0, 2**32))
def test_euler_does_not_read_the_labels(n: int, karras: bool, seed: int):  # noqa: FBT001 - drawn
    """Where timesteps are only names of sigmas, other names lead to the same bits."""
    euler = EulerDiscreteScheduler(replace(SD_V1_EULER, use_karras_sigmas=karras))
    run = euler.start(n)
    other = replace(run, timesteps=np.arange(n)[::-1] / 7)
    a = b = random(seed)
    for i, (t, label) in enumerate(zip(run.timesteps, other.timesteps, strict=True)):
        output = random(seed + 1 + i)
        a, b = euler.step(output, t, a, run), euler.step(output, label, b, other)
        assert torch.equal(a, b)


@EXAMPLES
@given(st.lists(st.floats(0.01, 200), min_size=2, max_size=5, unique=True), st.integers(0, 3))
def test_lms_integrates_polynomials_exactly(grid: list[float], power: int):
    """On any grid, up to the degree that its slopes determine."""
    *nodes, end = sorted(grid, reverse=True)
    assume(min(-np.diff([*nodes, end])) > 0.05)
    nodes.reverse()  # newest first
    power = min(power, len(nodes) - 1)
    got = sum(c * x**power for c, x in zip(lms_coefficients(nodes, end), nodes, strict=True))
    wanted = (end ** (power + 1) - nodes[0] ** (power + 1)) / (power + 1)
    scale = sum(abs(c) * x**power for c, x in zip(lms_coefficients(nodes, end), nodes, strict=True))
    assert got == pytest.approx(wanted, rel=1e-9, abs=1e-12 * scale)
