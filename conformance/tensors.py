"""Safetensors files that a port wrote, read without trust; bfloat16 widened exactly. No torch."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from conformance.errors import PortError
from sd1_weights.errors import CheckpointError
from sd1_weights.safetensors_file import (
    METADATA,
    Entry,
    array_of,
    entry_of,
    split,
    write_safetensors,
)
from sd1_weights.stored import DTYPES, Stored, bfloat16, widened

_OF_NUMPY = {np.dtype(code): name for name, code in DTYPES.items() if name != "BF16"}

MOST_BYTES = 8 << 30


def read_tensors(path: Path, inside: Path | None = None) -> dict[str, np.ndarray]:
    """Read a safetensors file that somebody else wrote.

    Args:
        path: The file.
        inside: Folder in which it has to lie; None for anywhere.

    Returns:
        Arrays by name, in the file's order; BF16 as float32.

    Raises:
        PortError: No regular file there, too large, or not safetensors; names file and tensor.
    """
    if inside is not None:
        path = _within(inside, path)
    try:
        facts = path.lstat()
        if not stat.S_ISREG(facts.st_mode):
            message = f"{path.name} is no regular file"
            raise PortError(message)
        if facts.st_size > MOST_BYTES:
            message = f"{path.name} has {facts.st_size} bytes; at most {MOST_BYTES} are read"
            raise PortError(message)
        raw = np.fromfile(path, np.uint8)
    except OSError as error:
        message = f"cannot read the tensors in {path}: {error.strerror or error}"
        raise PortError(message) from error
    try:
        header, data = split(raw, path.name)
        return {
            name: _tensor(data, entry_of(fields, data.size, f"{path.name}, tensor {name!r}"))
            for name, fields in header.items()
            if name != METADATA
        }
    except CheckpointError as error:
        raise PortError(str(error)) from error


def _within(folder: Path, path: Path) -> Path:
    """Return the path, which is relative to a folder or in it; refuse any other."""
    whole = folder / path
    root = folder.resolve()
    if whole.parent.resolve() != root and root not in whole.parent.resolve().parents:
        message = f"the port names {path}, which is outside its scratch folder"
        raise PortError(message)
    return whole


def _tensor(data: np.ndarray, entry: Entry) -> np.ndarray:
    """Return one tensor, copied out of the file's bytes."""
    bits = array_of(data, entry).copy()
    return _read_as(entry.dtype, bits.astype(bits.dtype.newbyteorder("="), copy=False))


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray], floating: str = "") -> None:
    """Write a safetensors file.

    Args:
        path: The file.
        arrays: By name.
        floating: Arithmetic to which floating arrays are rounded first; as they are if empty.

    Raises:
        OSError: The file cannot be written.
    """
    rows = []
    for name, array in arrays.items():
        code, bits = _encoded(array, floating)
        rows.append(Stored(name, code, array.shape, partial(np.asarray, bits)))
    with path.open("wb") as file:
        write_safetensors(file, rows, {})


def rounded(arrays: Mapping[str, np.ndarray], arithmetic: str) -> dict[str, np.ndarray]:
    """Round floating arrays to what an arithmetic carries, bfloat16 as float32."""
    return {
        name: _read_as(*_encoded(array, arithmetic)) if array.dtype.kind == "f" else array
        for name, array in arrays.items()
    }


def _read_as(code: str, bits: np.ndarray) -> np.ndarray:
    return widened(bits) if code == "BF16" else bits


def _encoded(array: np.ndarray, floating: str) -> tuple[str, np.ndarray]:
    """Return the name of the dtype in which an array is written, and its bits."""
    if array.dtype.kind == "f" and floating == "bfloat16":
        return "BF16", bfloat16(array)
    if array.dtype.kind == "f" and floating:
        with np.errstate(over="ignore"):
            array = array.astype(carried_in(floating))
    little = np.asarray(array, order="C").astype(array.dtype.newbyteorder("<"), copy=False)
    return _OF_NUMPY[little.dtype], little


_FLOATING = ("float64", "float32", "float16")


def carried_in(arithmetic: str) -> str:
    """Return the NumPy dtype in which values of an arithmetic cross the border."""
    return arithmetic if arithmetic in _FLOATING else "float32"
