"""CountSketch: 64 numbers, 32 or 16, that stand for a tensor of any size.

Each element is added, with a random sign, to one of 64 buckets. The sketch is linear, so the
difference of two sketches estimates the L2 distance of the tensors; it sees permutations, signs and
single elements, which sums and norms do not.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from conformance.recipe import SEED, int8_stream

BUCKETS = 64
BLOCK_BUCKETS = 32
"""Those of the named blocks where these are all that a case keeps: they share the room."""
STEP_BUCKETS = 16
"""Those of a scheduler's steps: many small tensors, of which each differs in few ways."""

_CHUNK = 2**16
"""Elements at a time: what is made of them stays in the processor's cache."""
_LARGEST = 2.0**900
"""Magnitudes up to which float64 values are split: far above them the split would overflow."""


@lru_cache(maxsize=64)
def _table(length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the bucket of each element, uint8, and its sign, int8.

    One byte an element, from the generator named `sketch/<length>`: the low six bits (five of
    them for 32 buckets, four for 16) are the bucket, the next bit the sign.
    """
    draws = int8_stream(SEED, f"sketch/{length}", length).view(np.uint8)
    return draws & (count - 1), 1 - 2 * ((draws >> 6) & 1).astype(np.int8)


def sketch(array: np.ndarray, buckets: int = BUCKETS) -> np.ndarray:
    """Sketch one tensor.

    Args:
        array: Floating array of any shape, read in C order.
        buckets: 64, 32 or 16.

    Returns:
        float64 array of that many buckets. Sums of float64 are rounded once: the noise of a
        residual sum in float64 is smaller than the rounding of a bucket's sum would be.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    places, signs = _table(flat.size, buckets)
    grid = _grid(flat) if flat.dtype == np.float64 else 0.0
    upper, lower = np.zeros(buckets), np.zeros(buckets)
    with np.errstate(all="ignore"):
        for start in range(0, flat.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            values = flat[part].astype(np.float64)
            values *= signs[part]
            if grid:
                high = (values + grid) - grid
                upper += np.bincount(places[part], high, buckets)
                values -= high
            lower += np.bincount(places[part], values, buckets)
        return upper + lower


def _grid(flat: np.ndarray) -> float:
    """Return what, added and taken off again, leaves the upper 26 bits of float64 values.

    Those are multiples of one power of two, so that sums of 2**27 of them are exact; what is cut
    off is so small that its own sum's rounding is none of the whole's (Rump, Ogita and Oishi,
    Accurate floating-point summation, part I, algorithm 3.2: ExtractVector).

    Returns:
        1.5 times a power of two; 0 where values cannot, or need not, be split.
    """
    largest = float(max(flat.max(), -flat.min())) if flat.size else 0.0
    return math.ldexp(1.5, math.frexp(largest)[1] + 26) if 0 < largest < _LARGEST else 0.0


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Estimate the L2 distance of two tensors from their sketches.

    Args:
        first: Buckets.
        second: As many.

    Returns:
        The estimate: of 64 buckets within a factor of 2 but for one time in 10**10 where the error
        is dense; of 32 it reads under half one time in 10**5; of 16 one time in 10**3, and over
        twice as much one in 10**7.
    """
    return float(np.sqrt(np.sum((first - second) ** 2)))
