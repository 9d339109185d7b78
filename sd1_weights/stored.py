"""One tensor of a file: what it is at once, its bits when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from sd1_weights.errors import CheckpointError

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
"""Names of safetensors' dtypes, and how their bytes are read: bfloat16 as the bits that it is."""

WEIGHTS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
"""The dtypes that weights may have: their names in Python, and in files."""


@dataclass(frozen=True)
class Stored:
    """One tensor in a file, or on its way into one.

    Attributes:
        key: Its name there.
        dtype: A name of `DTYPES`.
        shape: Its shape.
        read: Returns its bits: an array of this shape and of `DTYPES[dtype]`, where that is
            possible a view of the file, which is mapped into memory.
        file: What the file is called in messages.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    file: str = ""

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Return the number of bytes."""
        return self.size * np.dtype(DTYPES[self.dtype]).itemsize

    @property
    def is_weight(self) -> bool:
        """Whether it has a dtype of weights: a floating one."""
        return self.dtype in WEIGHTS.values()

    def bits(self) -> np.ndarray:
        """Return its bits, little-endian."""
        return self.read()

    def float32(self) -> np.ndarray:
        """Return its values as float32, those of narrower types exactly."""
        bits = self.read()
        if self.dtype == "BF16":
            return widened(bits)
        with np.errstate(over="ignore", invalid="ignore"):  # of float64
            return bits.astype(np.float32, copy=False)

    def reshaped(self, shape: tuple[int, ...]) -> Stored:
        """Return the same elements in another shape."""
        return replace(self, shape=shape, read=lambda: self.read().reshape(shape))

    def cast(self, dtype: str) -> Stored:
        """Return the values in another dtype of weights, rounded to nearest even.

        Raises:
            CheckpointError: When it is read: a finite value is infinite in that dtype.
        """
        if dtype == self.dtype:
            return self
        return replace(self, dtype=dtype, read=lambda: self._as(dtype))

    def _as(self, dtype: str) -> np.ndarray:
        wide = self.read() if self.dtype == "F64" and dtype != "BF16" else self.float32()
        with np.errstate(over="ignore"):
            bits = bfloat16(wide) if dtype == "BF16" else wide.astype(DTYPES[dtype])
        if not finite(bits, dtype) and np.isfinite(wide).all():
            largest = float(np.abs(wide).max())
            raise CheckpointError(
                f"{self.file}: {self.key} has values up to {largest:.6g}, which {dtype} cannot hold"
            )
        return bits

    def check_finite(self) -> None:
        """Refuse weights that are no numbers.

        Raises:
            CheckpointError: There is a NaN or an infinity.
        """
        bits = self.read()
        if not finite(bits, self.dtype):
            wide = self.float32()
            where = np.argwhere(~np.isfinite(wide))
            raise CheckpointError(
                f"{self.file}: {self.key} holds {len(where)} values that are NaN or infinite, the "
                f"first at {tuple(where[0].tolist())}"
            )


def finite(bits: np.ndarray, dtype: str) -> bool:
    """Say whether all values are numbers, from their bits: no exponent is all ones.

    Read as integers, positive infinity and NaN are the largest signed ones, negative ones the
    largest unsigned ones: two looks at memory, and no copy of it.
    """
    if dtype not in _INFINITY or not bits.size:
        return True
    size = bits.dtype.itemsize
    sign = 1 << (8 * size - 1)
    largest = int(bits.view(f"<i{size}").max()), int(bits.view(f"<u{size}").max())
    return largest[0] < _INFINITY[dtype] and largest[1] < _INFINITY[dtype] + sign


_INFINITY = {
    "F64": 0x7FF0_0000_0000_0000,
    "F32": 0x7F80_0000,
    "F16": 0x7C00,
    "BF16": 0x7F80,
}
"""Its bits: those of the exponent."""


def widened(bits: np.ndarray) -> np.ndarray:
    """Return bfloat16, given as uint16, as float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def bfloat16(array: np.ndarray) -> np.ndarray:
    """Return the bits of an array in bfloat16, uint16, rounded to nearest even; NaN stays NaN."""
    bits = np.asarray(array, np.float32, order="C").view(np.uint32)
    rounded = bits + 0x7FFF + (bits >> 16 & 1)
    return (np.where(np.isnan(array), bits | 1 << 22, rounded) >> 16).astype("<u2")
