"""Names and facts of training: what is trained, its loss, its terms and gradients."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

TRAINING = "training"
TEXT_TRAINING = "training/text_encoder"
VAE_TRAINING = "training/vae"
TRAININGS = (TRAINING, TEXT_TRAINING, VAE_TRAINING)

TRAINED = {TRAINING: "unet", TEXT_TRAINING: "text_encoder", VAE_TRAINING: "vae"}
"""The folder of a checkpoint whose parameters get gradients, by component."""

FOLDERS = {TRAINING: ("unet",), TEXT_TRAINING: ("text_encoder", "unet"), VAE_TRAINING: ("vae",)}
"""The folders of a checkpoint that a component reads."""

LOSS = "loss"
GRADIENT = "grad."
"""What the name of a gradient begins with; the name of its parameter follows."""

_TIME = ("time_proj",)
_DENOISING = ("noisy_latents", "target", "model_output")
TERMS = {
    TRAINING: (*_TIME, *_DENOISING),
    TEXT_TRAINING: (*_TIME, *_DENOISING),
    VAE_TRAINING: ("mean", "logvar", "latents", "reconstruction"),
}
"""What a loss is computed from, in the order of execution: the probes."""

_FORWARD = tuple(dict.fromkeys(term for terms in TERMS.values() for term in terms))

SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}
"""The noise schedule of SD v1, and what its UNet predicts."""

_ZERO = re.compile(r"(.*\.)(k_proj|to_k)\.bias")
_QUERY = {"k_proj": "q_proj", "to_k": "to_q"}


def is_gradient(name: str) -> bool:
    """Say whether a name is that of a gradient."""
    return name.startswith(GRADIENT)


def scale_name(name: str) -> str:
    """Return the tensor whose norm an error at this one is divided by: nearly always itself.

    A bias of keys moves all scores of a row alike, which softmax does not see: its gradient is zero
    by structure, and what is computed is rounding. It is judged beside that of the query's bias.
    """
    found = _ZERO.fullmatch(name) if is_gradient(name) else None
    return f"{found[1]}{_QUERY[found[2]]}.bias" if found else name


def scales(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return what the error at each tensor is divided by: a norm, nearly always its own.

    Args:
        rows: Tensors by name.
    """
    norms = {name: float(np.linalg.norm(row.astype(np.float64))) for name, row in rows.items()}
    return np.array([norms[scale_name(name)] for name in rows])


def place(name: str, order: Mapping[str, int]) -> tuple[int, ...]:
    """Return where a term, the loss or a gradient stands in the order of execution.

    Gradients come after the loss, those of the last layers first: what is wrong in the backward
    pass of a layer is wrong in all that follows.

    Args:
        name: Its name.
        order: The place of every layer in the forward pass.

    Returns:
        A key for sorting.
    """
    if is_gradient(name):
        layer, _, kind = name.removeprefix(GRADIENT).rpartition(".")
        return 1, -order.get(layer, -1), kind == "weight"
    return 0, _FORWARD.index(name) if name in _FORWARD else len(_FORWARD)
