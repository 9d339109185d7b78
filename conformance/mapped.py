"""Large weights of the recipe, drawn once a machine: files that all processes map; no torch."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import zlib
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np

from conformance import recipe as drawing
from conformance.cache import WEIGHTS, beside, cache_folder, shrink
from conformance.recipe import TensorRecipe

LEAST = 2**20
"""Bytes of the smallest tensor that is kept: those above are 99 % of the published size."""
MOST = 8 * 2**30
"""Bytes in the folder; a Stable Diffusion v1 has 4 GiB."""
FREE = 4 * 2**30
"""Bytes that stay free on the disk."""

_LOOK = 2**24
"""Bytes of a tensor with which the folder's size is looked after: one in eight has them."""
_STORED = "<f4"


def mapped(recipe: TensorRecipe, seed: int) -> np.ndarray:
    """Return the values of a recipe, of which processes share the memory if they are large.

    A file is named by all that its values depend on, ends in their checksum and takes its name
    when it is whole; one that is damaged is drawn anew. Where none can be written, the values are
    the process's own.

    Args:
        recipe: The tensor.
        seed: Of the whole set.

    Returns:
        float32 array; what is written into it stays with this process.
    """
    folder = cache_folder(WEIGHTS)
    if folder is None or 4 * math.prod(recipe.shape) < LEAST:
        return recipe.draw(np.float32, seed)
    path = folder / _name(recipe, seed)
    values = _opened(path, recipe.shape)
    if values is not None:
        return values
    drawn = recipe.draw(np.float32, seed)
    with suppress(OSError):  # what cannot be kept costs memory, not a verdict
        _keep(path, drawn)
        values = _opened(path, recipe.shape)
    return drawn if values is None else values


def _name(recipe: TensorRecipe, seed: int) -> str:
    """Name a file after the recipe, the seed and the code that draws."""
    facts = json.dumps([_code(), seed, asdict(recipe)], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:32]


@cache
def _code() -> str:
    return hashlib.sha256(Path(drawing.__file__).read_bytes()).hexdigest()


def _opened(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Map a file of the cache; None where there is none that is whole."""
    try:
        with path.open("rb") as file:
            values = np.memmap(file, _STORED, "c", shape=shape)
            file.seek(values.nbytes)
            if file.read() != _checksum(values):
                return None
    except (OSError, ValueError):
        return None
    with suppress(OSError):
        path.touch()
    return np.asarray(values, np.float32)


def _keep(path: Path, values: np.ndarray) -> None:
    """Write a file of the cache.

    Raises:
        OSError: It cannot be written, or the disk would be too full.
    """
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < FREE + values.nbytes:
        return
    stored = np.ascontiguousarray(values, _STORED)
    temporary = beside(path)
    try:
        with temporary.open("wb") as file:
            file.write(stored.data)
            file.write(_checksum(stored))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if values.nbytes >= _LOOK:
        shrink(folder, MOST)


def _checksum(values: np.ndarray) -> bytes:
    return zlib.crc32(values.data).to_bytes(4, "little")
