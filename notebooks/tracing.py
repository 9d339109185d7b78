"""What the notebooks share: loading weights, watching a network at work, showing pictures.

Nothing here computes a step of diffusion, that is `sd1_impl`'s part; or says what is right, that is
`truth.py`'s.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from truth import Oracle

from conformance.adapters.hooks import observe
from conformance.adapters.storages import StorageTracker
from conformance.checkpoints import file_variant
from conformance.memory.footprint import Footprint
from sd1_impl import SD_V1_UNET, Text2Image, load_pipeline, save_pipeline, synthetic_pipeline
from sd1_impl.attention_kernels import Kernel, plain
from sd1_weights.toy import TOY

_SCRATCH = TemporaryDirectory(prefix="sd1-notebooks-")


def load(weights: str) -> tuple[Text2Image, Oracle, int]:
    """Load weights into `sd1_impl`, in float32, and show them to the oracle.

    Args:
        weights: "toy" (trained on drawn shapes), "tiny" (random), or a path to SD v1's own files.

    Returns:
        The pipeline, without gradients; the oracle; the side of their pictures in pixels.
    """
    path = Path({"toy": TOY, "tiny": _SCRATCH.name}.get(weights, weights))
    if weights == "tiny":
        save_pipeline(synthetic_pipeline("tiny"), path)
    pipe = load_pipeline(path)
    for network in (pipe.text_encoder, pipe.unet, pipe.vae):
        network.requires_grad_(requires_grad=False)
    published = pipe.unet.config.block_out_channels == SD_V1_UNET.block_out_channels
    return pipe, Oracle(file_variant(path, Path(_SCRATCH.name))), 512 if published else 64


@contextmanager
def watching(network: nn.Module, paths: Collection[str]) -> Iterator[dict[str, Tensor]]:
    """Collect what modules return, by path; with `.input` after the path, what they are given."""
    seen: dict[str, Tensor] = {}
    with observe(network, paths, lambda name, tensor: seen.update({name: tensor.clone()})):
        yield seen


@contextmanager
def watching_attention(layer: Any) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collect an attention's weights, ``(B, heads, N, L)``, and its values.

    What it makes of unit vectors are its weights.
    """
    kernel: Kernel = layer.attend
    seen: list[tuple[Tensor, Tensor]] = []

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        unit_vectors = torch.eye(key.shape[-2]).expand(*key.shape[:2], -1, -1)
        seen.append((plain(query, key, unit_vectors), value))
        return kernel(query, key, value)

    layer.attend = attend
    try:
        yield seen
    finally:
        layer.attend = kernel


def peak(network: nn.Module, call: Callable[[], object]) -> Footprint:
    """Count the bytes of tensors that are alive while a network is called, weights apart."""
    tracker = StorageTracker([*network.parameters(), *network.buffers()])
    paths = {path: path for path, _ in network.named_modules()}
    with torch.no_grad(), tracker.watching(network, paths, ()), tracker:
        call()
    return tracker.footprint()


def show(panels: Mapping[str, Tensor], *, columns: int = 6, label: str = "") -> None:
    """Show pictures, ``(3, H, W)`` in [-1, 1], and maps, ``(H, W)``, which share one scale."""
    rows = -(-len(panels) // columns)
    columns = min(columns, len(panels))
    size = (1.9 * columns, 2.1 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    maps = [panel for panel in panels.values() if panel.ndim == 2]
    largest = max((float(panel.abs().max()) for panel in maps), default=1.0)
    signed = any(float(panel.min()) < 0 for panel in maps)
    colours = {"cmap": "RdBu_r", "vmin": -largest} if signed else {"cmap": "magma", "vmin": 0}
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, panel) in zip(axes.flat, panels.items(), strict=False):
        axis.set_title(title, fontsize=9)
        if panel.ndim == 2:
            drawn = axis.imshow(panel.numpy(), interpolation="nearest", vmax=largest, **colours)
        else:
            picture = (panel.movedim(0, -1) / 2 + 0.5).clamp(0, 1)
            axis.imshow(picture.numpy(), interpolation="nearest")
    if maps:
        figure.colorbar(drawn, ax=axes, shrink=0.8, label=label)
    plt.show()
