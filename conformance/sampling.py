"""Names and facts of schedulers and pipelines: configurations, tables, steps and their terms."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

SCHEDULERS = ("scheduler/ddpm", "scheduler/ddim", "scheduler/pndm")
TEXT_TO_IMAGE = "pipeline/txt2img"
PIPELINES = (TEXT_TO_IMAGE,)

TABLES = ("betas", "alphas_cumprod", "final_alpha_cumprod")
"""Probes that are judged entry by entry: a norm would not see a wrong fourth digit of one."""

PUBLISHED: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
"""What the schedulers of SD v1 have in common: `scheduler_config.json` of the published files."""

OWN: dict[str, dict[str, Any]] = {
    "ddpm": {"variance_type": "fixed_small", "clip_sample": False, "clip_sample_range": 1.0},
    "ddim": {
        "set_alpha_to_one": False,
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "eta": 0.0,
    },
    "pndm": {"set_alpha_to_one": False, "skip_prk_steps": True},
}
"""What each of them adds."""

RUN = ("num_inference_steps", "begin_index", "eta")
"""Settings of one run, which no `scheduler_config.json` holds."""

SCHEDULER_STEPS = ("model_inputs", "samples")
"""Outputs of a scheduler that hold every step, on the first axis."""

_FIRST, _LAST = 4, 4
_BETWEEN = 8

TEXT_TERMS = ("input_ids", "negative_input_ids", "prompt_embeds", "negative_prompt_embeds")
"""What a pipeline makes of its texts."""

INTEGERS = ("input_ids", "negative_input_ids", "timestep")
"""Terms that are right or wrong, whatever the arithmetic."""

PIPELINE_STEPS = (
    "timestep",
    "model_input",
    "noise_pred_uncond",
    "noise_pred_text",
    "noise_pred",
    "latents",
)
"""What a step of a pipeline computes, in this order: `noise_pred#3` is the fourth guided noise."""

SPLICED_TERMS = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "noise_pred_uncond",
    "noise_pred_text",
    "noise_pred",
    "latents",
    "vae.post_quant_conv.input",
    "vae",
)
"""Terms of a pipeline that something reads, and that splice mode overwrites."""

_BEFORE_STEPS = (*TEXT_TERMS, *TABLES, "timesteps", "initial_latents")
_STEP_TERMS = (*SCHEDULER_STEPS, *PIPELINE_STEPS)
_AFTER_STEPS = ("vae.post_quant_conv.input", "vae", "image", "image_uint8")


def settings(algorithm: str, steps: int, **changes: Any) -> dict[str, Any]:
    """Return the full configuration of a run: SD v1's, with changes; nothing is left to defaults.

    Args:
        algorithm: `ddpm`, `ddim` or `pndm`.
        steps: `num_inference_steps`.
        changes: Settings that differ from SD v1's.

    Returns:
        Names as in `scheduler_config.json`, then `num_inference_steps` and `begin_index`.

    Raises:
        KeyError: A change names no setting of this algorithm.
    """
    config = {**PUBLISHED, **OWN[algorithm], "num_inference_steps": steps, "begin_index": 0}
    unknown = set(changes) - set(config)
    if unknown:
        raise KeyError(*sorted(unknown))
    return config | changes


def calls(algorithm: str, config: dict[str, Any]) -> int:
    """Return how often a run asks the model: once a step; PLMS takes its first step twice."""
    count = int(config["num_inference_steps"])
    twice = algorithm == "pndm" and count > 1
    return count + twice - int(config["begin_index"])


def first_timestep(config: dict[str, Any]) -> int:
    """Return where a run that begins at its beginning asks the model first."""
    count = int(config["num_inference_steps"])
    stride = int(config["num_train_timesteps"]) // count
    return (count - 1) * stride + int(config["steps_offset"])


def adds_noise(algorithm: str, config: dict[str, Any]) -> bool:
    """Return whether the steps of a run add noise."""
    return algorithm == "ddpm" or config.get("eta", 0) > 0


def config_array(config: dict[str, Any]) -> np.ndarray:
    """Return a configuration as it crosses the border: JSON in an array of one string, 0-d."""
    return np.array(json.dumps(config))


def read_config(array: np.ndarray) -> dict[str, Any]:
    """Return what `config_array` wrote."""
    return dict(json.loads(array.item()))


def kept_steps(count: int) -> list[int]:
    """Return the steps that a golden keeps: the first 4, the last 4 and 8 between."""
    if count <= _FIRST + _BETWEEN + _LAST:
        return list(range(count))
    between = np.linspace(_FIRST, count - _LAST - 1, _BETWEEN).round().astype(int)
    return [*range(_FIRST), *between.tolist(), *range(count - _LAST, count)]


def pipeline_terms(count: int, *, guided: bool) -> list[str]:
    """Return the terms of a text-to-image run that a golden keeps, in the order of execution.

    Args:
        count: How often the UNet is asked.
        guided: Whether the unconditional branch is evaluated.
    """
    steps = [step_name(term, k) for k in kept_steps(count) for term in PIPELINE_STEPS]
    names = [*TEXT_TERMS, "initial_latents", *steps, "vae.post_quant_conv.input", "vae"]
    if guided:
        return names
    without = {"negative_input_ids", "negative_prompt_embeds", "noise_pred_uncond"}
    return [name for name in names if term_and_step(name)[0] not in without]


def step_name(term: str, step: int) -> str:
    """Return the name of one step's term."""
    return f"{term}#{step}"


def term_and_step(name: str) -> tuple[str, int | None]:
    """Return the term that a name means, and its step where it has one."""
    term, _, step = name.partition("#")
    return term, int(step) if step else None


def place(name: str) -> tuple[int, int, int]:
    """Return where a term stands in the order of execution, for sorting."""
    term, step = term_and_step(name)
    if step is not None:
        return 1, step, _STEP_TERMS.index(term)
    if term in _STEP_TERMS:  # all steps at once, when there are too few or too many of them
        return 0, 1, _STEP_TERMS.index(term)
    if term in _BEFORE_STEPS:
        return 0, 0, _BEFORE_STEPS.index(term)
    return 2, 0, _AFTER_STEPS.index(term)
