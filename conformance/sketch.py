"""CountSketch: 64 numbers that stand for a tensor of any size.

Each element is added, with a random sign, to one of 64 buckets. The sketch is linear, so the
difference of two sketches estimates the L2 distance of the tensors; it sees permutations, signs and
single elements, which sums and norms do not.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np

from conformance.recipe import SEED, int8_stream

BUCKETS = 64


@lru_cache(maxsize=64)
def _table(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (order, signs, starts): elements sorted by bucket, their signs, the buckets' starts.

    One byte an element, from the generator named `sketch/<length>`: the low six bits are the
    bucket, the next bit the sign.
    """
    draws = int8_stream(SEED, f"sketch/{length}", length).view(np.uint8)
    buckets = draws & (BUCKETS - 1)
    order = np.argsort(buckets, kind="stable").astype(np.uint32)
    signs = (1 - 2 * ((draws >> 6) & 1).astype(np.int8))[order]
    starts = np.searchsorted(buckets[order], np.arange(BUCKETS + 1))
    return order, signs, starts


def sketch(array: np.ndarray) -> np.ndarray:
    """Sketch one tensor.

    Args:
        array: Floating array of any shape, read in C order.

    Returns:
        float64 array of 64 buckets; sums run pairwise in float64 in a fixed order.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    order, signs, starts = _table(flat.size)
    ordered = flat[order].astype(np.float64)
    ordered *= signs
    return np.array(
        [ordered[a:b].sum() for a, b in pairwise(starts)],
        dtype=np.float64,
    )


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Estimate the L2 distance of two tensors from their sketches.

    Args:
        first: 64 buckets.
        second: 64 buckets.

    Returns:
        The estimate: within a factor of 2 but for one time in 10**10 where the error is dense.
    """
    return float(np.sqrt(np.sum((first - second) ** 2)))
