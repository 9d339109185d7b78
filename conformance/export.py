"""Writing recipe weights as files that other programs load."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from conformance import spec
from conformance.errors import UsageError
from conformance.regimes import tensor_recipe

if TYPE_CHECKING:
    from conformance.variants import Weights

_FILE_NAMES = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}


def write_component(weights: Weights, folder: Path) -> Path:
    """Write one folder of a checkpoint in the diffusers layout, tensor by tensor.

    Args:
        weights: The weights of a component; of the VAE's halves, either stands for both. A block
            gets the UNet's config and a file with its own weights.
        folder: Folder to create; existing files of the same names are replaced.

    Returns:
        The folder.

    Raises:
        UsageError: The component has no weights, or the folder cannot be written.
    """
    variant = weights.variant
    if weights.component not in spec.CHECKPOINT_FOLDERS:
        message = f"component {weights.component!r} has no weights"
        raise UsageError(message)
    kind = spec.CHECKPOINT_FOLDERS[weights.component]
    recipes = weights.recipes
    if kind == "vae":
        both = spec.checkpoint_shapes(kind, variant.size)
        recipes = {n: tensor_recipe(kind, n, shape, variant.regime) for n, shape in both.items()}
    shapes = {name: recipe.shape for name, recipe in recipes.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        config = published_config(kind, variant.architecture(weights.component))
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        header = {"format": "pt", "sd1-conformance": f"{variant.name}, seed {weights.seed}"}
        arrays = (recipe.draw(np.float32, weights.seed) for recipe in recipes.values())
        _write_safetensors(folder / _FILE_NAMES[kind], shapes, arrays, header)
    except OSError as error:
        message = f"cannot write weights to {folder}: {error.strerror or error}"
        raise UsageError(message) from error
    return folder


def published_config(folder: str, architecture: dict[str, Any]) -> dict[str, Any]:
    """Translate an architecture of `golden/spec/variants.json` to the published checkpoint's keys.

    Args:
        folder: The checkpoint's folder: `unet`, `text_encoder` or `vae`.
        architecture: Widths, heads, groups.

    Returns:
        The contents of its `config.json`: keyword arguments of diffusers' `UNet2DConditionModel`
        (whose `attention_head_dim` is, for historical reasons, the number of heads) and
        `AutoencoderKL`, and of transformers' `CLIPTextConfig`.
    """
    return {"unet": _unet_config, "text_encoder": _text_config, "vae": _vae_config}[folder](
        architecture
    )


def _unet_config(architecture: dict[str, Any]) -> dict[str, Any]:
    cross = "CrossAttnDownBlock2D"
    cross_up = "CrossAttnUpBlock2D"
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 64,
        "in_channels": architecture["in_channels"],
        "out_channels": architecture["out_channels"],
        "block_out_channels": architecture["block_out_channels"],
        "layers_per_block": architecture["layers_per_block"],
        "cross_attention_dim": architecture["cross_attention_dim"],
        "attention_head_dim": architecture["num_heads"],
        "norm_num_groups": architecture["norm_num_groups"],
        "norm_eps": 1e-5,
        "act_fn": "silu",
        "center_input_sample": False,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "mid_block_scale_factor": 1,
        "down_block_types": [cross, cross, cross, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", cross_up, cross_up, cross_up],
    }


def _text_config(architecture: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": architecture["vocab_size"],
        "hidden_size": architecture["hidden_size"],
        "intermediate_size": architecture["intermediate_size"],
        "num_hidden_layers": architecture["num_layers"],
        "num_attention_heads": architecture["num_heads"],
        "max_position_embeddings": architecture["max_position_embeddings"],
        "projection_dim": architecture["hidden_size"],
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 1,
    }


def _vae_config(architecture: dict[str, Any]) -> dict[str, Any]:
    levels = len(architecture["block_out_channels"])
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": 512,
        "in_channels": architecture["in_channels"],
        "out_channels": architecture["out_channels"],
        "latent_channels": architecture["latent_channels"],
        "block_out_channels": architecture["block_out_channels"],
        "layers_per_block": architecture["layers_per_block"],
        "norm_num_groups": architecture["norm_num_groups"],
        "act_fn": "silu",
        "scaling_factor": 0.18215,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def _write_safetensors(
    path: Path,
    shapes: dict[str, tuple[int, ...]],
    arrays: Iterable[np.ndarray],
    metadata: dict[str, str],
) -> None:
    """Write float32 tensors one after another, so that 3.4 GB need no 3.4 GB of memory."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(struct.pack("<Q", len(text)))
            file.write(text)
            for array in tqdm(arrays, total=len(shapes), desc=path.parent.name, disable=None):
                file.write(np.ascontiguousarray(array, dtype="<f4").data)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
