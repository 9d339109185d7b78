"""What every scheduler promises of its runs: what it refuses, keeps, and leaves alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sd1_impl.schedulers import SCHEDULERS, NoiseSchedule, Run

SD_V1 = {name: config() for name, (config, _) in SCHEDULERS.items()}
KARRAS = ("lms", "euler", "heun", "dpmpp_2m")


def ours(name: str, config) -> NoiseSchedule:
    """Return our scheduler of a config."""
    return SCHEDULERS[name][1](config)


def random(seed: int, dtype: torch.dtype) -> Tensor:
    """Return normal data, another for each seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((2, 2, 2, 3), generator=generator, dtype=dtype)


def walk(scheduler: NoiseSchedule, run: Run, dtype: torch.dtype) -> list[Tensor]:
    """Return every sample of a run."""
    sample, samples = random(0, dtype) * run.init_noise_sigma, []
    for i, t in enumerate(run.timesteps.tolist()):
        noise = (random(-i - 1, dtype),) if scheduler.adds_noise(t) else ()
        sample = scheduler.step(random(i + 1, dtype), t, sample, run, *noise)
        samples.append(sample)
    return samples


@pytest.mark.parametrize("name", ["ddim", "pndm", "lms", "euler_ancestral"])
def test_timesteps_of_the_callers_own_are_refused(name: str):
    """A scheduler that takes none says so."""
    with pytest.raises(ValueError, match=r"timesteps are given, but .* chooses its own"):
        ours(name, SD_V1[name]).start(timesteps=[999, 0])


BAD_TIMESTEPS = {
    "rising": ("euler", [0, 999], "expected decreasing ones"),
    "twice": ("ddpm", [999, 999], "expected decreasing ones"),
    "empty": ("ddpm", [], "expected decreasing ones"),
    "nan": ("heun", [999.0, float("nan")], "expected decreasing ones"),
    "beyond": ("heun", [1000, 0], "expected 0 to 999"),
    "negative": ("dpmpp_2m", [999, -1], "expected 0 to 999"),
    "fraction": ("dpmpp_2m", [999.5, 1.5], "expected 0 to 999"),
    "fractions": ("ddpm", [998.5, 1.5], "expected integers"),
}


@pytest.mark.parametrize(("name", "own", "message"), BAD_TIMESTEPS.values(), ids=BAD_TIMESTEPS)
def test_wrong_timesteps_are_refused(name: str, own: list, message: str):
    """Timesteps outside of the table, or in no order, are named."""
    with pytest.raises(ValueError, match=f"timesteps are .*{message}"):
        ours(name, SD_V1[name]).start(timesteps=own)


LEADING, NO_OFFSET = {"timestep_spacing": "leading"}, {"steps_offset": 0}
REFUSED = {
    "none": ("lms", {}, {}, "either num_inference_steps or timesteps"),
    "both": ("euler", {}, {"num_inference_steps": 1, "timesteps": [1]}, "either num_inference"),
    "zero": ("euler", {}, {"num_inference_steps": 0}, "num_inference_steps is 0, expected 1"),
    "many": ("heun", {}, {"num_inference_steps": 1001}, "num_inference_steps is 1001, expected 1"),
    "ddim-offset": ("ddim", {}, {"num_inference_steps": 1000}, "'leading' and steps_offset 1"),
    "lms-offset": ("lms", LEADING, {"num_inference_steps": 1000}, "'leading' and steps_offset 1"),
    "dpmpp-leading": ("dpmpp_2m", LEADING, {"num_inference_steps": 999}, "steps_offset 1 begin at"),
    "dpmpp-leading-1000": (
        "dpmpp_2m", LEADING | NO_OFFSET, {"num_inference_steps": 1000}, "spacing 'leading' there",
    ),
    "dpmpp-linspace": (
        "dpmpp_2m", {}, {"num_inference_steps": 1000}, "timestep_spacing 'linspace' there are not",
    ),
    "plms-one": ("pndm", {}, {"num_inference_steps": 1}, "num_inference_steps is 1, expected 2"),
    "prk-three": (
        "pndm", {"skip_prk_steps": False}, {"num_inference_steps": 3}, "4 or more with skip_prk_st",
    ),
    "prk-late": (
        "pndm",
        {"skip_prk_steps": False},
        {"num_inference_steps": 10, "begin_index": 1},
        "begin_index is 1, expected 0 with skip_prk_steps",
    ),
    "karras-own": (
        "euler", {"use_karras_sigmas": True}, {"timesteps": [1]}, "but use_karras_sigmas makes",
    ),
    "heun-odd": ("heun", {}, {"num_inference_steps": 9, "begin_index": 3}, "begin_index is 3, exp"),
    "late": ("lms", {}, {"num_inference_steps": 9, "begin_index": 9}, "begin_index is 9, expected"),
    "early": ("ddim", {}, {"num_inference_steps": 9, "begin_index": -1}, "begin_index is -1, exp"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changes", "arguments", "message"), REFUSED.values(), ids=REFUSED.keys()
)
def test_a_run_that_there_is_not_is_refused(
    name: str, changes: dict, arguments: dict, message: str
):
    """Where diffusers raises, leaves its table or is not finite, the setting is named."""
    with pytest.raises(ValueError, match=message):
        ours(name, replace(SD_V1[name], **changes)).start(**arguments)


BAD_SETTINGS = {
    "spacing": ("ddim", {"timestep_spacing": "even"}, "timestep_spacing is 'even', expected one"),
    "pndm-x0": ("pndm", {"prediction_type": "sample"}, "prediction_type is 'sample', expected"),
    "ancestral-x0": ("euler_ancestral", {"prediction_type": "sample"}, "prediction_type is 'sam"),
    "ancestral-karras": ("euler_ancestral", {"use_karras_sigmas": True}, "use_karras_sigmas is T"),
    "log-large": ("ddpm", {"variance_type": "fixed_large_log"}, "variance_type is 'fixed_large_l"),
    "learned": ("ddpm", {"variance_type": "learned_range"}, "variance_type is 'learned_range', e"),
    "end": ("euler", {"final_sigmas_type": "one"}, "final_sigmas_type is 'one', expected one of"),
    "dpmpp-end": ("dpmpp_2m", {"final_sigmas_type": ""}, "final_sigmas_type is '', expected one"),
    "range": ("heun", {"clip_sample_range": 0.0}, "clip_sample_range is 0.0, expected more"),
    "ddim-range": ("ddim", {"clip_sample_range": -1.0}, "clip_sample_range is -1.0, expected mo"),
}


@pytest.mark.parametrize(
    ("name", "changes", "message"), BAD_SETTINGS.values(), ids=BAD_SETTINGS.keys()
)
def test_a_setting_that_there_is_not_is_refused(name: str, changes: dict, message: str):
    """Nothing is passed over in silence."""
    with pytest.raises(ValueError, match=message):
        replace(SD_V1[name], **changes)


@pytest.mark.parametrize("name", SD_V1)
def test_a_scheduler_used_twice_gives_the_same_bits(name: str):
    """Nothing of a run, given up or finished, is left behind; the order of runs does not matter."""
    changes = {"use_karras_sigmas": True} if name in KARRAS else {}
    scheduler = ours(name, replace(SD_V1[name], **changes))
    first = walk(scheduler, scheduler.start(7), torch.float32)
    walk(scheduler, scheduler.start(20, begin_index=4), torch.float32)
    scheduler.start(50)
    again = walk(scheduler, scheduler.start(7), torch.float32)
    anew = walk(ours(name, scheduler.config), scheduler.start(7), torch.float32)
    for a, b, c in zip(first, again, anew, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*KARRAS, "euler_ancestral"])
def test_half_types_stay_half_types(name: str, dtype: torch.dtype):
    """A step computes in float32, and returns what it was given; nothing is edited."""
    scheduler = ours(name, SD_V1[name])
    half, single = scheduler.start(7), scheduler.start(7)
    sample = random(0, dtype) * half.init_noise_sigma
    for i, t in enumerate(half.timesteps):
        output, noise = random(i + 1, dtype), random(-i - 1, dtype)
        copies = sample.clone(), output.clone()
        wide = scheduler.step(output.float(), t, sample.float(), single, noise.float())
        new = scheduler.step(output, t, sample, half, noise)
        assert torch.equal(sample, copies[0])
        assert torch.equal(output, copies[1])
        assert new.dtype == dtype
        assert torch.equal(new, wide.to(dtype))
        sample = new


@pytest.mark.parametrize("name", [*KARRAS, "euler_ancestral"])
def test_steps_out_of_turn_are_refused(name: str):
    """A run in sigmas goes from its first timestep to its last, once; float32 is read."""
    scheduler, x = ours(name, SD_V1[name]), random(0, torch.float64)
    run = scheduler.start(4)
    second = run.timesteps[1]
    with pytest.raises(ValueError, match=f"timestep {second:g} is not the one to come, {999:g}: a"):
        scheduler.step(x, second, x, run, x)
    with pytest.raises(ValueError, match=r"model_output has shape \(1, .* sample has \(2, "):
        scheduler.step(x[:1], run.timesteps[0], x, run, x)
    if scheduler.adds_noise(second):
        with pytest.raises(ValueError, match="noise is missing: the step from timestep 999"):
            scheduler.step(x, run.timesteps[0], x, run)
        with pytest.raises(ValueError, match=r"noise has shape \(1, .* sample has \(2, "):
            scheduler.step(x, run.timesteps[0], x, run, x[:1])
    else:
        assert scheduler.step(x, run.timesteps[0], x, scheduler.start(4)).isfinite().all()
    for t in run.timesteps.astype(np.float32):
        scheduler.scale_model_input(x, torch.tensor(t), run)
        scheduler.step(x, torch.tensor(t), x, run, x)
    with pytest.raises(ValueError, match="the run has ended: timestep 999 needs a new start"):
        scheduler.step(x, 999, x, run, x)
    if name != "dpmpp_2m":
        with pytest.raises(ValueError, match="run is missing"):
            scheduler.scale_model_input(x, 999)
