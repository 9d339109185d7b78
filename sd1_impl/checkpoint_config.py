"""What the JSON files of a diffusers checkpoint say, in the words of `sd1_impl.config`.

Those of the networks are read by `sd1_weights.config_files`; for a scheduler's the same holds:
every option is a field of its config, a fact, known to change nothing, or off; any other is an
error.

Source: the schedulers of diffusers.
"""

import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from sd1_impl.config import TextEncoderConfig, UNetConfig, VAEConfig
from sd1_impl.schedulers import SCHEDULERS, Scheduler
from sd1_weights.config_files import ORIGIN, Options, read_config, read_json, same, translate
from sd1_weights.errors import CheckpointError

Config = TypeVar("Config")

# What a scheduler's file leaves out has diffusers' default, which is not always SD v1's.
_SCHEDULER_DEFAULTS = {
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "steps_offset": 0,
}
_DEFAULTS_OF = {
    "DDPMScheduler": {"clip_sample": True},
    "DDIMScheduler": {"clip_sample": True, "set_alpha_to_one": True},
    "PNDMScheduler": {"skip_prk_steps": False},
    "HeunDiscreteScheduler": {"beta_start": 0.00085, "beta_end": 0.012},
}
# Where they are no fields: diffusers leaves options of one scheduler in the file of another, and
# has other algorithms in the same class.
_SCHEDULER_FACTS = {
    entry.name: entry.default for config, _ in SCHEDULERS.values() for entry in fields(config)
} | {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "lambda_min_clipped": -math.inf,
    "interpolation_type": "linear",
    "timestep_type": "discrete",
}
# What thresholding and flow, which have to be off, would need; and DDPM always ends at alpha 1.
_SCHEDULER_UNREAD = {
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "flow_shift",
    "time_shift_type",
    "set_alpha_to_one",
}
# eta is an argument of diffusers' steps, and min_variance in its code: neither is an option.
_ARGUMENTS = {"eta", "min_variance"}


def read_unet_config(path: Path) -> UNetConfig:
    """Read ``unet/config.json``.

    Args:
        path: The file.

    Returns:
        The UNet's numbers.

    Raises:
        CheckpointError: If it cannot be read, or if it is not the config of an SD v1 UNet.
    """
    return _build(path, UNetConfig, read_config("unet", path))


def read_vae_config(path: Path) -> VAEConfig:
    """Read ``vae/config.json``; as `read_unet_config`."""
    return _build(path, VAEConfig, read_config("vae", path))


def read_text_encoder_config(path: Path) -> TextEncoderConfig:
    """Read ``text_encoder/config.json``; as `read_unet_config`."""
    return _build(path, TextEncoderConfig, read_config("text_encoder", path))


def read_scheduler(path: Path) -> Scheduler:
    """Read ``scheduler/scheduler_config.json``.

    Args:
        path: The file.

    Returns:
        The scheduler that it describes.

    Raises:
        CheckpointError: If it cannot be read, or if it asks for what is not implemented.
    """
    given = read_json(path)
    kinds = {scheduler.__name__: (config, scheduler) for config, scheduler in SCHEDULERS.values()}
    name = given.get("_class_name")
    if name not in list(kinds):
        raise CheckpointError(
            f"{path}: _class_name is {name!r}, expected one of {', '.join(kinds)}"
        )
    config, scheduler = kinds[name]
    names = {entry.name for entry in fields(config)} - _ARGUMENTS
    unread = ORIGIN | {"_class_name"} | (_SCHEDULER_UNREAD - names)
    facts = {name: fact for name, fact in _SCHEDULER_FACTS.items() if name not in names | unread}
    known = Options(optional=same(*names), facts=facts, unread=unread)
    given = {option: value for option, value in given.items() if value is not None}
    given = _SCHEDULER_DEFAULTS | _DEFAULTS_OF.get(name, {}) | given
    examples = {entry.name: entry.default for entry in fields(config)}
    return scheduler(_build(path, config, translate(path, given, known, examples)))


def scheduler_options(scheduler: Scheduler) -> dict[str, Any]:
    """Return what ``scheduler_config.json`` says of a scheduler: what `read_scheduler` reads."""
    options = {
        name: value for name, value in asdict(scheduler.config).items() if name not in _ARGUMENTS
    }
    return {"_class_name": type(scheduler).__name__, **options}


def _build(path: Path, config: type[Config], numbers: dict[str, Any]) -> Config:
    """Make a config; what it refuses is the file's fault."""
    try:
        return config(**numbers)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
