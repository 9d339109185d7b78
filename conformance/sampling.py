"""Names and facts of schedulers and pipelines: configurations, tables, steps and their terms."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import numpy as np

SIGMA_FAMILY = ("lms", "euler", "euler_ancestral", "heun", "dpmpp_2m")
"""Schedulers that count in sigmas: a run has a grid of its own."""
ALGORITHMS = ("ddpm", "ddim", "pndm", *SIGMA_FAMILY)
SCHEDULERS = tuple(f"scheduler/{name}" for name in ALGORITHMS)

TEXT_TO_IMAGE = "pipeline/txt2img"
IMAGE_TO_IMAGE = "pipeline/img2img"
INPAINT = "pipeline/inpaint"
PIPELINES = (TEXT_TO_IMAGE, IMAGE_TO_IMAGE, INPAINT)

TIMESTEPS = "timesteps"
"""Output of a scheduler; where they have fractions, judged entry by entry too."""

_SCHEDULE_TABLES = ("betas", "alphas_cumprod")
_OWN_TABLES = {
    **dict.fromkeys(ALGORITHMS, ("final_alpha_cumprod",)),
    **dict.fromkeys(SIGMA_FAMILY, ("sigmas", "init_noise_sigma")),
    "dpmpp_2m": ("sigmas", "lambdas", "init_noise_sigma"),
}
TABLES = (*_SCHEDULE_TABLES, "final_alpha_cumprod", "sigmas", "lambdas", "init_noise_sigma")
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

_GRID: dict[str, Any] = {"timestep_spacing": "linspace", "use_karras_sigmas": False}
"""Samplers in sigmas came to SD v1 with k-diffusion, whose grid has fractions."""

OWN: dict[str, dict[str, Any]] = {
    "ddpm": {"variance_type": "fixed_small", "clip_sample": False, "clip_sample_range": 1.0},
    "ddim": {
        "set_alpha_to_one": False,
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "eta": 0.0,
    },
    "pndm": {"set_alpha_to_one": False, "skip_prk_steps": True},
    "lms": _GRID,
    "euler": {**_GRID, "final_sigmas_type": "zero"},
    "euler_ancestral": {"timestep_spacing": "linspace"},
    "heun": {**_GRID, "clip_sample": False, "clip_sample_range": 1.0},
    "dpmpp_2m": {
        **_GRID,
        "final_sigmas_type": "zero",
        "lower_order_final": True,
        "euler_at_final": False,
    },
}
"""What each of them adds, or has other than the others."""

RUN = ("num_inference_steps", "begin_index", "eta")
"""Settings of one run, which no `scheduler_config.json` holds."""

SCHEDULER_STEPS = ("model_inputs", "samples")
"""Outputs of a scheduler that hold every step, on the first axis."""

_FIRST, _LAST = 4, 4
_BETWEEN = 8

TEXT_TERMS = ("input_ids", "negative_input_ids", "prompt_embeds", "negative_prompt_embeds")
"""What a pipeline makes of its texts."""

IMAGE_TERMS = ("init_image", "image_latents", "mask", "masked_image", "masked_image_latents")
"""What a pipeline makes of its picture and mask."""

INTEGERS = ("input_ids", "negative_input_ids", "timestep", "mask")
"""Terms that are right or wrong, whatever the arithmetic; timesteps where they are whole."""

PIPELINE_STEPS = (
    "timestep",
    "model_input",
    "noise_pred_uncond",
    "noise_pred_text",
    "noise_pred",
    "unblended",
    "latents",
)
"""What a step of a pipeline computes, in this order: `noise_pred#3` is the fourth guided noise."""

SPLICED_TERMS = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "init_image",
    "image_latents",
    "masked_image",
    "masked_image_latents",
    "initial_latents",
    "noise_pred_uncond",
    "noise_pred_text",
    "noise_pred",
    "unblended",
    "latents",
    "vae.post_quant_conv.input",
    "vae",
)
"""Terms of a pipeline that something reads, and that splice mode overwrites."""

_BEFORE_STEPS = (*TEXT_TERMS, *IMAGE_TERMS, *TABLES, TIMESTEPS, "initial_latents")
_STEP_TERMS = (*SCHEDULER_STEPS, *PIPELINE_STEPS)
_AFTER_STEPS = ("vae.post_quant_conv.input", "vae", "image", "image_uint8")


def tables(algorithm: str, *, schedule: bool = True) -> tuple[str, ...]:
    """Return the tables of a scheduler.

    Args:
        algorithm: One of `ALGORITHMS`.
        schedule: Whether those of the noise schedule are among them, which all runs share.
    """
    own = _OWN_TABLES[algorithm]
    return (*_SCHEDULE_TABLES, *own) if schedule else own


def settings(algorithm: str, steps: int, **changes: Any) -> dict[str, Any]:
    """Return the full configuration of a run: SD v1's, with changes; nothing is left to defaults.

    Args:
        algorithm: One of `ALGORITHMS`.
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


WARM_UP = 12
"""Calls of three Runge-Kutta steps, with which PNDM begins where `skip_prk_steps` is false."""


def calls(algorithm: str, config: dict[str, Any]) -> int:
    """Return how often a run asks the model.

    Once a step; PLMS takes its first step twice, Runge-Kutta steps ask four times, and Heun's twice
    but for the last, which arrives at the clean sample.
    """
    count = int(config["num_inference_steps"])
    if algorithm == "pndm" and not config["skip_prk_steps"]:
        count += WARM_UP - 3
    elif algorithm == "pndm" and count > 1:
        count += 1
    elif algorithm == "heun":
        count = 2 * count - 1
    return count - int(config["begin_index"])


def first_timestep(algorithm: str, config: dict[str, Any]) -> float:
    """Return about where a run asks the model first, which is the largest of its timesteps."""
    count, last = int(config["num_inference_steps"]), int(config["num_train_timesteps"]) - 1
    late = int(config["begin_index"])
    if algorithm == "heun":
        late //= 2
    elif algorithm == "pndm":
        late -= late > 1
    if config["timestep_spacing"] == "leading":
        count += algorithm == "dpmpp_2m"
        stride = (last + 1) // count
        return (count - 1 - late) * stride + int(config["steps_offset"])
    return last * (1 - late / max(1, count - 1))


_PAST_THE_TABLE = "reads past its table"


def refusal(algorithm: str, config: dict[str, Any]) -> str:
    """Say why the reference computes nothing in a configuration; empty where it does."""
    count, total = int(config["num_inference_steps"]), int(config["num_train_timesteps"])
    spacing, offset = config["timestep_spacing"], int(config["steps_offset"])
    if algorithm == "pndm" and count == 1:
        return (
            "PLMS takes its first step twice, from a second prediction; with one timestep there is "
            "none, and the reference silently predicts once"
        )
    more = algorithm == "dpmpp_2m"  # its grid has one timestep more, and leaves the last out
    if more and config["use_karras_sigmas"]:
        return ""  # what is asked for by sigma is on no grid of timesteps
    if spacing == "leading":
        intervals = count + more
        first = (intervals - 1) * (total // intervals) + offset
        if first >= total or total // intervals == 0:
            clamped = algorithm in SIGMA_FAMILY and not more
            return (
                f"{count} steps with steps_offset {offset} begin at timestep {first}: the "
                f"reference {'has the sigma of the last for it' if clamped else _PAST_THE_TABLE}"
            )
    if spacing == "linspace" and more and count >= total:
        return (
            f"{count + 1} evenly spaced timesteps of {total} are not all different when rounded: "
            "two sigmas are equal, and the reference divides by their difference"
        )
    return ""


def adds_noise(algorithm: str, config: dict[str, Any]) -> bool:
    """Return whether the steps of a run add noise."""
    return algorithm in {"ddpm", "euler_ancestral"} or config.get("eta", 0) > 0


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


def pipeline_terms(count: int, without: Collection[str] = ()) -> list[str]:
    """Return the terms of a pipeline's run that a golden keeps, in the order of execution.

    Args:
        count: How often the UNet is asked.
        without: Terms that this run has not.
    """
    steps = [step_name(term, k) for k in kept_steps(count) for term in PIPELINE_STEPS]
    before = [*TEXT_TERMS, *IMAGE_TERMS, "initial_latents"]
    names = [*before, *steps, "vae.post_quant_conv.input", "vae"]
    return [name for name in names if term_and_step(name)[0] not in without]


def steps_left_out(algorithm: str, steps: int, strength: float) -> int:
    """Return `begin_index` of a run that begins with a picture: how many calls are left out.

    Args:
        algorithm: One of `ALGORITHMS`.
        steps: `num_inference_steps`.
        strength: Share of the steps that are made, rounded down.
    """
    left_out = steps - min(int(steps * strength), steps)
    return left_out * (2 if algorithm == "heun" else 1)


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
