"""What the JSON files of a diffusers checkpoint say, option by option.

diffusers has many more options than SD v1 needs. Each one has one of four fates, and none is passed
over in silence:

- it is a number of the model, and is returned;
- it is a fact of SD v1: any other value is an error;
- it says nothing about what is computed, and is not read;
- it is not known here: then it has to be off (null, false or 0), or it is an error.

Sources: ``UNet2DConditionModel`` and ``AutoencoderKL`` of diffusers, ``CLIPTextConfig`` of
transformers.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sd1_weights.errors import CheckpointError
from sd1_weights.pickles import shown
from sd1_weights.safetensors_file import unique_names

_MOST = 2**16
"""Of a number: SD v1's largest is 3,072. Networks are built before their shapes are compared."""

_MOST_LAYERS = 32
_MOST_LEVELS = 8
_LAYERS = frozenset({"layers_per_block", "num_hidden_layers"})
_HEADS = "attention_head_dim"
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Options:
    """What is known of a file's options.

    Attributes:
        required: Option to what it is called here, of those that have to be there.
        optional: Of those that may be absent.
        facts: Option to the one value that it may have, and has if it is absent.
        unread: Options that change nothing in what is computed, or that are read elsewhere.
    """

    required: Mapping[str, str] = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    unread: frozenset[str] = frozenset()


def same(*names: str) -> dict[str, str]:
    """Map options to the fields of the same name."""
    return {name: name for name in names}


ORIGIN = frozenset({"_diffusers_version", "_name_or_path"})
_BLOCKS = frozenset({"down_block_types", "up_block_types"})

EXAMPLES: dict[str, Any] = (
    dict.fromkeys(("in_channels", "out_channels", "latent_channels", "layers_per_block"), 0)
    | dict.fromkeys(("cross_attention_dim", "norm_num_groups", "hidden_size"), 0)
    | dict.fromkeys(("intermediate_size", "num_layers", "num_heads"), 0)
    | {"block_out_channels": (), "scaling_factor": 0.0}
)
"""Numbers of a model, each by a value of its type."""

UNET = Options(
    required=same("in_channels", "block_out_channels", "layers_per_block")
    | same("cross_attention_dim", "norm_num_groups"),
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
    # Dropout is training's; the heads are those of an embedding that has to be off. Projections
    # compute the same as linear layers of tokens and as 1x1 convolutions of maps.
    unread=ORIGIN
    | _BLOCKS
    | {_HEADS, "sample_size", "dropout", "addition_embed_type_num_heads"}
    | {"use_linear_projection"},
)

VAE = Options(
    required=same("latent_channels", "block_out_channels", "layers_per_block", "norm_num_groups"),
    optional=same("scaling_factor"),
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
    unread=ORIGIN | _BLOCKS | {"sample_size", "force_upcast"},
)

TEXT_ENCODER = Options(
    required=same("hidden_size", "intermediate_size")
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
    unread=ORIGIN
    | {"architectures", "dtype", "torch_dtype", "transformers_version", "projection_dim"}
    | {"attention_dropout", "dropout", "initializer_factor", "initializer_range"}
    | {"bos_token_id", "eos_token_id", "pad_token_id"},
)

OPTIONS = {"unet": UNET, "vae": VAE, "text_encoder": TEXT_ENCODER}
"""By network."""


def read_config(network: str, path: Path) -> dict[str, Any]:
    """Read the `config.json` of a network.

    Args:
        network: `unet`, `vae` or `text_encoder`.
        path: The file.

    Returns:
        Its numbers, by the names of `golden/spec/variants.json`, lists as tuples; of the UNet also
        `has_attention`, of the VAE `scaling_factor` where it is there.

    Raises:
        CheckpointError: It cannot be read, or it is not the config of an SD v1 network.
    """
    given = read_json(path)
    known = OPTIONS[network]
    numbers = translate(path, given, known, EXAMPLES)
    _check_sizes(path, given, (*known.required, *known.optional))
    if network == "unet":
        numbers |= _unet_levels(path, given, numbers["block_out_channels"])
    elif network == "vae":
        levels = numbers["block_out_channels"]
        _kinds(path, "down_block_types", given, levels, "DownEncoderBlock2D")
        _kinds(path, "up_block_types", given, levels, "UpDecoderBlock2D")
    return numbers


def _unet_levels(path: Path, given: dict[str, Any], levels: tuple[int, ...]) -> dict[str, Any]:
    """Return heads and attention of every level, from the finest to the coarsest."""
    # Not a size, but the number of heads: from the finest level to the coarsest, or one for all.
    heads = given.get(_HEADS)
    heads = [heads] * len(levels) if isinstance(heads, int) else heads
    down = _kinds(path, "down_block_types", given, levels, "CrossAttnDownBlock2D", "DownBlock2D")
    up = _kinds(path, "up_block_types", given, levels, "CrossAttnUpBlock2D", "UpBlock2D")
    if down != up[::-1]:
        raise CheckpointError(f"{path}: up_block_types are not the down_block_types backwards")
    num_heads = _typed(path, _HEADS, heads, ())
    _check_sizes(path, given, [_HEADS])
    return {
        "num_heads": num_heads,
        "has_attention": tuple(kind == 0 for kind in down),
    }


def _check_sizes(path: Path, given: Mapping[str, Any], options: Iterable[str]) -> None:
    """Refuse a network without width or depth, or so deep that building it takes long."""
    for option in options:
        value = given.get(option, 1)
        values = value if isinstance(value, list) else [value]
        if len(values) > _MOST_LEVELS:
            raise CheckpointError(
                f"{path}: {option} has {len(values)} entries, expected at most {_MOST_LEVELS}"
            )
        most = _MOST_LAYERS if option in _LAYERS else _MOST
        if not all(0 < n <= most for n in values):
            raise CheckpointError(
                f"{path}: {option} is {value!r}, expected above 0 and at most {most}"
            )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        CheckpointError: It cannot be read, or is no object.
    """
    try:
        given = json.loads(_text(path), object_pairs_hook=unique_names)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(given, dict):
        raise CheckpointError(f"{path}: expected an object of options")
    return given


def _text(path: Path) -> str:
    """Return the text of a small file."""
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"it takes more than {_MOST_BYTES} bytes")
    return data.decode()


def translate(
    path: Path, given: dict[str, Any], known: Options, examples: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a file says, having looked at every option.

    Args:
        path: The file, for messages.
        given: Its options.
        known: What is known of them.
        examples: By the names that are returned, values of their types.

    Returns:
        Values by name: lists of int as tuples, int as float where the example is one.

    Raises:
        CheckpointError: An option is missing, of another type, unknown and on, or not SD v1's.
    """
    for option, fact in known.facts.items():
        if given.get(option, fact) != fact:
            raise CheckpointError(
                f"{path}: {option} is {reprlib.repr(given[option])}, but in Stable Diffusion v1 it "
                f"is {fact!r}"
            )
    names = {**known.required, **known.optional}
    for option, value in given.items():
        if option not in {*names, *known.facts, *known.unread} and value not in (None, False):
            raise CheckpointError(
                f"{path}: {shown(option)} is {reprlib.repr(value)}, which is not known here: it "
                "has to be off"
            )
    missing = known.required.keys() - given.keys()
    if missing:
        raise CheckpointError(f"{path}: missing {', '.join(sorted(missing))}")
    return {
        name: _typed(path, option, given[option], examples[name])
        for option, name in names.items()
        if option in given
    }


def _typed(path: Path, option: str, value: Any, example: Any) -> Any:
    """Return a value in the example's type: a list as a tuple, an int as a float."""
    if isinstance(value, list) and all(type(entry) is int for entry in value):
        value = tuple(value)
    numbers = value if isinstance(value, tuple) else (value,)
    if any(isinstance(n, int | float) and not 0 <= n <= _MOST for n in numbers):  # NaN is none
        raise CheckpointError(f"{path}: {option} is {reprlib.repr(value)}, expected 0 to {_MOST}")
    if type(value) is int and isinstance(example, float):
        value = float(value)
    if type(value) is not type(example):
        kind = "list of int" if isinstance(example, tuple) else type(example).__name__
        raise CheckpointError(f"{path}: {option} is {reprlib.repr(value)}, expected {kind}")
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
            f"{path}: {option} is {reprlib.repr(types)}, expected {len(levels)} of "
            f"{' or '.join(names)}"
        )
    return [names.index(kind) for kind in types]
