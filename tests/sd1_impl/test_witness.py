"""Published numbers of the schedulers, which anyone can look up: no weights, no downloads.

Source, where an entry names a test: that test of huggingface/diffusers at commit 58eb52c0
(2026-08-23), in tests/schedulers/. TIGHTER: the same loops as that library runs them, recorded to
more digits (this project's notes, published-numbers.md, section 2, "Tighter values").

The toy problem of SchedulerCommonTest (test_schedulers.py): a sample of 768 even steps from 0 to 1,
the same backwards for noise, and the model ``x t / (t + 1)``. Where a scheduler scales the model's
input, the loop goes on from the scaled sample: not the textbook's loop, but the published one.

A sum of absolute values is blind to layout and sign: the elements of TIGHTER are not.
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
    SD_V1_DPMPP_2M,
    SD_V1_EULER,
    SD_V1_EULER_ANCESTRAL,
    SD_V1_HEUN,
    SD_V1_LMS,
    SD_V1_PNDM,
    DDIMScheduler,
    DDPMScheduler,
)
from sd1_impl.schedulers import SCHEDULERS, NoiseSchedule, SigmaRun, SigmaSchedule

pytestmark = pytest.mark.witness

# `get_scheduler_config` of each test file: what the tests there change of it is in LOOPS.
PIXELS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "steps_offset": 0}
LONG = PIXELS | {"num_train_timesteps": 1100}
DDIM = replace(SD_V1_DDIM, **PIXELS, clip_sample=True, set_alpha_to_one=True)
DDPM = replace(SD_V1_DDPM, **PIXELS, clip_sample=True)
PNDM = replace(SD_V1_PNDM, **PIXELS, skip_prk_steps=False)
LMS, EULER = replace(SD_V1_LMS, **LONG), replace(SD_V1_EULER, **LONG)
ANCESTRAL, HEUN = replace(SD_V1_EULER_ANCESTRAL, **LONG), replace(SD_V1_HEUN, **LONG)
DPMPP = replace(SD_V1_DPMPP_2M, **PIXELS, lower_order_final=False, final_sigmas_type="sigma_min")
V, ROUGH = {"prediction_type": "v_prediction"}, {"beta_start": 0.01}
KARRAS = {"use_karras_sigmas": True}

LOOPS = {  # name, config, steps, and at which call the loop begins, with noise added
    "ddim": ("ddim", DDIM, 10, 0),
    "ddim-v": ("ddim", replace(DDIM, **V), 10, 0),
    "ddim-one": ("ddim", replace(DDIM, **ROUGH), 10, 0),
    "ddim-not-one": ("ddim", replace(DDIM, **ROUGH, set_alpha_to_one=False), 10, 0),
    "ddim-noise": ("ddim", DDIM, 10, 8),
    "ddpm": ("ddpm", DDPM, 1000, 0),
    "ddpm-v": ("ddpm", replace(DDPM, **V), 1000, 0),
    "ddpm-noise": ("ddpm", DDPM, 1000, 998),
    "pndm": ("pndm", PNDM, 10, 0),
    "pndm-v": ("pndm", replace(PNDM, **V), 10, 0),
    "pndm-one": ("pndm", replace(PNDM, **ROUGH, set_alpha_to_one=True), 10, 0),
    "pndm-not-one": ("pndm", replace(PNDM, **ROUGH), 10, 0),
    "lms": ("lms", LMS, 10, 0),
    "lms-karras": ("lms", replace(LMS, **KARRAS), 10, 0),
    "lms-noise": ("lms", LMS, 10, 8),
    "euler": ("euler", EULER, 10, 0),
    "euler-karras": ("euler", replace(EULER, **KARRAS), 10, 0),
    "euler-noise": ("euler", EULER, 10, 8),
    "ancestral": ("euler_ancestral", ANCESTRAL, 10, 0),
    "ancestral-v": ("euler_ancestral", replace(ANCESTRAL, **V), 10, 0),
    "ancestral-noise": ("euler_ancestral", ANCESTRAL, 10, 8),
    "heun": ("heun", HEUN, 10, 0),
    "heun-noise": ("heun", HEUN, 10, 16),
    "dpmpp": ("dpmpp_2m", DPMPP, 10, 0),
    "dpmpp-v": ("dpmpp_2m", replace(DPMPP, **V), 10, 0),
    "dpmpp-v-karras": ("dpmpp_2m", replace(DPMPP, **V, **KARRAS), 10, 0),
    "dpmpp-noise": ("dpmpp_2m", DPMPP, 10, 5),
}

LOUD = 0.05
"""For sums of tens of thousands, of which the 0.01 of those tests is one part in ten million, less
than the order of a float32 sum makes; relatively, this is 2e-6 at most."""

PUBLISHED = {  # loop: test file, test, sum of absolute values and its tolerance, mean (within 1e-3)
    "ddim": ("ddim", "no_noise", 172.0067, 1e-2, 0.223967),
    "ddim-v": ("ddim", "with_v_prediction", 52.5302, 1e-2, 0.0684),
    "ddim-one": ("ddim", "with_set_alpha_to_one", 149.8295, 1e-2, 0.1951),
    "ddim-not-one": ("ddim", "with_no_set_alpha_to_one", 149.0784, 1e-2, 0.1941),
    "ddim-noise": ("ddim", "with_noise", 354.5418, 1e-2, 0.4616),
    "ddpm": ("ddpm", "no_noise", 258.9606, 1e-2, 0.3372),
    "ddpm-v": ("ddpm", "with_v_prediction", 202.0296, 1e-2, 0.2631),
    "ddpm-noise": ("ddpm", "with_noise", 387.9466, 1e-2, 0.5051),
    "pndm": ("pndm", "no_noise", 198.1318, 1e-2, 0.258),
    "pndm-v": ("pndm", "with_v_prediction", 67.3986, 1e-2, 0.0878),
    "pndm-one": ("pndm", "with_set_alpha_to_one", 230.0399, 1e-2, 0.2995),
    "pndm-not-one": ("pndm", "with_no_set_alpha_to_one", 186.9482, 1e-2, 0.2434),
    "lms": ("lms", "no_noise", 1006.388, 1e-2, 1.31),
    "lms-karras": ("lms", "device_karras_sigmas", 3812.9927, 2e-2, 4.9648),
    "lms-noise": ("lms", "with_noise", 27663.6895, LOUD, 36.0204),
    "euler": ("euler", "no_noise", 10.0807, 1e-2, 0.0131),
    "euler-karras": (
        "euler",
        "device_karras_sigmas",
        124.52299499511719,
        1e-2,
        0.16213932633399963,
    ),
    "euler-noise": ("euler", "with_noise", 57062.9297, LOUD, 74.3007),
    "ancestral": ("euler_ancestral", "no_noise", 152.3192, 1e-2, 0.1983),
    "ancestral-v": ("euler_ancestral", "with_v_prediction", 108.4439, 1e-2, 0.1412),
    "ancestral-noise": ("euler_ancestral", "with_noise", 56163.0508, LOUD, 73.129),
    "heun": ("heun", "no_noise", 0.1233, 1e-2, None),  # the mean is below its tolerance
    "heun-noise": ("heun", "with_noise", 75074.8906, LOUD, 97.7538),
    "dpmpp": ("dpm_multi", "no_noise", None, None, 0.3301),
    "dpmpp-v": ("dpm_multi", "with_v_prediction", None, None, 0.2251),
    "dpmpp-v-karras": ("dpm_multi", "with_karras_and_v_prediction", None, None, 0.2096),
    "dpmpp-noise": ("dpm_multi", "with_noise", 318.4111, 1e-2, 0.4146),
}

NONE = ()
TIGHTER = {  # loop: sum, elements [0,0,0,0:3], elements [3,2,7,5:8]
    "ddim": (172.0067139, (0, 0.002336, 0.0046721), (0.4432621, 0.4455981, 0.4479341)),
    "ddim-v": (52.5302048, (0, 0.0007134, 0.0014268), (0.1353706, 0.136084, 0.1367974)),
    "ddim-one": (149.8294525, (0, 0.0020348, 0.0040697), (0.3861112, 0.3881459, 0.3901808)),
    "ddim-not-one": (149.0784149, (0, 0.0020246, 0.0040493), (0.3841758, 0.3862003, 0.388225)),
    "pndm": (198.131836, NONE, NONE),
    "pndm-one": (230.0336456, NONE, NONE),
    "pndm-not-one": (186.9412384, NONE, NONE),
    "lms": (1006.3881836, (0, -0.0136678, -0.0273356), (-2.593466, -2.6071348, -2.6208024)),
    "lms-karras": (
        3812.9929199, (0, -0.0517845, -0.1035689), (-9.8261042, -9.8778839, -9.9296722),
    ),
    "euler": (10.0806808, (0, 0.0001369, 0.0002738), (0.025978, 0.0261149, 0.0262518)),
    "euler-karras": (
        124.5225983, (0, -0.0016911, -0.0033823), (-0.3208953, -0.3225865, -0.3242778),
    ),
    "heun": (0.1233307, (0, 1.7e-06, 3.3e-06), (0.0003178, 0.0003195, 0.0003212)),
    "dpmpp": (253.5514221, (0, 0.0034435, 0.006887), (0.653403, 0.6568469, 0.6602901)),
    "dpmpp-v": (172.8739777, (0, 0.0023478, 0.0046956), (0.445497, 0.4478449, 0.4501926)),
    "dpmpp-v-karras": (
        160.6641998, (0, 0.002182, 0.004364), (0.4140324, 0.4162144, 0.4183964),
    ),
}  # fmt: skip
PRINTED = 5e-8  # half of the last digit that the elements are given to


def toy(first: int, last: int) -> Tensor:
    """Return a range of 768 whole numbers over 768, batch innermost: (4, 3, 8, 8)."""
    values = torch.arange(first, last, 1 if first < last else -1)
    return values.reshape(3, 8, 8, 4).permute(3, 0, 1, 2) / 768


def in_float32(scheduler: NoiseSchedule) -> NoiseSchedule:
    """Return a scheduler with tables in float32, as those of the published numbers; no others.

    How far the loops are from those with float64 tables: `test_tables_are_the_difference`.
    """
    config = scheduler.config
    betas = torch.linspace(config.beta_start, config.beta_end, config.num_train_timesteps)
    alphas_cumprod = (1 - betas).cumprod(0)
    table, final = alphas_cumprod.numpy(), np.float32(scheduler.final_alpha_cumprod)
    scheduler.alphas_cumprod = table
    scheduler.alpha_cumprod = lambda t: table[t] if t >= 0 else final  # what is made of it, too
    if isinstance(scheduler, SigmaSchedule):
        scheduler.training_sigmas = (((1 - alphas_cumprod) / alphas_cumprod) ** 0.5).numpy()
        scheduler.final_sigma = np.float32(scheduler.final_sigma and scheduler.training_sigmas[0])
    return scheduler


@cache
def last_sample(loop: str, tables: str = "float32") -> Tensor:
    """Run a loop in float32 and return what it ends with."""
    name, config, steps, begin = LOOPS[loop]
    scheduler = SCHEDULERS[name][1](config)
    if tables == "float32":
        scheduler = in_float32(scheduler)
    run = scheduler.start(steps, begin_index=begin)
    if tables == "float32" and isinstance(run, SigmaRun):
        run.sigmas = run.sigmas.astype(np.float32).astype(np.float64)
    sample = toy(0, 768) * run.init_noise_sigma
    if begin:
        sample = scheduler.add_noise(sample, toy(767, -1), run.timesteps[0].item(), run)
    generator = torch.Generator().manual_seed(0)
    for t in run.timesteps.tolist():
        sample = scheduler.scale_model_input(sample, t, run)
        output, noise = sample * (t / (t + 1)), ()
        if scheduler.adds_noise(t):
            noise = (torch.randn(sample.shape, generator=generator),)
        sample = scheduler.step(output, t, sample, run, *noise)
    assert sample.dtype == torch.float32
    return sample


def total(loop: str) -> float:
    """Return a loop's sum of absolute values, as the tests add it up: in float32."""
    return float(last_sample(loop).abs().sum())


FIGURES = [
    pytest.param(loop, *row, id=f"{loop}-{row[0]}")
    for loop, (_, _, the_sum, tolerance, mean) in PUBLISHED.items()
    for row in (("sum", the_sum, tolerance), ("mean", mean, 1e-3))
    if row[1] is not None
]


@pytest.mark.parametrize(("loop", "figure", "published", "tolerance"), FIGURES)
def test_full_loop(loop: str, figure: str, published: float, tolerance: float):
    """test_full_loop_* of test_scheduler_*.py, by PUBLISHED: within the tolerance given there."""
    got = total(loop) / (768 if figure == "mean" else 1)
    assert got == pytest.approx(published, abs=tolerance)


@pytest.mark.parametrize("loop", TIGHTER)
def test_sum_to_more_digits(loop: str):
    """TIGHTER: sums, to 1e-5 of themselves."""
    assert total(loop) == pytest.approx(TIGHTER[loop][0], rel=1e-5)


@pytest.mark.parametrize("loop", [loop for loop in TIGHTER if TIGHTER[loop][1]])
def test_elements(loop: str):
    """TIGHTER: elements to 1e-6 of the loop's largest; where less was printed, to that."""
    sample = last_sample(loop)
    _, first, last = TIGHTER[loop]
    limit = max(1e-6 * float(sample.abs().max()), PRINTED)
    got = [*sample[0, 0, 0, 0:3].tolist(), *sample[3, 2, 7, 5:8].tolist()]
    assert got == pytest.approx([*first, *last], abs=limit)


@pytest.mark.parametrize("loop", PUBLISHED)
def test_tables_are_the_difference(loop: str):
    """With float64 tables, as in use, every loop ends within 1e-4 of where it does in float32.

    Most at DDPM's last two steps, where ``1 - alpha_bar_1 / alpha_bar_0`` has lost 12 bits in
    float32.
    """
    got, wanted = last_sample(loop, "float64"), last_sample(loop)
    distance = float((got - wanted).norm() / wanted.norm())
    assert 0 < distance < 1e-4


def test_there_are_enough_of_them():
    """At least 55 published numbers, equal ones counted once, lists of timesteps not at all."""
    figures = [number for row in PUBLISHED.values() for number in (row[2], row[4])]
    variances = [0.0, 0.14771, 0.32460, 0.00979, 0.02]
    assert len({*figures, *variances} - {None}) >= 55


EVERY_100 = list(range(900, -1, -100))
HALVES = [900, 850, 850, 800, 800, 750, 750, 700, 700, 650, 650, 600, 600]
EVEN = [1099, 976.8889, 854.7778, 732.6667, 610.5555, 488.4445, 366.3333, 244.2222, 122.1111, 0]
TIMESTEPS = {  # published-numbers.md, section 1; *-offset: test_steps_offset of the test file
    "ddim": ("ddim", DDIM, 10, EVERY_100),
    "ddim-offset": ("ddim", replace(DDIM, steps_offset=1), 5, [801, 601, 401, 201, 1]),
    "pndm": ("pndm", PNDM, 10, HALVES + EVERY_100[4:]),
    "pndm-offset": (
        "pndm",
        replace(PNDM, steps_offset=1),
        10,
        [t + 1 for t in HALVES + EVERY_100[4:]],
    ),
    "lms": ("lms", LMS, 10, EVEN),
    "euler": ("euler", EULER, 10, EVEN),
    "ancestral": ("euler_ancestral", ANCESTRAL, 10, EVEN),
    "heun": ("heun", HEUN, 10, np.repeat(EVEN, 2)[1:].tolist()),
    "dpmpp": ("dpmpp_2m", DPMPP, 10, [999, 899, 799, 699, 599, 500, 400, 300, 200, 100]),
}


@pytest.mark.parametrize(
    ("name", "config", "steps", "published"), TIMESTEPS.values(), ids=TIMESTEPS.keys()
)
def test_timesteps(name: str, config, steps: int, published: list):
    """Those that each loop uses; whole numbers exactly, fractions to the digits printed."""
    got = SCHEDULERS[name][1](config).timesteps(steps)
    exact = got.dtype == np.int64
    assert got.tolist() == (published if exact else pytest.approx(published, abs=1.01e-4))


@pytest.mark.parametrize("loop", ["lms", "euler", "ancestral", "heun", "dpmpp", "ddim"])
def test_initial_sigma(loop: str):
    """published-numbers.md, section 1: of the same runs."""
    name, config, steps, _ = LOOPS[loop]
    published = 1.0 if loop in ("dpmpp", "ddim") else 261.0555725
    got = SCHEDULERS[name][1](config).start(steps).init_noise_sigma
    assert got == pytest.approx(published, rel=1e-6)


@pytest.mark.parametrize(
    ("t", "prev_t", "published"),
    [(0, 0, 0.0), (420, 400, 0.14771), (980, 960, 0.32460), (487, 486, 0.00979), (999, 998, 0.02)],
)
def test_variance_of_ddim(t: int, prev_t: int, published: float):
    """test_variance of test_scheduler_ddim.py, within its 1e-5."""
    assert DDIMScheduler(DDIM).sigma(t, prev_t) ** 2 == pytest.approx(published, abs=1e-5)


@pytest.mark.parametrize(("t", "published"), [(0, 0.0), (487, 0.00979), (999, 0.02)])
def test_variance_of_ddpm(t: int, published: float):
    """test_variance of test_scheduler_ddpm.py, within its 1e-5."""
    assert DDPMScheduler(DDPM).variance(t, t - 1) == pytest.approx(published, abs=1e-5)
