"""Torch's files (`.ckpt`, `.bin`, `.pt`), read without trust and written; without torch.

The format: a zip archive of uncompressed entries in one folder: `data.pkl`, a pickle that says
what the tensors are; `data/0`, `data/1`, ..., their bytes; `byteorder`; `version`.
Source: torch's notes on serialization, and what `torch.save` writes.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np

from sd1_weights.errors import CheckpointError
from sd1_weights.pickles import described, shown, unpickled
from sd1_weights.safetensors_file import Watch, check_name, mapped
from sd1_weights.stored import DTYPES, Stored
from sd1_weights.torch_names import (
    NAMES,
    ORDERED_DICT,
    STORAGES,
    TENSOR,
    TENSOR_OF_DTYPE,
    UNTYPED,
    UNTYPED_STORAGE,
    Tensor,
)
from sd1_weights.zip_entries import LOCAL, MAGIC, Entry, zip_directory, zip_entries

STATE_DICT = "state_dict"
PICKLE = "data.pkl"

_SAVE_AGAIN = (
    "if you trust it, save it again with torch: "
    'torch.save(torch.load(OLD, map_location="cpu", weights_only=True), NEW)'
)
_NOT_WEIGHTS = {
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.": f"in torch's format before 1.6; {_SAVE_AGAIN}",
    **{
        bytes((0x80, protocol)): f"a pickle outside an archive; {_SAVE_AGAIN}"
        for protocol in range(2, 6)
    },
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: run `git lfs pull`",
    **dict.fromkeys((b"<!doctype", b"<html", b"<?xml"), "a web page: the download went wrong"),
    b"GGUF": "GGUF, whose weights are quantized",
    b"\x89HDF\r\n": "HDF5",
    b"\x1f\x8b": "compressed by gzip: unpack it",
    b"7z\xbc\xaf": "compressed by 7z: unpack it",
}
"""First bytes of other files that come under the names of weights, in any case."""

_FOLDER = "archive"
_VERSION = b"3\n"
_MOST_PICKLE = 4 << 20
"""Each can ask for 100 bytes of memory. SD v1 with EMA weights and an optimizer takes 0.5 MB."""

_MOST_AXES = 64
_MOST_BYTES = 2**63
_ALIGNED = 64
_ZIP64 = 20
"""Bytes of the extra field for sizes of 4 GiB and more."""


@dataclass(frozen=True)
class TorchFile:
    """What a file of torch holds.

    Attributes:
        tensors: Its state dict, by name, in the file's order: views of the mapped file.
        others: Names of what stands beside the state dict, which is not read.
    """

    tensors: dict[str, Stored]
    others: list[str]


def is_torch(raw: np.ndarray) -> bool:
    """Say whether a file's bytes begin like torch's archives."""
    return raw[: len(MAGIC)].tobytes() == MAGIC


def not_weights(raw: np.ndarray) -> str:
    """Say what a file is that is no weights, to end `FILE is ...`; empty if it is not known.

    Args:
        raw: The bytes of the file; uint8.
    """
    if not raw.size:
        return "empty"
    head = raw[:64].tobytes()
    # Safetensors may begin with any length, but its header follows.
    if head[8:9] == b"{":
        return ""
    head = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next(
        (what for magic, what in _NOT_WEIGHTS.items() if head.startswith(magic.lower())), ""
    )


def read_torch(path: Path) -> TorchFile:
    """Map a file of weights into memory.

    Args:
        path: The file: of the top level's `state_dict`, or of a state dict.

    Returns:
        Its tensors. What is written into them stays in memory. The bytes of each are compared
        with their CRC-32 when they are first read.

    Raises:
        CheckpointError: It is no archive of torch, is damaged, would run code, or its state dict
            holds something else than tensors.
    """
    raw = mapped(path)
    directory = zip_directory(path)
    folder = _folder([entry.filename for entry in directory.entries], path)
    entries = zip_entries(directory, raw, path)
    order = entries.get(f"{folder}/byteorder")
    if order is not None and order.checked().tobytes() != b"little":
        raise CheckpointError(f"{order.what} is not `little`: save it on a little-endian machine")
    top = _contents(entries[f"{folder}/{PICKLE}"])
    state = top.get(STATE_DICT)
    others = [key for key in top if key != STATE_DICT]
    if not isinstance(state, dict):
        state, others = top, []
    tensors = {
        key: _stored(key, value, entries, f"{folder}/data", path) for key, value in state.items()
    }
    return TorchFile(
        tensors, [shown(key) if type(key) is str else described(key) for key in others]
    )


def _folder(names: Iterable[str], path: Path) -> str:
    """Return the one folder that holds a pickle."""
    parts = [(folder, rest) for folder, _, rest in (name.partition("/") for name in names)]
    folders = {folder for folder, rest in parts if rest == PICKLE}
    if len(folders) != 1:
        raise CheckpointError(
            f"{path} is an archive with {len(folders)} entries FOLDER/{PICKLE}, torch.save "
            "writes one"
        )
    if any(rest == "constants.pkl" or rest.startswith("code/") for _, rest in parts):
        raise CheckpointError(
            f"{path} is a program of TorchScript, not its weights alone; if you trust it, save "
            "them: torch.save(torch.jit.load(OLD).state_dict(), NEW)"
        )
    return folders.pop()


def _contents(pickle: Entry) -> dict[Any, Any]:
    if pickle.data.size > _MOST_PICKLE:
        raise CheckpointError(
            f"{pickle.what} takes {pickle.data.size} bytes, expected at most {_MOST_PICKLE}"
        )
    top = unpickled(pickle.checked().tobytes(), NAMES, pickle.what)
    if not isinstance(top, dict):
        raise CheckpointError(f"{pickle.what} is {described(top)}, expected a dict of tensors")
    return top


def _stored(key: Any, value: Any, entries: Mapping[str, Entry], folder: str, path: Path) -> Stored:
    """Check that an entry of the state dict is a tensor that lies within its storage."""
    if not isinstance(key, str) or not key.isprintable():
        raise CheckpointError(f"{path}: the state dict has {described(key)} as a name")
    check_name(key, path)
    what = f"{path}: {shown(key)}"
    if not isinstance(value, Tensor):
        raise CheckpointError(f"{what} is {described(value)}, expected a tensor")
    if len(value.shape) > _MOST_AXES:
        raise CheckpointError(f"{what} has {len(value.shape)} axes, expected at most {_MOST_AXES}")
    entry = entries.get(f"{folder}/{value.storage.key}")
    if entry is None:
        raise CheckpointError(
            f"{what} is in the storage {shown(value.storage.key)}, which the archive lacks"
        )
    if entry.data.size < value.storage.nbytes:
        raise CheckpointError(
            f"{entry.what} takes {entry.data.size} bytes, expected {value.storage.nbytes}"
        )
    itemsize = np.dtype(DTYPES[value.dtype]).itemsize
    end = value.offset
    if 0 not in value.shape:
        end += 1 + sum((n - 1) * step for n, step in zip(value.shape, value.stride, strict=True))
    if end * itemsize > value.storage.nbytes:
        raise CheckpointError(
            f"{what} of shape {value.shape} ends {end * itemsize} bytes into its storage, which "
            f"takes {value.storage.nbytes}"
        )
    if math.prod(max(n, 1) for n in value.shape) * itemsize >= _MOST_BYTES:
        raise CheckpointError(f"{what} of shape {value.shape} is larger than any memory")
    return Stored(key, value.dtype, value.shape, _Reading(entry, value), str(path))


class _Reading:
    """Reads one tensor: a view of its storage, unless that lies at an odd place."""

    def __init__(self, entry: Entry, tensor: Tensor) -> None:
        self.entry = entry
        self.tensor = tensor

    def __call__(self) -> np.ndarray:
        data = self.entry.checked()
        tensor = self.tensor
        dtype = np.dtype(DTYPES[tensor.dtype])
        if 0 in tensor.shape:
            return np.empty(tensor.shape, dtype)
        # Along an axis of one element no step is taken, however large the file says it is.
        steps = [
            step * dtype.itemsize if n > 1 else 0
            for n, step in zip(tensor.shape, tensor.stride, strict=True)
        ]
        array: np.ndarray = np.ndarray(
            tensor.shape, dtype, data.data, tensor.offset * dtype.itemsize, steps
        )
        return array if array.flags.aligned else array.copy()


def write_torch(
    file: BinaryIO,
    tensors: Iterable[Stored],
    others: Mapping[str, float | str] = MappingProxyType({}),
    watch: Watch = iter,
) -> None:
    """Write what `torch.save({"state_dict": {...}, **others})` holds, one tensor after another.

    The same tensors give the same bytes. Storages are aligned as torch aligns them.

    Args:
        file: Open for writing, seekable.
        tensors: To be written under their keys, in this order: each is read when its turn comes.
        others: Numbers and texts beside the state dict.
        watch: Passes tensors on one by one, showing progress.
    """
    rows = list(tensors)
    with zipfile.ZipFile(file, "w") as archive:
        _write_entry(archive, PICKLE, _pickled(rows, others))
        _write_entry(archive, "byteorder", b"little")
        _write_entry(archive, "version", _VERSION)
        for index, tensor in enumerate(watch(rows)):
            bits = np.ascontiguousarray(tensor.bits(), DTYPES[tensor.dtype])
            _write_entry(archive, f"data/{index}", bits.data)


def _write_entry(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """Write an entry whose bytes begin at a multiple of `_ALIGNED`."""
    info = zipfile.ZipInfo(f"{_FOLDER}/{name}")
    header = LOCAL.size + len(info.filename) + len(_padding(0)) + _ZIP64
    info.extra = _padding(-(archive.start_dir + header) % _ALIGNED)
    with archive.open(info, "w", force_zip64=True) as entry:
        entry.write(data)


def _padding(size: int) -> bytes:
    """Return an extra field with this many bytes of content: torch's own for the same purpose."""
    return b"FB" + struct.pack("<H", size) + b"Z" * size


def _pickled(tensors: Iterable[Stored], others: Mapping[str, float | str]) -> bytes:
    """Return the pickle, in protocol 2."""
    state = b"".join(
        _text(tensor.key) + _tensor(tensor, index) for index, tensor in enumerate(tensors)
    )
    rest = b"".join(_text(name) + _scalar(value) for name, value in others.items())
    return b"\x80\x02" + _dict(_text(STATE_DICT) + _dict(state) + rest) + b"."


def _tensor(tensor: Stored, index: int) -> bytes:
    """Return a call that makes a tensor of all of storage `index`."""
    typed = tensor.dtype in STORAGES
    storage = _tuple(
        _text("storage"),
        _name(STORAGES.get(tensor.dtype, UNTYPED_STORAGE)),
        _text(str(index)),
        _text("cpu"),
        _scalar(tensor.size if typed else tensor.nbytes),
    )
    fields = (
        storage + b"Q",
        _scalar(0),
        _tuple(*map(_scalar, tensor.shape)),
        _tuple(*map(_scalar, _strides(tensor.shape))),
        b"\x89",
        _name(ORDERED_DICT) + b")R",
    )
    if typed:
        return _name(TENSOR) + _tuple(*fields) + b"R"
    return _name(TENSOR_OF_DTYPE) + _tuple(*fields, _name(UNTYPED[tensor.dtype])) + b"R"


def _strides(shape: tuple[int, ...]) -> Iterator[int]:
    """Give the steps between neighbours along each axis of a contiguous tensor."""
    return (math.prod(max(n, 1) for n in shape[axis:]) for axis in range(1, len(shape) + 1))


def _dict(items: bytes) -> bytes:
    return b"}(" + items + b"u"


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _name(name: str) -> bytes:
    module, _, of = name.rpartition(".")
    return f"c{module}\n{of}\n".encode()


def _scalar(value: float | str) -> bytes:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes((len(data),)) + data
