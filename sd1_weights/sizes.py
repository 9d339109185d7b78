"""The sizes of Stable Diffusion v1 that are known, by the shapes of their weights.

A single file carries no configuration: how many heads share a width, and how many channels a norm's
group, no shape can tell. They are those of the size whose shapes the weights have.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sd1_weights.errors import CheckpointError
from sd1_weights.names import golden_root, spec_file

Shapes = Mapping[str, tuple[int, ...]]

_TELLING = ("conv_in.weight", "decoder.conv_in.weight", "text_model.final_layer_norm.weight")
"""Weights whose shapes say the widths of a network."""


def sizes(network: str) -> dict[str, dict[str, Any]]:
    """Return the architecture of every size of a network: widths, heads, groups.

    Args:
        network: `unet`, `vae` or `text_encoder`.
    """
    known: dict[str, dict[str, Any]] = _variants(golden_root())[network]
    return known


def shapes_of(network: str, size: str) -> dict[str, tuple[int, ...]]:
    """Return the canonical names and shapes of a network's weights, in order.

    Args:
        network: `unet`, `vae` or `text_encoder`.
        size: One of `sizes(network)`.
    """
    return _shapes(golden_root(), network)[size]


def names_of(network: str) -> tuple[str, ...]:
    """Return the canonical names of a network's weights in any size."""
    return tuple(_parameters(golden_root())[network]["names"])


def recognised(network: str, found: Shapes, file: str) -> str:
    """Return the size that weights have.

    Args:
        network: `unet`, `vae` or `text_encoder`.
        found: Shapes of a file's weights by canonical name.
        file: What it is called in messages.

    Returns:
        The size most of whose weights are there in their shapes: what is missing from it, or
        misshapen, is for `Network.fitted` to say.

    Raises:
        CheckpointError: None is half there.
    """
    scores = {size: _alike(shapes_of(network, size), found) for size in sizes(network)}
    best = max(scores, key=lambda size: scores[size])
    if scores[best] * 2 < len(shapes_of(network, best)):
        what = "".join(f"; {name} has shape {found[name]}" for name in _TELLING if name in found)
        raise CheckpointError(
            f"{file}: the {network} has the shapes of no known size "
            f"({', '.join(sizes(network))}){what}"
        )
    return best


def _alike(wanted: Shapes, found: Shapes) -> int:
    """Count the weights that have their shapes; a linear layer's may be a convolution's."""
    return sum(n in found and found[n][:2] == shape[:2] for n, shape in wanted.items())


@cache
def _variants(root: Path) -> dict[str, Any]:
    return spec_file(root, "variants")


@cache
def _parameters(root: Path) -> dict[str, Any]:
    return spec_file(root, "parameters")


@cache
def _shapes(root: Path, network: str) -> dict[str, dict[str, tuple[int, ...]]]:
    facts = _parameters(root)[network]
    return {
        size: {
            name: tuple(shape)
            for name, shape in zip(facts["names"], rows, strict=True)
            if shape is not None
        }
        for size, rows in facts["shapes"].items()
    }
