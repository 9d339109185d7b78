"""Weights and inputs from a recipe that any language can rebuild (docs/recipe.md).

Every tensor is a function of a seed and its canonical name alone: the name is hashed to the key of
a counter-based generator (Philox 4x64-10), whose bytes are read as small odd integers and scaled by
a power of two. The values are exact in float64, float32, float16 and bfloat16, so what is measured
afterwards is arithmetic and never the rounding of weights.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

SEED = 1
"""The seed of all goldens."""

_INT8_VARIANCE = 21845
"""Variance of 2k+1 for k uniform on -128..127: (256**2 - 1) / 3, an integer."""


class Kind(StrEnum):
    """What a tensor is for; it decides how integers become values."""

    WEIGHT = "weight"
    EMBEDDING = "embedding"
    NORM = "norm"
    BIAS = "bias"
    INPUT = "input"


def words(seed: int, name: str, count: int) -> np.ndarray:
    """Draw 64-bit words for one named tensor.

    Args:
        seed: Seed of the whole set.
        name: Canonical name of the tensor.
        count: Number of words.

    Returns:
        uint64 array of `count` words: Philox 4x64-10, key = the first 16 bytes of
        SHA-256(`seed:name`) as two little-endian words, first counter 1.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
    return np.random.Philox(key=key).random_raw(count)


def int8_stream(seed: int, name: str, count: int) -> np.ndarray:
    """Draw int8 values: the words' little-endian bytes, in order.

    Args:
        seed: Seed of the whole set.
        name: Canonical name of the tensor.
        count: Number of values.

    Returns:
        int8 array of `count` values, uniform on -128..127.
    """
    return words(seed, name, -(-count // 8)).astype("<u8", copy=False).view(np.int8)[:count]


def int24_stream(seed: int, name: str, count: int) -> np.ndarray:
    """Draw 24-bit signed values: the words' little-endian 32-bit halves, shifted right by 8.

    Args:
        seed: Seed of the whole set.
        name: Canonical name of the tensor.
        count: Number of values.

    Returns:
        int32 array of `count` values, uniform on -2**23..2**23 - 1.
    """
    return words(seed, name, -(-count // 2)).astype("<u8", copy=False).view("<i4")[:count] >> 8


def weight_exponent(fan_in: int) -> int:
    """Choose the power of two that brings a weight's row to about unit gain.

    Args:
        fan_in: Number of products that one output sums.

    Returns:
        The smallest e with 2 * 4**e >= 21845 * fan_in, so that fan_in times the variance of
        (2k+1) * 2**-e lies in (1/2, 2]. Integer arithmetic only.
    """
    exponent = 0
    while 2 * 4**exponent < _INT8_VARIANCE * fan_in:
        exponent += 1
    return exponent


@dataclass(frozen=True)
class TensorRecipe:
    """How one tensor is drawn.

    Attributes:
        name: Canonical name, the key of the generator.
        shape: Shape of the tensor.
        kind: What it is for.
        dense: 24-bit instead of 8-bit integers (float32 and float64 only).
        shift: The tensor is multiplied by 2**shift (for a norm weight: not used).
        row_shifts: Rows (first axis) that are multiplied by a further power of two.
        constant: Nothing is drawn: every element has this value.
        signs: Only the signs of the values are kept: each becomes 2**shift or -2**shift.
        border: Elements further than this many rows and columns from the edge become 0.
        mean: Added to every element at the end.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    dense: bool = False
    shift: int = 0
    row_shifts: tuple[tuple[int, int], ...] = ()
    constant: float | None = None
    signs: bool = False
    border: int | None = None
    mean: float = 0.0

    def draw(self, dtype: type[np.floating] = np.float32, seed: int = SEED) -> np.ndarray:
        """Draw the tensor.

        Args:
            dtype: `np.float32` or `np.float64`; the values are exact in both.
            seed: Seed of the whole set.

        Returns:
            Array of `shape` and `dtype`.
        """
        if self.constant is not None:
            return np.full(self.shape, self.constant, dtype)
        count = int(np.prod(self.shape, dtype=np.int64))
        stream = int24_stream if self.dense else int8_stream
        k = stream(seed, self.name, count)
        if self.kind is Kind.NORM:
            values = self._norm(k, dtype)
        else:
            values = k.astype(dtype)
            values *= 2
            values += 1
            values *= dtype(2.0 ** (self.shift - self._scale_exponent()))
        values = values.reshape(self.shape)
        for row, shift in self.row_shifts:
            values[row] *= dtype(2.0**shift)
        if self.signs:
            values = np.sign(values) * dtype(2.0**self.shift)
        if self.border is not None:
            values[..., self.border : -self.border, self.border : -self.border] = 0
        return values + dtype(self.mean) if self.mean else values

    def _norm(self, k: np.ndarray, dtype: type[np.floating]) -> np.ndarray:
        """Norm weights: 1 +- 1/8, in steps of 2**-7, or of 2**-22 when dense."""
        if self.dense:
            return (1 + (2 * (k >> 4) + 1) * 2.0**-23).astype(dtype)
        return (1 + (k >> 3) * 2.0**-7).astype(dtype)

    def _scale_exponent(self) -> int:
        """Return e so that a value is (2k+1) * 2**-e before `shift`."""
        exponent = {Kind.BIAS: 11, Kind.INPUT: 7, Kind.EMBEDDING: weight_exponent(1)}.get(self.kind)
        if exponent is None:
            exponent = weight_exponent(int(np.prod(self.shape[1:], dtype=np.int64)))
        return exponent + 16 if self.dense else exponent


def digest(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's little-endian bytes, dtype and shape.

    Args:
        array: Any numeric array.

    Returns:
        Hex digest; equal only for equal dtype, shape and bits.
    """
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    header = f"{array.dtype.name}:{','.join(map(str, array.shape))}:".encode()
    return hashlib.sha256(header + little.tobytes()).hexdigest()
