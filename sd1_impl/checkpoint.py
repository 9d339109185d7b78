"""Trained weights: published files in, a pipeline out, and back; strict, and nothing guessed.

Stable Diffusion v1 comes in three layouts, which `sd1_weights` reads and writes:

- one file of the original CompVis code, ``*.safetensors`` or ``*.ckpt``, perhaps with a second set
  of the UNet's weights, averaged over training (EMA);
- a folder of diffusers, with ``unet``, ``vae``, ``text_encoder`` and ``scheduler``;
- the text encoder alone, as transformers saves it.

Names of weights are attribute names here. What a layout calls otherwise is in one table,
``golden/spec/layouts.json``. Whatever is missing, left over, of another shape or no number is an
error before the first weight is taken.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sd1_impl.checkpoint_config import (
    read_scheduler,
    read_text_encoder_config,
    read_unet_config,
    read_vae_config,
    scheduler_options,
)
from sd1_impl.config import TextEncoderConfig, UNetConfig, VAEConfig
from sd1_impl.pipeline import Text2Image
from sd1_impl.scheduler_config import SD_V1_PNDM
from sd1_impl.schedulers import PNDMScheduler, Scheduler
from sd1_impl.synthetic import architecture
from sd1_impl.text_encoder import CLIPTextEncoder
from sd1_impl.tokenizer import CLIPTokenizer
from sd1_impl.unet import UNet
from sd1_impl.vae import AutoencoderKL
from sd1_weights.configs import tokenizer_files
from sd1_weights.errors import CheckpointError
from sd1_weights.layouts import COMPVIS, DIFFUSERS, Checkpoint, Network, read_checkpoint
from sd1_weights.save import write_folder, write_single_file
from sd1_weights.schedule import BETA_END, BETA_START, TRAIN_STEPS
from sd1_weights.stored import WEIGHTS, Stored

NETWORKS = {
    "text_encoder": (CLIPTextEncoder, TextEncoderConfig, read_text_encoder_config),
    "unet": (UNet, UNetConfig, read_unet_config),
    "vae": (AutoencoderKL, VAEConfig, read_vae_config),
}
"""Class, numbers, and what reads the numbers from ``config.json``."""


def load_pipeline(
    path: str | Path,
    *,
    pipeline: type[Text2Image] = Text2Image,
    ema: bool = False,
    files: str = "",
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
) -> Text2Image:
    """Load Stable Diffusion v1 from files.

    Args:
        path: A file or folder in a layout that has all networks, see above.
        pipeline: What to build: `Text2Image`, `Image2Image` or `Inpaint`.
        ema: Take a single file's averaged weights of the UNet. The default is the others, as in the
            configuration of the original code (``use_ema: False``) and in diffusers.
        files: Which files of a folder: "fp16" for ``diffusion_pytorch_model.fp16.safetensors``;
            the default is the plain ones, or fp16 where there are no others.
        dtype: Of the weights; None for that of the files, in which they are mapped into memory.
        device: Where the weights are put.

    Returns:
        The pipeline, with the scheduler of a folder, or SD v1's PNDM.

    Raises:
        CheckpointError: If a file is missing or unreadable, if weights are missing, left over, of
            another shape or not finite, if a config is not one of SD v1, or if the pipeline has no
            use for its UNet.
    """
    checkpoint = read_checkpoint(path, ema=ema, files=files)
    parts = {name: checkpoint.network(name) for name in NETWORKS}
    scheduler = _scheduler(checkpoint)
    networks = {name: _on_meta(part) for name, part in parts.items()}
    try:
        pipe = pipeline(CLIPTokenizer(), **networks, scheduler=scheduler)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    _assign({name: (networks[name], part) for name, part in parts.items()}, dtype, device)
    return pipe


def load_network(
    name: str,
    path: str | Path,
    *,
    ema: bool = False,
    files: str = "",
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Load one network: from a layout that has it alone, or among others.

    Args:
        name: "text_encoder", "unet" or "vae".
        path: A file or folder.
        ema: As in `load_pipeline`; so are the others.
        files: Which files of a folder.
        dtype: Of the weights.
        device: Where they are put.

    Returns:
        A `CLIPTextEncoder`, `UNet` or `AutoencoderKL`.

    Raises:
        CheckpointError: As `load_pipeline`; or the files do not have that network.
    """
    part = read_checkpoint(path, ema=ema, files=files).network(name)
    network = _on_meta(part)
    _assign({name: (network, part)}, dtype, device)
    return network


def save_pipeline(
    pipe: Text2Image, path: str | Path, layout: str = DIFFUSERS, dtype: torch.dtype | None = None
) -> None:
    """Write a pipeline's weights in a layout that `load_pipeline`, and others, read.

    Args:
        pipe: The pipeline.
        path: For "diffusers" a folder, for "compvis" a file, ``*.safetensors`` or ``*.ckpt``.
        layout: "diffusers", which keeps the scheduler too, or "compvis".
        dtype: Of the files; None for that of the weights.

    Raises:
        CheckpointError: If there is no such layout, if the files cannot be written, if a weight
            does not fit the dtype, or if a single file would need another noise schedule than SD
            v1's.
    """
    networks = {
        name: {key: _stored(key, t, dtype) for key, t in getattr(pipe, name).state_dict().items()}
        for name in NETWORKS
    }
    if layout == COMPVIS:
        _check_betas(pipe.scheduler, path)
        write_single_file(Path(path), networks, {})
    elif layout == DIFFUSERS:
        write_folder(
            Path(path),
            networks,
            {name: asdict(getattr(pipe, name).config) for name in NETWORKS},
            tokenizer_files(pipe.tokenizer.vocabulary, pipe.tokenizer.merges),
            {},
            scheduler=scheduler_options(pipe.scheduler),
        )
    else:
        raise CheckpointError(f"layout is {layout!r}, expected {DIFFUSERS} or {COMPVIS}")


def _on_meta(part: Network) -> nn.Module:
    """Build a network without weights: no memory, no random numbers; the file's take their place.

    Its numbers are those of the folder's config, or of the known size that a single file has.
    """
    network, config, read = NETWORKS[part.name]
    if part.config is not None:
        numbers = read(part.config)
    else:
        numbers = config(**architecture(part.name, part.size))
    with torch.device("meta"):
        return network(numbers)


def _scheduler(checkpoint: Checkpoint) -> Scheduler:
    """Return a folder's scheduler; a single file's noise schedule was found to be SD v1's."""
    path = checkpoint.scheduler
    return PNDMScheduler(SD_V1_PNDM) if path is None else read_scheduler(path)


def _assign(
    pairs: Mapping[str, tuple[nn.Module, Network]],
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> None:
    """Give networks the weights of files, all of them and no others; none before all are right."""
    fitted = {name: part.fitted(_shapes(network)) for name, (network, part) in pairs.items()}
    states = {
        name: {key: _tensor(stored, dtype).to(device, dtype) for key, stored in tensors.items()}
        for name, tensors in fitted.items()
    }
    for name, state in states.items():
        pairs[name][0].load_state_dict(state, strict=True, assign=True)


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def _tensor(stored: Stored, dtype: torch.dtype | None) -> Tensor:
    """Return a weight as it is in the file, which stays mapped.

    Every value was looked at: it is a number, and it is one in the dtype that is to follow.
    """
    bits = stored.bits()
    if stored.dtype == "BF16":
        tensor = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(bits)
    least, greatest = torch.aminmax(tensor)  # of NaN, NaN
    if not (least.isfinite() and greatest.isfinite()):
        stored.check_finite()
    if dtype is not None and not (least.to(dtype).isfinite() and greatest.to(dtype).isfinite()):
        largest = float(max(-least, greatest))
        raise CheckpointError(
            f"{stored.file}: {stored.key} has values up to {largest:.6g}, which {dtype} cannot hold"
        )
    return tensor


_CODES = {getattr(torch, name): code for name, code in WEIGHTS.items()}


def _stored(key: str, tensor: Tensor, dtype: torch.dtype | None) -> Stored:
    """Return a weight on its way into a file."""

    def bits() -> np.ndarray:
        own = tensor.detach().cpu().contiguous()
        return (own.view(torch.int16) if own.dtype == torch.bfloat16 else own).numpy()

    if dtype is not None and dtype not in _CODES:
        raise CheckpointError(f"dtype is {dtype}, expected one of {', '.join(WEIGHTS)}")
    stored = Stored(key, _CODES[tensor.dtype], tuple(tensor.shape), bits)
    return stored if dtype is None else stored.cast(_CODES[dtype])


def _check_betas(scheduler: Any, path: str | Path) -> None:
    config = scheduler.config
    own = (config.beta_schedule, config.beta_start, config.beta_end, config.num_train_timesteps)
    if own != ("scaled_linear", BETA_START, BETA_END, TRAIN_STEPS):
        raise CheckpointError(
            f"{path}: layout {COMPVIS} holds the noise schedule of Stable Diffusion v1, but the "
            f"scheduler's is {own}"
        )
