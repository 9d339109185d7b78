"""What the JSON files of a diffusers checkpoint say, in the words of `sd1_impl.config`.

diffusers has many more options than SD v1 needs. Each one has one of four fates, and none is passed
over in silence:

- it is a number of the model, and becomes a field of a config;
- it is a fact of SD v1, in the code or in a config's default: any other value is an error;
- it says nothing about what is computed, and is not read;
- it is not known here: then it has to be off (null, false or 0), or it is an error.

Sources: ``UNet2DConditionModel``, ``AutoencoderKL`` and the schedulers of diffusers,
``CLIPTextConfig`` of transformers.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from sd1_impl.config import TextEncoderConfig, UNetConfig, VAEConfig
from sd1_impl.schedulers import SCHEDULERS, Scheduler

Config = TypeVar("Config")


class CheckpointError(ValueError):
    """Files are not those of a Stable Diffusion v1: which file, what in it, what was expected."""


@dataclass(frozen=True)
class Options:
    """What is known of a file's options.

    Attributes:
        required: Option to config field, of those that have to be there.
        optional: Of those that may be absent: the config's default is diffusers'.
        facts: Option to the one value that it may have, and has if it is absent: that of
            `sd1_impl.config`'s defaults, or of the code.
        unread: Options that change nothing in what is computed, or that are read elsewhere.
    """

    required: Mapping[str, str] = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    unread: frozenset[str] = frozenset()


def _same(*names: str) -> dict[str, str]:
    """Map options to the fields of the same name."""
    return {name: name for name in names}


_ORIGIN = frozenset({"_diffusers_version", "_name_or_path"})
_BLOCKS = frozenset({"down_block_types", "up_block_types"})

UNET = Options(
    required=_same("in_channels", "block_out_channels", "layers_per_block")
    | _same("cross_attention_dim", "norm_num_groups"),
    facts={
        "_class_name": "UNet2DConditionModel",
        "out_channels": 4,
        "act_fn": "silu",
        "attention_type": "default",
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_eps": 1e-5,
        "resnet_out_scale_factor": 1,
        "resnet_time_scale_shift": "default",
        "time_embedding_type": "positional",
        "transformer_layers_per_block": 1,
    },
    # Dropout is training's; the heads are those of an embedding that has to be off.
    unread=_ORIGIN
    | _BLOCKS
    | {"attention_head_dim", "sample_size", "dropout", "addition_embed_type_num_heads"},
)

VAE = Options(
    required=_same("latent_channels", "block_out_channels", "layers_per_block", "norm_num_groups"),
    optional=_same("scaling_factor"),
    facts={
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "act_fn": "silu",
        "mid_block_add_attention": True,
        "use_post_quant_conv": True,
        "use_quant_conv": True,
    },
    # force_upcast asks a pipeline in float16 not to decode in it: here dtypes are the caller's.
    unread=_ORIGIN | _BLOCKS | {"sample_size", "force_upcast"},
)

TEXT_ENCODER = Options(
    required=_same("hidden_size", "intermediate_size")
    | {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"},
    facts={
        "model_type": "clip_text_model",
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 77,
        "vocab_size": 49_408,
    },
    # Training's dropout and first weights; CLIP's projection, which SD v1 does without; the
    # tokenizer's ids.
    unread=_ORIGIN
    | {"architectures", "dtype", "torch_dtype", "transformers_version", "projection_dim"}
    | {"attention_dropout", "dropout", "initializer_factor", "initializer_range"}
    | {"bos_token_id", "eos_token_id", "pad_token_id"},
)

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


def read_unet_config(path: Path) -> UNetConfig:
    """Read ``unet/config.json``.

    Args:
        path: The file.

    Returns:
        The UNet's numbers.

    Raises:
        CheckpointError: If it cannot be read, or if it is not the config of an SD v1 UNet.
    """
    given = _read(path)
    numbers = _translate(path, given, UNET, UNetConfig)
    levels = numbers["block_out_channels"]
    # Not a size, but the number of heads: from the finest level to the coarsest, or one for all.
    heads = given.get("attention_head_dim")
    heads = [heads] * len(levels) if isinstance(heads, int) else heads
    numbers["num_heads"] = _typed(path, "attention_head_dim", heads, ())
    down = _kinds(path, "down_block_types", given, levels, "CrossAttnDownBlock2D", "DownBlock2D")
    up = _kinds(path, "up_block_types", given, levels, "CrossAttnUpBlock2D", "UpBlock2D")
    if down != up[::-1]:
        raise CheckpointError(f"{path}: up_block_types are not the down_block_types backwards")
    numbers["has_attention"] = tuple(kind == 0 for kind in down)
    return _build(path, UNetConfig, numbers)


def read_vae_config(path: Path) -> VAEConfig:
    """Read ``vae/config.json``; as `read_unet_config`."""
    given = _read(path)
    numbers = _translate(path, given, VAE, VAEConfig)
    levels = numbers["block_out_channels"]
    _kinds(path, "down_block_types", given, levels, "DownEncoderBlock2D")
    _kinds(path, "up_block_types", given, levels, "UpDecoderBlock2D")
    return _build(path, VAEConfig, numbers)


def read_text_encoder_config(path: Path) -> TextEncoderConfig:
    """Read ``text_encoder/config.json``; as `read_unet_config`."""
    given = _read(path)
    return _build(path, TextEncoderConfig, _translate(path, given, TEXT_ENCODER, TextEncoderConfig))


def read_scheduler(path: Path) -> Scheduler:
    """Read ``scheduler/scheduler_config.json``.

    Args:
        path: The file.

    Returns:
        The scheduler that it describes.

    Raises:
        CheckpointError: If it cannot be read, or if it asks for what is not implemented.
    """
    given = _read(path)
    kinds = {scheduler.__name__: (config, scheduler) for config, scheduler in SCHEDULERS.values()}
    name = given.get("_class_name")
    if name not in list(kinds):
        raise CheckpointError(
            f"{path}: _class_name is {name!r}, expected one of {', '.join(kinds)}"
        )
    config, scheduler = kinds[name]
    # eta is an argument of diffusers' steps, and min_variance in its code: neither is an option.
    names = {entry.name for entry in fields(config)} - {"eta", "min_variance"}
    unread = _ORIGIN | {"_class_name"} | (_SCHEDULER_UNREAD - names)
    facts = {name: fact for name, fact in _SCHEDULER_FACTS.items() if name not in names | unread}
    known = Options(optional=_same(*names), facts=facts, unread=unread)
    given = {option: value for option, value in given.items() if value is not None}
    given = _SCHEDULER_DEFAULTS | _DEFAULTS_OF.get(name, {}) | given
    return scheduler(_build(path, config, _translate(path, given, known, config)))


def _read(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(given, dict):
        raise CheckpointError(f"{path}: expected an object of options")
    return given


def _translate(path: Path, given: dict[str, Any], known: Options, config: type) -> dict[str, Any]:
    """Return the fields that a file gives a config, having looked at every option."""
    for option, fact in known.facts.items():
        if given.get(option, fact) != fact:
            raise CheckpointError(
                f"{path}: {option} is {given[option]!r}, but in Stable Diffusion v1 it is {fact!r}"
            )
    names = {**known.required, **known.optional}
    for option, value in given.items():
        if option not in {*names, *known.facts, *known.unread} and value not in (None, False):
            raise CheckpointError(
                f"{path}: {option} is {value!r}, which is not known here: it has to be off"
            )
    missing = known.required.keys() - given.keys()
    if missing:
        raise CheckpointError(f"{path}: missing {', '.join(sorted(missing))}")
    defaults = {entry.name: entry.default for entry in fields(config)}
    return {
        name: _typed(path, option, given[option], defaults[name])
        for option, name in names.items()
        if option in given
    }


def _typed(path: Path, option: str, value: Any, example: Any) -> Any:
    """Return a value in the example's type: a list as a tuple, an int as a float."""
    if isinstance(value, list) and all(type(entry) is int for entry in value):
        value = tuple(value)
    if type(value) is int and isinstance(example, float):
        value = float(value)
    if type(value) is not type(example):
        kind = "list of int" if isinstance(example, tuple) else type(example).__name__
        raise CheckpointError(f"{path}: {option} is {value!r}, expected {kind}")
    return value


def _kinds(
    path: Path, option: str, given: dict[str, Any], levels: tuple[int, ...], *names: str
) -> list[int]:
    """Return for each level which of the names its block type is."""
    types = given.get(option)
    if (
        not isinstance(types, list)
        or len(types) != len(levels)
        or any(t not in names for t in types)
    ):
        raise CheckpointError(
            f"{path}: {option} is {types!r}, expected {len(levels)} of {' or '.join(names)}"
        )
    return [names.index(kind) for kind in types]


def _build(path: Path, config: type[Config], numbers: dict[str, Any]) -> Config:
    """Make a config; what it refuses is the file's fault."""
    try:
        return config(**numbers)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
