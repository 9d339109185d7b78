"""What an error looks like that rounding makes: white, or the mark of a narrower type."""

from __future__ import annotations

import numpy as np

_CHANNELS_FIRST = 4
"""Axes of a map; tokens have their features last."""

_FEW = 16
"""Values of a channel, or rows of a map, from which a mean or a spread says something."""

ENOUGH = 128
"""Elements from which an error has a look at all."""


def is_white(error: np.ndarray, truth: np.ndarray) -> bool:
    """Say whether an error is that of roundings before a matrix product, and of nothing else.

    Each output is the sum of many rounding errors that know nothing of each other: so the error is
    unrelated to the truth, is more than a shift of each channel (rounded weights and inputs that
    have a mean make some), and is as large in every channel, row and column as the values there
    would have it. A wrong constant, a slipped eps, a wrong border or another function each break
    one of these.

    Args:
        error: What a layer computed less the truth, float64; the layer was given right inputs.
        truth: float64, same shape, at least two axes.

    Returns:
        False where there are too few elements to tell, too.
    """
    if error.size < ENOUGH or error.ndim < 2 or not np.isfinite(error).all():  # noqa: PLR2004
        return False
    error, truth = _channels_last(error), _channels_last(truth)
    return (
        _unrelated(error, truth)
        and _more_than_shifts(error)
        and _alike(error, truth, -1)
        and all(_alike(error, truth, axis) for axis in range(1, error.ndim - 1))
    )


def _channels_last(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, 1, -1) if array.ndim == _CHANNELS_FIRST else array


_RELATED = 0.15
"""Largest correlation with the truth, beside what chance allows."""


def _unrelated(error: np.ndarray, truth: np.ndarray) -> bool:
    own, other = (x - x.mean(axis=tuple(range(x.ndim - 1))) for x in (error, truth))
    scale = float(np.linalg.norm(own)) * float(np.linalg.norm(other))
    found = abs(float(np.vdot(own, other))) / scale if scale else 0.0
    return found <= _RELATED + 3 / np.sqrt(error.size)


_SHIFT = 0.7
"""Largest share of an error that is one number a channel."""


def _more_than_shifts(error: np.ndarray) -> bool:
    rows = error.reshape(-1, error.shape[-1])
    shifts = float(np.sqrt(np.mean(rows.mean(axis=0) ** 2)))
    return len(rows) < _FEW or shifts <= _SHIFT * float(np.sqrt(np.mean(rows**2)))


_LOUDER, _QUIETER = 4.0, 0.2
"""How far a channel, row or column may be from the median of all, times."""


def _alike(error: np.ndarray, truth: np.ndarray, axis: int) -> bool:
    """Say whether the error is as large everywhere along an axis, in units of the values there."""
    others = tuple(i for i in range(error.ndim) if i != axis % error.ndim)
    count = error.size // error.shape[axis]
    if count < _FEW or error.shape[axis] < 4:  # noqa: PLR2004
        return True
    own = np.sqrt(np.mean(error**2, axis=others))
    values = np.std(truth, axis=others)
    ratios = own / np.maximum(values, np.median(values) / 8)
    middle = float(np.median(ratios))
    low, high = np.quantile(ratios, 0.1), float(ratios.max())
    return bool(middle > 0 and high <= _LOUDER * middle and low >= _QUIETER * middle)


def fraction_bits(value: np.ndarray) -> int:
    """Return how many fraction bits the values of a tensor have at most, 52 for any.

    Args:
        value: Finite, floating.
    """
    mantissas, _ = np.frexp(value.astype(np.float64))
    for bits in (7, 10, 23):
        scaled = mantissas * 2.0 ** (bits + 1)
        if np.array_equal(scaled, np.rint(scaled)):
            return bits
    return 52
