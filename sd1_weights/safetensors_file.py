"""Safetensors files, read without trust and written one tensor after another; without torch.

The format: 8 bytes with the length of the header, little-endian; the header, a JSON object of
dtype, shape and place by name; the tensors' bytes. Source: the format's description in the
safetensors project.
"""

from __future__ import annotations

import json
import math
import reprlib
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from sd1_weights.errors import CheckpointError
from sd1_weights.pickles import shown
from sd1_weights.stored import DTYPES, Stored

LENGTH = 8
"""Bytes before the header: its length."""

METADATA = "__metadata__"
Watch = Callable[[list[Stored]], Iterable[Stored]]
_FIELDS = {"dtype", "shape", "data_offsets"}
_MOST_HEADER = 16 << 20
"""Each byte can ask for 25 bytes of memory. SD v1 with EMA weights takes 0.3 MB."""

_MOST_NAME = 250
_MOST_AXES = 64
_MOST_BYTES = 2**63


class Entry(NamedTuple):
    """What a header says of a tensor.

    Attributes:
        dtype: A name of `DTYPES`.
        shape: Its shape.
        start: Its first byte, counted from the header's end.
        end: The byte after its last.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_safetensors(path: Path) -> dict[str, Stored]:
    """Map a file of weights into memory.

    Args:
        path: The file.

    Returns:
        Its tensors by name, in the file's order: views of the mapped file. What is written into
        them stays in memory.

    Raises:
        CheckpointError: It is not safetensors, or tensors overlap, or not all bytes are one's.
    """
    raw = mapped(path)
    header, data = split(raw, str(path))
    _check_whole(header, data.size, path)
    entries = {}
    for name, fields in header.items():
        if name != METADATA:
            check_name(name, path)
            entries[name] = entry_of(fields, data.size, f"{path}: {name}")
    _check_tiling(entries, data.size, path)
    return {
        name: Stored(name, entry.dtype, entry.shape, _Reading(data, entry), str(path))
        for name, entry in entries.items()
    }


class _Reading:
    """Reads one tensor of a mapped file."""

    def __init__(self, data: np.ndarray, entry: Entry) -> None:
        self.data = data
        self.entry = entry

    def __call__(self) -> np.ndarray:
        return array_of(self.data, self.entry)


def check_name(name: str, path: Path) -> None:
    """Refuse the name of a tensor that no message could show.

    Raises:
        CheckpointError: It is too long, or not printable.
    """
    if len(name) > _MOST_NAME or not name.isprintable():
        raise CheckpointError(
            f"{path}: {shown(name)} is no name of a tensor: expected at most {_MOST_NAME} "
            "printable characters"
        )


def mapped(path: Path) -> np.ndarray:
    """Map a file into memory, privately.

    Returns:
        Its bytes; uint8.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        if not path.is_file():
            missing = "is a link to nothing" if path.is_symlink() else "is missing"
            what = "is no regular file" if path.exists() else missing
            raise CheckpointError(f"{path} {what}")
        if not path.stat().st_size:
            raise CheckpointError(f"{path} is empty")
        return np.memmap(path, np.uint8, mode="c")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def split(raw: np.ndarray, name: str) -> tuple[dict[str, Any], np.ndarray]:
    """Return the header and the bytes after it.

    Args:
        raw: The bytes of the file.
        name: What it is called in messages.

    Raises:
        CheckpointError: There is no header, or a name occurs twice in it, or what is said beside
            the tensors is no text.
    """
    size = int.from_bytes(raw[:LENGTH].tobytes(), "little") if raw.size >= LENGTH else -1
    if raw.size - LENGTH < size <= _MOST_HEADER and bytes(raw[LENGTH : LENGTH + 1]) == b"{":
        raise CheckpointError(
            f"{name} is cut off: its header takes {size} bytes, it has {raw.size - LENGTH} of them"
        )
    if not 0 < size <= min(raw.size - LENGTH, _MOST_HEADER):
        big_endian = raw.size > LENGTH and 0 < int.from_bytes(raw[:LENGTH].tobytes(), "big") < (
            raw.size
        )
        raise CheckpointError(
            f"{name} is not safetensors: its first 8 bytes, little-endian, are no header length"
            f"{' (they are one in big-endian order)' if big_endian else ''}"
        )
    try:
        text = raw[LENGTH : LENGTH + size].tobytes().decode()
        header = json.loads(text, object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{name} is not safetensors: its header is no JSON ({error})"
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{name} is not safetensors: its header is no JSON object")
    metadata = header.get(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(t, str) for t in metadata.values()):
        raise CheckpointError(f"{name} is not safetensors: {METADATA} in its header is no texts")
    return header, raw[LENGTH + size :]


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of a JSON object, for `json.loads`.

    Raises:
        ValueError: A name occurs twice: readers differ in which they take.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {reprlib.repr(twice)} occurs twice")
    return found


def entry_of(fields: Any, size: int, what: str) -> Entry:
    """Check what a header says of a tensor.

    Args:
        fields: Its object in the header.
        size: Bytes after the header.
        what: File and tensor, for messages.

    Raises:
        CheckpointError: It is no tensor, or not within the file.
    """
    if not isinstance(fields, dict) or fields.keys() != _FIELDS:
        found = sorted(map(shown, fields)) if isinstance(fields, dict) else fields
        raise CheckpointError(
            f"{what} has {reprlib.repr(found)}, expected {', '.join(sorted(_FIELDS))}"
        )
    dtype = fields["dtype"]
    if dtype not in list(DTYPES):
        raise CheckpointError(f"{what}: dtype {reprlib.repr(dtype)} is none of {', '.join(DTYPES)}")
    shape = _sizes(fields["shape"], f"{what}: shape")
    offsets = _sizes(fields["data_offsets"], f"{what}: data_offsets")
    itemsize = np.dtype(DTYPES[dtype]).itemsize
    # An axis of no elements makes no room for the others: arrays are refused by their product.
    if math.prod(max(n, 1) for n in shape) * itemsize >= _MOST_BYTES:
        raise CheckpointError(f"{what} of shape {tuple(shape)} is larger than any memory")
    start, end = offsets if len(offsets) == len(("start", "end")) else (0, -1)
    wanted = math.prod(shape) * itemsize
    if not start <= end <= size or end - start != wanted:
        raise CheckpointError(
            f"{what}: {dtype} of shape {tuple(shape)} takes {wanted} bytes, data_offsets "
            f"are {offsets} of {size} bytes"
        )
    return Entry(dtype, tuple(shape), start, end)


def _sizes(value: Any, what: str) -> list[int]:
    """Return a list of numbers that count something."""
    if (
        isinstance(value, list)
        and len(value) <= _MOST_AXES
        and all(type(n) is int and 0 <= n < 2**63 for n in value)
    ):
        return value
    raise CheckpointError(
        f"{what} {reprlib.repr(value)} is no list of sizes, at most {_MOST_AXES} of them"
    )


def array_of(data: np.ndarray, entry: Entry) -> np.ndarray:
    """Return one tensor's bits as an array: a view of the bytes, if they lie at a whole place."""
    dtype = np.dtype(DTYPES[entry.dtype])
    raw = data[entry.start : entry.end]
    if raw.size and raw.ctypes.data % dtype.itemsize:
        raw = raw.copy()
    return raw.view(dtype).reshape(entry.shape).view(np.ndarray)


def _check_whole(header: Mapping[str, Any], size: int, path: Path) -> None:
    """Refuse a file that ends too early, as a download that was broken off does."""
    ends = [
        fields["data_offsets"][-1]
        for fields in header.values()
        if isinstance(fields, dict)
        and isinstance(fields.get("data_offsets"), list)
        and fields["data_offsets"]
    ]
    wanted = max((end for end in ends if type(end) is int), default=0)
    if size < wanted < _MOST_BYTES:
        raise CheckpointError(
            f"{path} is cut off: its tensors take {wanted} bytes, it has {size} of them; get it "
            "again"
        )


def _check_tiling(entries: Mapping[str, Entry], size: int, path: Path) -> None:
    """Refuse tensors that share bytes, and bytes that are no tensor's."""
    place, before = 0, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != place:
            fault = "overlaps" if entry.start < place else "does not follow"
            raise CheckpointError(
                f"{path}: {name} {fault} {before}: it begins at byte {entry.start}, "
                f"expected {place}"
            )
        place, before = entry.end, name
    if place != size:
        raise CheckpointError(
            f"{path}: the last {size - place} of {size} bytes belong to no tensor"
        )


def write_safetensors(
    file: BinaryIO,
    tensors: Iterable[Stored],
    metadata: Mapping[str, str],
    watch: Watch = iter,
) -> None:
    """Write tensors, each read when its turn comes: 3.4 GB need no 3.4 GB of memory.

    Args:
        file: Open for writing.
        tensors: To be written under their keys, in this order.
        metadata: Texts for the header.
        watch: Passes tensors on one by one, showing progress.
    """
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    rows = list(tensors)
    end = 0
    for tensor in rows:
        start, end = end, end + tensor.nbytes
        header[tensor.key] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH)
    file.write(struct.pack("<Q", len(text)))
    file.write(text)
    for tensor in watch(rows):
        file.write(np.ascontiguousarray(tensor.bits(), DTYPES[tensor.dtype]).data)
