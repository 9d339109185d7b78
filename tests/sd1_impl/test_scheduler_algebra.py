"""What the papers promise of the schedulers, in float64 and without a reference; and the errors."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sd1_impl import (
    SD_V1_DDIM,
    SD_V1_DDPM,
    SD_V1_PNDM,
    DDIMScheduler,
    DDPMScheduler,
    PNDMScheduler,
)
from sd1_impl.scheduler_config import SchedulerConfig
from sd1_impl.schedulers import NoiseSchedule
from sd1_impl.schedulers.pndm import COEFFICIENTS

EXAMPLES = settings(max_examples=25, deadline=None)
ROUNDING = 1e-10  # of sums in which x_0 at t = 999 is divided by 0.07, and the like
CLOSE = {"rtol": ROUNDING, "atol": ROUNDING}

DDPM, PNDM = DDPMScheduler(SD_V1_DDPM), PNDMScheduler(SD_V1_PNDM)
DDIM, DDIM_ONE = (
    DDIMScheduler(SD_V1_DDIM),
    DDIMScheduler(replace(SD_V1_DDIM, set_alpha_to_one=True)),
)
ETA_ONE = DDIMScheduler(replace(SD_V1_DDIM, eta=1.0, set_alpha_to_one=True))
SCHEDULERS = {"ddpm": DDPM, "ddim": DDIM, "pndm": PNDM}

steps = st.integers(1, 999)
betas = st.tuples(st.floats(1e-5, 0.01), st.floats(0.01, 0.05))
schedules = st.builds(
    lambda betas, kind, offset: SchedulerConfig(1000, *betas, kind, offset),
    betas,
    st.sampled_from(["linear", "scaled_linear"]),
    st.integers(0, 1),
)


def normal(seed: int, *shape: int) -> Tensor:
    """Return normal data in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape or (2, 4, 3, 5), generator=generator, dtype=torch.float64)


def coefficients(scheduler: DDPMScheduler | DDIMScheduler, steps: int, i: int) -> list[float]:
    """Return what step i makes of (x_t, epsilon, noise): it is linear in them."""
    run = scheduler.start(steps)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    basis = [(one, zero, zero), (zero, one, zero), (zero, zero, one)]
    return [
        float(scheduler.step(epsilon, run.timesteps[i], sample, run, noise))
        for sample, epsilon, noise in basis
    ]


@EXAMPLES
@given(schedules)
def test_tables_follow_from_the_betas(config: SchedulerConfig):
    """Betas rise between their ends, evenly or in their roots; the products are products."""
    schedule = NoiseSchedule(config, set_alpha_to_one=False)
    assert schedule.betas[[0, -1]] == pytest.approx([config.beta_start, config.beta_end])
    even = np.sqrt(schedule.betas) if config.beta_schedule == "scaled_linear" else schedule.betas
    assert np.ptp(np.diff(even)) < 1e-12
    for t in (0, 1, 500, 999):
        product = math.prod(1 - float(beta) for beta in schedule.betas[: t + 1])
        assert schedule.alphas_cumprod[t] == pytest.approx(product, rel=1e-12)


@EXAMPLES
@given(schedules, st.integers(0, 999), st.integers(0, 2**32))
def test_add_noise_keeps_the_variance(config: SchedulerConfig, t: int, seed: int):
    """The shares of sample and noise are squares that sum to 1, the sample's alphas_cumprod."""
    schedule = NoiseSchedule(config, set_alpha_to_one=False)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    signal, sigma = schedule.add_noise(one, zero, t), schedule.add_noise(zero, one, t)
    assert float(signal) ** 2 == pytest.approx(schedule.alphas_cumprod[t], abs=1e-15)
    assert float(signal) ** 2 + float(sigma) ** 2 == pytest.approx(1, abs=1e-15)
    original, noise = normal(seed), normal(seed + 1)
    noisy = schedule.add_noise(original, noise, t)
    torch.testing.assert_close(noisy, signal * original + sigma * noise)
    torch.testing.assert_close(
        schedule.predict_original(noise, t, noisy), original, rtol=1e-9, atol=1e-9
    )


@EXAMPLES
@given(schedules, st.integers(0, 999), st.integers(0, 2**32))
def test_velocity_says_the_same_as_the_noise(config: SchedulerConfig, t: int, seed: int):
    """The velocity of x_0 and epsilon gives both of them back."""
    schedule = NoiseSchedule(replace(config, prediction_type="v_prediction"), set_alpha_to_one=True)
    original, noise = normal(seed), normal(seed + 1)
    noisy = schedule.add_noise(original, noise, t)
    velocity = schedule.add_noise(noise, -original, t)  # sqrt(a) epsilon - sqrt(1 - a) x_0
    torch.testing.assert_close(schedule.predict_original(velocity, t, noisy), original)
    torch.testing.assert_close(schedule.predict_noise(velocity, t, noisy), noise)


@EXAMPLES
@given(st.sampled_from([DDIM, DDIM_ONE, PNDM]), st.integers(2, 200), st.integers(0, 2**32))
def test_an_exact_noise_prediction_is_inverted(scheduler: NoiseSchedule, n: int, seed: int):
    """A model that knows the noise leads DDIM and PLMS to x_0 at the final noise level."""
    original, noise = normal(seed), normal(seed + 1)
    run = scheduler.start(n)
    sample = scheduler.add_noise(original, noise, run.timesteps[0])
    for t in run.timesteps:
        sample = scheduler.step(noise, t, sample, run)
    final = scheduler.final_alpha_cumprod
    wanted = math.sqrt(final) * original + math.sqrt(1 - final) * noise
    torch.testing.assert_close(sample, wanted, **CLOSE)


@EXAMPLES
@given(steps, st.floats(0, 1), st.booleans(), st.data())
def test_ddim_keeps_the_marginals_at_every_eta(n: int, eta: float, one: bool, data: st.DataObject):  # noqa: FBT001 - drawn
    """Lemma 1 of Song et al.: from q(x_t | x_0) a step leads to q(x_prev | x_0), whatever eta."""
    scheduler = DDIMScheduler(replace(SD_V1_DDIM, eta=eta, set_alpha_to_one=one))
    i = data.draw(st.integers(0, n - 1))
    t = int(scheduler.timesteps(n)[i])
    alpha, alpha_prev = (scheduler.alpha_cumprod(s) for s in (t, t - 1000 // n))
    of_sample, of_epsilon, of_noise = coefficients(scheduler, n, i)
    assert of_sample * math.sqrt(alpha) == pytest.approx(math.sqrt(alpha_prev), rel=ROUNDING)
    noise = of_sample * math.sqrt(1 - alpha) + of_epsilon  # epsilon is in x_t, and predicted
    assert noise**2 + of_noise**2 == pytest.approx(1 - alpha_prev, abs=ROUNDING)


@EXAMPLES
@given(st.integers(2, 500), st.data())
def test_ddim_at_eta_one_is_ddpm(n: int, data: st.DataObject):
    """Section 4.1 of Song et al.: with all of its noise, DDIM is ancestral sampling."""
    i = data.draw(st.integers(0, n - 1))
    got, wanted = coefficients(ETA_ONE, n, i), coefficients(DDPM, n, i)
    assert got == pytest.approx(wanted, rel=ROUNDING, abs=2e-10)  # DDPM's last noise is 1e-10


@EXAMPLES
@given(steps, st.integers(0, 2**32), st.data())
def test_ddpm_draws_from_the_posterior(n: int, seed: int, data: st.DataObject):
    """Bayes: q(x_t | x_prev) and q(x_prev | x_0), as normal distributions, multiplied."""
    assume(n > 1)
    run = DDPM.start(n)
    i = data.draw(st.integers(0, n - 2))
    t, prev_t = run.timesteps[i : i + 2]
    alpha_bar, alpha_bar_prev = DDPM.alphas_cumprod[[t, prev_t]]
    alpha = alpha_bar / alpha_bar_prev
    precisions = alpha / (1 - alpha), 1 / (1 - alpha_bar_prev)
    original, epsilon, noise = normal(seed), normal(seed + 1), normal(seed + 2)
    sample = DDPM.add_noise(original, epsilon, t)
    means = sample / math.sqrt(alpha), math.sqrt(alpha_bar_prev) * original
    mean = sum(p * m for p, m in zip(precisions, means, strict=True)) / sum(precisions)
    got = DDPM.step(epsilon, t, sample, run, noise)
    torch.testing.assert_close(got, mean + noise / math.sqrt(sum(precisions)), **CLOSE)


def test_ddpm_variances_are_the_two_bounds():
    """The posterior's variance is below beta, and equal to neither it nor 0 before the end."""
    large = DDPMScheduler(replace(SD_V1_DDPM, variance_type="fixed_large"))
    for t in range(1, 1000):
        assert large.variance(t, t - 1) == pytest.approx(DDPM.betas[t], rel=1e-10)
        assert 0 < DDPM.variance(t, t - 1) < large.variance(t, t - 1)
    assert DDPM.variance(1, -1) == 1e-20
    assert large.variance(1, -1) == pytest.approx(1 - DDPM.alphas_cumprod[1])


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_plms_integrates_polynomials_exactly(order: int):
    """From values at 0, -1, -2, ... the coefficients give the integral over the next step."""
    values = COEFFICIENTS[order - 1]
    assert sum(values) == pytest.approx(1, abs=1e-15)
    for power in range(order):
        integral = sum(c * (-i) ** power for i, c in enumerate(values))
        assert integral == pytest.approx(1 / (power + 1), abs=1e-14), power


@EXAMPLES
@given(steps, st.integers(0, 2**32))
def test_plms_moves_as_ddim_does(n: int, seed: int):
    """Its transfer from one noise level to the next is DDIM's step at eta 0."""
    run, sample, epsilon = DDIM.start(n), normal(seed), normal(seed + 1)
    for t in run.timesteps[[0, n // 2, -1]]:
        wanted = DDIM.step(epsilon, t, sample, run)
        got = PNDM.transfer(epsilon, int(t), int(t) - run.stride, sample)
        torch.testing.assert_close(got, wanted, **CLOSE)


@pytest.mark.parametrize("clip", [True, False], ids=["clipped", "not"])
def test_only_the_predicted_sample_is_clipped(clip: bool):  # noqa: FBT001 - a parameter
    """At the end of a run, DDIM and DDPM return the predicted x_0, clipped or not."""
    ddim = DDIMScheduler(replace(SD_V1_DDIM, set_alpha_to_one=True, clip_sample=clip))
    ddpm = DDPMScheduler(replace(SD_V1_DDPM, steps_offset=0, clip_sample=clip))
    original = normal(0) * 3
    wanted = original.clamp(-1, 1) if clip else original
    for scheduler, t in ((ddim, 1), (ddpm, 0)):
        sample = scheduler.add_noise(original, normal(1), t)
        got = scheduler.step(normal(1), t, sample, scheduler.start(10))
        torch.testing.assert_close(got, wanted)


BAD_STEPS = {"none": 0, "negative": -1, "too-many": 1001}


@pytest.mark.parametrize("n", BAD_STEPS.values(), ids=BAD_STEPS.keys())
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_wrong_number_of_steps_is_refused(name: str, n: int):
    """There are 1 to 1000, and with SD v1's offset 999: 1000 would begin beyond the tables."""
    with pytest.raises(ValueError, match=f"num_inference_steps is {n}, expected 1 to 1000"):
        SCHEDULERS[name].start(n)
    with pytest.raises(ValueError, match=r"1000 steps .* begin at timestep 1000, .* last is 999"):
        SCHEDULERS[name].start(1000)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_wrong_timestep_is_refused(name: str):
    """A timestep of another run is named, and one that is no integer is no timestep."""
    scheduler, x = SCHEDULERS[name], normal(0)
    for t in (980, 982, 1001, -19):
        with pytest.raises(ValueError, match=f"timestep {t} is not of this run: 981 to 1 in 5"):
            scheduler.step(x, t, x, scheduler.start(50))
    with pytest.raises(TypeError):
        scheduler.step(x, 981.0, x, scheduler.start(50))


def test_timestep_forms_agree():
    """An int, a NumPy integer and a tensor mean the same timestep."""
    x, run = normal(0), DDIM.start(50)
    wanted = DDIM.step(x, 981, x, run)
    for t in (run.timesteps[0], np.int32(981), torch.tensor(981)):
        assert torch.equal(DDIM.step(x, t, x, run), wanted)


@pytest.mark.parametrize("wrong", [981, 921, 1], ids=["again", "left-out", "end"])
def test_plms_refuses_a_past_that_does_not_fit(wrong: int):
    """A run whose steps do not follow each other, or that is used twice, is an error."""
    x, run = normal(0), PNDM.start(50)
    for t in (981, 961, 961):
        PNDM.step(x, t, x, run)
    with pytest.raises(ValueError, match=f"timestep {wrong} does not follow 961: a new run needs"):
        PNDM.step(x, wrong, x, run)
    PNDM.step(x, 941, x, run)


def test_plms_of_one_step_is_refused():
    """With a single timestep there is no second prediction, and nothing to take again."""
    with pytest.raises(ValueError, match=r"num_inference_steps is 1, expected 2 .* PLMS takes"):
        PNDM.start(1)
    assert PNDM.start(2).timesteps.tolist() == [501, 1, 1]


def test_who_adds_noise_says_so():
    """A step has the argument exactly where it uses it: not at eta 0, not at t = 0, not in PLMS."""
    whole = DDPMScheduler(replace(SD_V1_DDPM, steps_offset=0))
    wanted = {DDPM: True, ETA_ONE: True, DDIM: False, PNDM: False, whole: False}
    for scheduler, noisy in wanted.items():
        run, x = scheduler.start(50), normal(0)
        t = run.timesteps[-1]
        assert scheduler.adds_noise(t) is noisy
        if noisy:
            with pytest.raises(ValueError, match="noise is missing"):
                scheduler.step(x, t, x, run)
        else:
            scheduler.step(x, t, x, run)


def test_missing_noise_is_refused():
    """Noise is never drawn inside: who needs it says so."""
    x = normal(0)
    with pytest.raises(ValueError, match="noise is missing: the step from timestep 981"):
        DDPM.step(x, 981, x, DDPM.start(50))
    with pytest.raises(ValueError, match=r"noise is missing: with eta 1.0"):
        ETA_ONE.step(x, 981, x, ETA_ONE.start(50))


def test_a_wrong_shape_is_named():
    """Nothing is broadcast in silence."""
    x, short = normal(0), normal(0, 1, 4, 3, 5)
    for scheduler in SCHEDULERS.values():
        with pytest.raises(ValueError, match=r"model_output has shape \(1, .* sample has \(2, "):
            scheduler.step(short, 981, x, scheduler.start(50))
        with pytest.raises(ValueError, match=r"noise has shape \(1, .* sample has \(2, "):
            scheduler.add_noise(x, short, 1)
    for scheduler in (DDPM, ETA_ONE):
        with pytest.raises(ValueError, match=r"noise has shape \(1, .* sample has \(2, "):
            scheduler.step(x, 981, x, scheduler.start(50), short)


BAD_TIMES = {
    "float": (0.5, TypeError, "timestep has dtype float32, expected integers"),
    "shape": (torch.tensor([1, 2, 3]), ValueError, r"timestep has shape \(3,\), expected .*\(2,\)"),
    "negative": (-1, ValueError, "timestep is -1, expected 0 to 999"),
    "large": (torch.tensor([0, 1000]), ValueError, r"timestep is \[   0 1000\], expected 0 to 999"),
}


@pytest.mark.parametrize(("t", "error", "message"), BAD_TIMES.values(), ids=BAD_TIMES.keys())
def test_add_noise_refuses_a_wrong_timestep(t: object, error: type, message: str):
    """A timestep outside the table would otherwise count from its end."""
    with pytest.raises(error, match=message):
        DDIM.add_noise(normal(0), normal(1), t)


BAD_CONFIGS = {
    "schedule": (SD_V1_DDIM, {"beta_schedule": "cosine"}, "'cosine', expected one of linear, sca"),
    "prediction": (SD_V1_PNDM, {"prediction_type": "sample"}, "'sample', expected one of epsilon"),
    "variance": (SD_V1_DDPM, {"variance_type": "learned"}, "'learned', expected one of fixed_sm"),
    "betas": (SD_V1_DDPM, {"beta_start": 0.02}, "betas from 0.02 to 0.012 do not rise"),
    "offset": (SD_V1_DDPM, {"steps_offset": -1}, "steps_offset -1 is too small"),
    "eta": (SD_V1_DDIM, {"eta": 1.5}, "eta is 1.5, expected 0 to 1"),
}


@pytest.mark.parametrize(
    ("config", "change", "message"), BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys()
)
def test_a_wrong_config_is_refused(config: SchedulerConfig, change: dict, message: str):
    """A config that cannot be a scheduler says why."""
    with pytest.raises(ValueError, match=message):
        replace(config, **change)
