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

from conformance.errors import UsageError

if TYPE_CHECKING:
    from conformance.variants import Weights

_FILE_NAME = "diffusion_pytorch_model.safetensors"


def write_component(weights: Weights, folder: Path) -> Path:
    """Write one component in the diffusers layout, tensor by tensor.

    Args:
        weights: The weights to draw and write, float32.
        folder: Folder to create; existing files of the same names are replaced.

    Returns:
        The folder.

    Raises:
        UsageError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        config = diffusers_config(
            weights.component, weights.variant.architecture(weights.component)
        )
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        header = {"format": "pt", "sd1-conformance": f"{weights.variant.name}, seed {weights.seed}"}
        shapes = {name: recipe.shape for name, recipe in weights.recipes.items()}
        arrays = (weights[name] for name in weights)
        _write_safetensors(folder / _FILE_NAME, shapes, arrays, header)
    except OSError as error:
        message = f"cannot write weights to {folder}: {error.strerror or error}"
        raise UsageError(message) from error
    return folder


def diffusers_config(component: str, architecture: dict[str, Any]) -> dict[str, Any]:
    """Translate an architecture of `golden/spec/variants.json` to diffusers' configuration keys.

    Args:
        component: `unet`.
        architecture: Widths, heads, groups.

    Returns:
        Keyword arguments of diffusers' `UNet2DConditionModel` (its `attention_head_dim` is, for
        historical reasons, the number of heads).
    """
    if component != "unet":
        message = f"component {component!r} has no diffusers configuration"
        raise UsageError(message)
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
