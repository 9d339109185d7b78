"""Weights that come from a file, where a recipe could stand; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from conformance.recipe import SEED
from sd1_weights.layouts import read_checkpoint
from sd1_weights.stored import Stored
from sd1_weights.toy import TOY


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a file, where a recipe could stand."""

    stored: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        """Return its shape."""
        return self.stored.shape

    def draw(self, dtype: type[np.floating[Any]], seed: int = SEED) -> np.ndarray:
        """Return the values, whatever the seed."""
        del seed
        return self.stored.float32().astype(dtype, copy=False)


@cache
def toy_tensors(network: str) -> Mapping[str, FileTensor]:
    """Return the trained weights of the toy by canonical name.

    Args:
        network: `unet`, `vae` or `text_encoder`.
    """
    tensors = read_checkpoint(TOY).network(network).tensors
    return {name: FileTensor(tensor) for name, tensor in tensors.items()}
