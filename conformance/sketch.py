"""CountSketch: 64 numbers, 32 or 16, that stand for a tensor of any size.

Each element is added, with a random sign, to one of 64 buckets. The sketch is linear, so the
difference of two sketches estimates the L2 distance of the tensors; it sees permutations, signs and
single elements, which sums and norms do not.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np

from conformance.recipe import SEED, int8_stream

BUCKETS = 64
BLOCK_BUCKETS = 32
"""Those of the named blocks where these are all that a case keeps: they share the room."""
STEP_BUCKETS = 16
"""Those of a scheduler's steps: many small tensors, of which each differs in few ways."""

_WIDE_EPS = 2.0**-63
_WIDE = np.finfo(np.longdouble).eps <= _WIDE_EPS
"""Whether the machine can add in 11 bits more than float64 has: x86. Others add exactly, slowly."""


@lru_cache(maxsize=64)
def _table(length: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (order, signs, starts): elements sorted by bucket, their signs, the buckets' starts.

    One byte an element, from the generator named `sketch/<length>`: the low six bits (five of
    them for 32 buckets, four for 16) are the bucket, the next bit the sign.
    """
    draws = int8_stream(SEED, f"sketch/{length}", length).view(np.uint8)
    buckets = draws & (count - 1)
    order = np.argsort(buckets, kind="stable").astype(np.uint32)
    signs = (1 - 2 * ((draws >> 6) & 1).astype(np.int8))[order]
    starts = np.searchsorted(buckets[order], np.arange(count + 1))
    return order, signs, starts


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
    order, signs, starts = _table(flat.size, buckets)
    values = flat.astype(np.float64)[order] * signs
    with np.errstate(all="ignore"):
        if _WIDE or values.dtype != flat.dtype:
            sums = np.zeros(buckets)
            filled = starts[1:] > starts[:-1]
            if filled.any():
                wide = values.astype(np.longdouble)
                sums[filled] = np.add.reduceat(wide, starts[:-1][filled])
            return sums
        exact = np.isfinite(np.abs(values).sum())
    parts = [values[a:b] for a, b in pairwise(starts)]
    return np.array([math.fsum(part.tolist()) if exact else part.sum() for part in parts])


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
