"""Trained weights: a folder in diffusers' layout in, a pipeline out; strict, and nothing guessed.

    text_encoder/config.json    text_encoder/model.safetensors
    unet/config.json            unet/diffusion_pytorch_model.safetensors
    vae/config.json             vae/diffusion_pytorch_model.safetensors
    scheduler/scheduler_config.json, or SD v1's PNDM where there is none

This is what the published SD v1-4 and v1-5 consist of, and what ``save_pretrained`` writes; their
other folders are not needed. Names of weights are attribute names here, up to two leftovers of
older files (`OLD_NAMES`).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sd1_impl.checkpoint_config import (
    CheckpointError,
    read_scheduler,
    read_text_encoder_config,
    read_unet_config,
    read_vae_config,
)
from sd1_impl.pipeline import Text2Image
from sd1_impl.scheduler_config import SD_V1_PNDM
from sd1_impl.schedulers import PNDMScheduler
from sd1_impl.text_encoder import CLIPTextEncoder
from sd1_impl.tokenizer import CLIPTokenizer
from sd1_impl.unet import UNet
from sd1_impl.vae import AutoencoderKL

OLD_NAMES = {
    r"(mid_block\.attentions\.0)\.query\.": r"\1.to_q.",
    r"(mid_block\.attentions\.0)\.key\.": r"\1.to_k.",
    r"(mid_block\.attentions\.0)\.value\.": r"\1.to_v.",
    r"(mid_block\.attentions\.0)\.proj_attn\.": r"\1.to_out.0.",
}
"""Names in published files of the autoencoder, as patterns, and what they are called today."""

POSITION_IDS = "text_model.embeddings.position_ids"
"""The numbers 0 to 76, in published files of the text encoder: no weights, and not read."""


@dataclass(frozen=True)
class Part:
    """One network's folder.

    Attributes:
        network: Its class.
        read_config: Reads its ``config.json``.
        weights: Its other file.
    """

    network: type[nn.Module]
    read_config: Callable[[Path], Any]
    weights: str


PARTS = {
    "text_encoder": Part(CLIPTextEncoder, read_text_encoder_config, "model.safetensors"),
    "unet": Part(UNet, read_unet_config, "diffusion_pytorch_model.safetensors"),
    "vae": Part(AutoencoderKL, read_vae_config, "diffusion_pytorch_model.safetensors"),
}


def load_pipeline(
    folder: str | Path,
    *,
    pipeline: type[Text2Image] = Text2Image,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Text2Image:
    """Load Stable Diffusion v1 from a folder in diffusers' layout.

    Args:
        folder: The folder, see above.
        pipeline: What to build: `Text2Image`, `Image2Image` or `Inpaint`.
        dtype: Of the weights; what the files have is converted.
        device: Where the weights are put.

    Returns:
        The pipeline.

    Raises:
        CheckpointError: If a file is missing or unreadable, if weights are missing, left over or
            of another shape, if a config is not one of SD v1, or if the pipeline has no use for
            its UNet.
    """
    folder = Path(folder)
    _check_files(folder)
    path = folder / "scheduler" / "scheduler_config.json"
    scheduler = read_scheduler(path) if path.exists() else PNDMScheduler(SD_V1_PNDM)
    configs = {
        name: part.read_config(folder / name / "config.json") for name, part in PARTS.items()
    }
    with torch.device("meta"):  # no memory, no random weights: the file's take their place
        networks = {name: part.network(configs[name]) for name, part in PARTS.items()}
    try:
        pipe = pipeline(CLIPTokenizer(), **networks, scheduler=scheduler)
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    for name, part in PARTS.items():
        _load_weights(networks[name], folder / name / part.weights, dtype, device)
    return pipe


def _check_files(folder: Path) -> None:
    """Look for every file before the first is loaded."""
    for name, part in PARTS.items():
        for file in ("config.json", part.weights):
            path = folder / name / file
            if not path.is_file():
                raise CheckpointError(
                    f"{path} is missing: expected a folder in diffusers' layout, with "
                    "config.json and weights as safetensors in text_encoder/, unet/ and vae/"
                )


def _load_weights(
    network: nn.Module, path: Path, dtype: torch.dtype, device: torch.device | str
) -> None:
    """Give a network the weights of a file, all of them and no others."""
    tensors = _read_weights(path)
    _check_weights(path, tensors, network.state_dict())
    tensors = {name: tensor.to(device, dtype) for name, tensor in tensors.items()}
    network.load_state_dict(tensors, strict=True, assign=True)


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Return a file's weights by today's names."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return {_current(name): tensor for name, tensor in tensors.items() if name != POSITION_IDS}


def _current(name: str) -> str:
    """Return what a weight is called today."""
    for old, new in OLD_NAMES.items():
        name = re.sub(old, new, name)
    return name


def _check_weights(path: Path, got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Refuse weights that are not the network's, with all that is wrong with their names."""
    missing, unexpected = wanted.keys() - got.keys(), got.keys() - wanted.keys()
    if missing or unexpected:
        raise CheckpointError(
            f"{path}: {_listed('missing', missing)}, {_listed('unexpected', unexpected)}"
        )
    for name, tensor in got.items():
        if tensor.shape != wanted[name].shape or not tensor.is_floating_point():
            raise CheckpointError(
                f"{path}: {name} is {tensor.dtype} of shape {tuple(tensor.shape)}, "
                f"expected a floating dtype and {tuple(wanted[name].shape)}"
            )


def _listed(what: str, names: set[str], most: int = 5) -> str:
    """Count and name weights: "2 missing (a, b)"."""
    shown = ", ".join(sorted(names)[:most]) + (", ..." if len(names) > most else "")
    return f"{len(names)} {what}" + (f" ({shown})" if names else "")
