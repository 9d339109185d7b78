"""Safetensors files that a port wrote, read without trust; bfloat16 widened exactly. No torch."""

from __future__ import annotations

import json
import math
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conformance.errors import PortError

DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
"""Names of safetensors' dtypes, and how their bytes are read."""

_OF_NUMPY = {np.dtype(code): name for name, code in DTYPES.items() if name != "BF16"}

MOST_BYTES = 8 << 30
_MOST_HEADER = 100 << 20
_LENGTH = 8
"""Bytes before the header: its length, little-endian."""


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
    header, data = _split(raw, path.name)
    return {
        name: _tensor(data, entry, f"{path.name}, tensor {name!r}")
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _within(folder: Path, path: Path) -> Path:
    """Return the path, which is relative to a folder or in it; refuse any other."""
    whole = folder / path
    root = folder.resolve()
    if whole.parent.resolve() != root and root not in whole.parent.resolve().parents:
        message = f"the port names {path}, which is outside its scratch folder"
        raise PortError(message)
    return whole


def _split(raw: np.ndarray, name: str) -> tuple[dict[str, Any], np.ndarray]:
    """Return the header and the bytes after it."""
    size = int.from_bytes(raw[:_LENGTH].tobytes(), "little") if raw.size >= _LENGTH else -1
    if not 0 < size <= min(raw.size - _LENGTH, _MOST_HEADER):
        big_endian = raw.size > _LENGTH and 0 < int.from_bytes(raw[:_LENGTH].tobytes(), "big") < (
            raw.size
        )
        message = (
            f"{name} is not safetensors: its first 8 bytes, little-endian, are no header length"
            f"{' (they are one in big-endian order)' if big_endian else ''}"
        )
        raise PortError(message)
    try:
        header = json.loads(
            raw[_LENGTH : _LENGTH + size].tobytes(), object_pairs_hook=_without_repeats
        )
    except ValueError as error:
        message = f"{name} is not safetensors: its header is no JSON ({error})"
        raise PortError(message) from error
    if not isinstance(header, dict):
        message = f"{name} is not safetensors: its header is no JSON object"
        raise PortError(message)
    return header, raw[_LENGTH + size :]


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        message = "a name occurs twice"
        raise ValueError(message)
    return found


def _tensor(data: np.ndarray, entry: Any, what: str) -> np.ndarray:
    """Return one tensor, copied out of the file's bytes."""
    if not isinstance(entry, dict) or entry.get("dtype") not in DTYPES:
        dtype = entry.get("dtype") if isinstance(entry, dict) else entry
        message = f"{what}: dtype {dtype!r} is none of {', '.join(DTYPES)}"
        raise PortError(message)
    shape = _sizes(entry.get("shape"), f"{what}: shape")
    offsets = _sizes(entry.get("data_offsets"), f"{what}: data_offsets")
    start, end = offsets if len(offsets) == len(("start", "end")) else (0, -1)
    dtype = np.dtype(DTYPES[entry["dtype"]])
    wanted = math.prod(shape) * dtype.itemsize
    if not start <= end <= data.size or end - start != wanted:
        message = (
            f"{what}: {entry['dtype']} of shape {tuple(shape)} takes {wanted} bytes, data_offsets "
            f"are {offsets} of {data.size} bytes"
        )
        raise PortError(message)
    array = np.frombuffer(data[start:end].tobytes(), dtype).reshape(shape)
    return _read_as(entry["dtype"], array.astype(dtype.newbyteorder("=")))


def _sizes(value: Any, what: str) -> list[int]:
    """Return a list of numbers that count something."""
    if isinstance(value, list) and all(type(n) is int and n >= 0 for n in value):
        return value
    message = f"{what} {value!r} is no list of sizes"
    raise PortError(message)


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray], floating: str = "") -> None:
    """Write a safetensors file.

    Args:
        path: The file.
        arrays: By name.
        floating: Arithmetic to which floating arrays are rounded first; as they are if empty.

    Raises:
        OSError: The file cannot be written.
    """
    header: dict[str, Any] = {}
    pieces: list[bytes] = []
    end = 0
    for name, array in arrays.items():
        code, bits = _encoded(array, floating)
        start, end = end, end + bits.nbytes
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [start, end]}
        pieces.append(bits.tobytes())
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _LENGTH)
    path.write_bytes(b"".join([struct.pack("<Q", len(text)), text, *pieces]))


def rounded(arrays: Mapping[str, np.ndarray], arithmetic: str) -> dict[str, np.ndarray]:
    """Round floating arrays to an arithmetic, bfloat16 as float32; any other leaves them alone."""
    return {
        name: _read_as(*_encoded(array, arithmetic)) if array.dtype.kind == "f" else array
        for name, array in arrays.items()
    }


def widened(bits: np.ndarray) -> np.ndarray:
    """Return bfloat16, given as uint16, as float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _read_as(code: str, bits: np.ndarray) -> np.ndarray:
    return widened(bits) if code == "BF16" else bits


def _encoded(array: np.ndarray, floating: str) -> tuple[str, np.ndarray]:
    """Return the name of the dtype in which an array is written, and its bits."""
    if array.dtype.kind == "f" and floating == "bfloat16":
        bits = np.asarray(array, np.float32, order="C").view(np.uint32)
        rounded = bits + 0x7FFF + (bits >> 16 & 1)
        bits = np.where(np.isnan(array), bits | 1 << 22, rounded)  # a NaN stays one
        return "BF16", (bits >> 16).astype("<u2")
    if array.dtype.kind == "f" and floating in _FLOATING:
        with np.errstate(over="ignore"):
            array = array.astype(floating)
    little = np.asarray(array, order="C").astype(array.dtype.newbyteorder("<"), copy=False)
    return _OF_NUMPY[little.dtype], little


_FLOATING = ("float64", "float32", "float16")
