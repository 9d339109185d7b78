"""Is one sample larger than another? The exact rank-sum test, and Holm's correction for many."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

ALPHA = 0.05
"""How often a comparison of two equal benchmarks may see a difference anywhere."""

_EXACT = 120
"""Runs of both together up to which every order is counted; above it the sum is normal."""


def p_larger(before: Sequence[float], after: Sequence[float]) -> float:
    """Return how probable ranks of `after` this high are if both are of one distribution.

    Wilcoxon's rank-sum test ("Individual comparisons by ranking methods", 1945), one-sided; equal
    values share the mean of their ranks, and the distribution is that of these very ranks.

    Args:
        before: At least one value.
        after: At least one value.

    Returns:
        The probability, exact up to 120 values.
    """
    ranks = _doubled_ranks(np.array([*before, *after], np.float64))
    n, total = len(after), len(ranks)
    found = int(ranks[len(before) :].sum())
    if total > _EXACT:
        mean, variance = n * ranks.mean(), n * (total - n) * ranks.var() / (total - 1)
        z = (found - 1 - mean) / math.sqrt(variance) if variance else -math.inf
        return 0.5 * math.erfc(z / math.sqrt(2))
    ways = np.zeros((n + 1, int(ranks.sum()) + 1))  # subsets by size and sum
    ways[0, 0] = 1.0
    for rank in ranks.tolist():
        ways[1:, rank:] += ways[:-1, : ways.shape[1] - rank]
    return float(ways[n, found:].sum() / ways[n].sum())


def _doubled_ranks(values: np.ndarray) -> np.ndarray:
    """Return twice the ranks from 1, the mean where values are equal: integers."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    twice: np.ndarray = (2 * last - counts + 1)[place]
    return twice


def p_least(before: int, after: int) -> float:
    """Return the smallest p of so many runs: all of one beyond all of the other."""
    return 1 / math.comb(before + after, after)


def runs_needed(rows: int) -> int:
    """Return how many runs each side needs so that one of so many rows can be told apart."""
    n = 1
    while p_least(n, n) > ALPHA / max(rows, 1):
        n += 1
    return n


def holm(p: Sequence[float]) -> list[bool]:
    """Say which of several hypotheses fall, so that with 1 - `ALPHA` none falls wrongly.

    Holm, "A simple sequentially rejective multiple test procedure", 1979; the tests may depend on
    each other.
    """
    order = sorted(range(len(p)), key=lambda i: p[i])
    fallen = [False] * len(p)
    for k, i in enumerate(order):
        if p[i] > ALPHA / (len(p) - k):
            break
        fallen[i] = True
    return fallen
