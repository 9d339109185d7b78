"""Writing recipe weights as files that other programs load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conformance import spec
from conformance.errors import UsageError
from conformance.progress import Progress
from conformance.sampling import TEXT_TO_IMAGE
from conformance.vocabulary import Vocabulary
from sd1_weights import save
from sd1_weights.configs import tokenizer_files
from sd1_weights.errors import CheckpointError
from sd1_weights.layouts import COMPVIS, DIFFUSERS
from sd1_weights.stored import WEIGHTS, Stored

if TYPE_CHECKING:
    from conformance.variants import Variant, Weights

LAYOUTS = (COMPVIS, DIFFUSERS)
"""In which whole checkpoints are written."""

Tensors = dict[str, Stored]


def stored(weights: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """Return weights as tensors on their way into a file: each is made when it is written."""
    return {
        name: Stored(name, "F32", shape, partial(weights.__getitem__, name))
        for name, shape in shapes.items()
    }


def watched(tensors: list[Stored]) -> Iterable[Stored]:
    """Show progress while tensors are written."""
    return Progress(tensors, desc="weights", unit="tensor")


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
    kind = _folder_of(weights)
    architecture = weights.variant.architecture(weights.component)
    try:
        save.write_network(folder, kind, _whole(weights), architecture, _metadata(weights), watched)
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    return folder


def write_compvis(weights: Weights, path: Path) -> Path:
    """Write the weights of a component, or of a whole checkpoint, as a CompVis file.

    Args:
        weights: As for `write_component`, or those of a pipeline or a component of training.
        path: File to write.

    Returns:
        The path.

    Raises:
        UsageError: The component has no weights, or the file cannot be written.
    """
    if weights.component in spec.ASSEMBLED:
        folders = spec.ASSEMBLED[weights.component]
        networks = {name: _whole(weights.part(name)) for name in folders}
    else:
        start = spec.name_start(weights.component)
        own = {start + name: tensor for name, tensor in _whole(weights).items()}
        networks = {_folder_of(weights): own}
    try:
        save.write_single_file(path, networks, _metadata(weights), watched)
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    return path


def write_checkpoint(variant: Variant, layout: str, dtype: str, out: Path) -> dict[str, Tensors]:
    """Write all weights of a variant in a layout.

    Args:
        variant: Of the UNet; the other networks have the plain size.
        layout: One of `LAYOUTS`.
        dtype: A key of `sd1_weights.stored.WEIGHTS`.
        out: Folder for `diffusers`, file for `compvis`.

    Returns:
        What was written, by network.

    Raises:
        CheckpointError: It cannot be written, or a value does not fit the dtype.
    """
    weights = variant.weights(TEXT_TO_IMAGE)
    networks = {
        name: {
            key: tensor.cast(WEIGHTS[dtype]) for key, tensor in _whole(weights.part(name)).items()
        }
        for name in spec.FOLDER_COMPONENTS
    }
    metadata = _metadata(weights)
    if layout == COMPVIS:
        save.write_single_file(out, networks, metadata, watched)
    else:
        architectures = {n: variant.architecture(c) for n, c in spec.FOLDER_COMPONENTS.items()}
        words = Vocabulary.load()
        tokenizer = tokenizer_files(words.ids, words.merges)
        save.write_folder(out, networks, architectures, tokenizer, metadata, watched)
    return networks


def _folder_of(weights: Weights) -> str:
    if weights.component not in spec.CHECKPOINT_FOLDERS:
        message = f"component {weights.component!r} has no weights"
        raise UsageError(message)
    return spec.CHECKPOINT_FOLDERS[weights.component]


def _whole(weights: Weights) -> Tensors:
    """Return the tensors of a component's file: both halves of the VAE share one."""
    if weights.component in {"vae_encoder", "vae_decoder"}:
        weights = weights.variant.weights(TEXT_TO_IMAGE, weights.seed).part("vae")
    return stored(weights, weights.shapes)


def _metadata(weights: Weights) -> dict[str, str]:
    return {"sd1-conformance": f"weights of the recipe, seed {weights.seed}"}
