"""Where in a tensor the error is: by slices of each axis, and as a map of two axes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

MOST = 64
"""Rows and columns of a map that is shown; a larger one is reduced by the worst."""

HEAD = "head"

_PLENTY = 2**20
"""Values from which it can be told what an error is like."""
_THINNED = ("row", "column", "token")

_MAPS = (("row", "column"), ("token", "feature"), ("channel", "token"), ("batch", "feature"))
"""Pairs of axes that make a picture of a tensor."""


@dataclass(frozen=True)
class Errors:
    """What a port computed beside the truth, both divided by the noise: an error is a ratio.

    Attributes:
        got: float64, what the port computed.
        truth: float64, what is right.
        axes: A name for each axis, from `tensor_axes.axes_of`.
    """

    got: np.ndarray
    truth: np.ndarray
    axes: tuple[str, ...]

    @cached_property
    def squares(self) -> np.ndarray:
        """Return the square of each element's ratio."""
        with np.errstate(all="ignore"):
            return np.square(self.got - self.truth)

    def along(self, *axes: str) -> np.ndarray:
        """Return the ratio of every slice: the root mean square of its errors.

        Args:
            axes: Those that stay, in the tensor's order.
        """
        return self._root_mean(self.squares, axes)

    def levels(self, *axes: str) -> np.ndarray:
        """Return how large the truth is in every slice: its root mean square over the whole's."""
        with np.errstate(all="ignore"):
            squares = np.square(self.truth)
            whole = float(np.sqrt(np.mean(squares)))
        return self._root_mean(squares, axes) / (whole or 1.0)

    def _root_mean(self, squares: np.ndarray, axes: tuple[str, ...]) -> np.ndarray:
        others = tuple(i for i, axis in enumerate(self.axes) if axis not in axes)
        with np.errstate(all="ignore"):
            return np.sqrt(np.mean(squares, axis=others))

    def taking(self, axis: str, places: list[int]) -> Errors:
        """Return the part at some places of an axis."""
        i = self.axes.index(axis)
        got, truth = (np.take(a, places, axis=i) for a in (self.got, self.truth))
        return Errors(got, truth, self.axes)

    def thinned(self) -> Errors:
        """Return rows, columns and tokens at even distances, so that the rest takes no time."""
        thick = [axis in _THINNED for axis in self.axes]
        times = self.got.size / _PLENTY
        step = math.ceil(times ** (1 / sum(thick))) if times > 1 and any(thick) else 1
        places = tuple(slice(None, None, step if own else 1) for own in thick)
        return Errors(self.got[places], self.truth[places], self.axes)

    def by_heads(self, heads: int) -> Errors:
        """Return the same with an axis of heads in front of that of features; 1 changes nothing."""
        if heads == 1:
            return self
        i = self.axes.index("feature")
        shape = self.got.shape
        split = (*shape[:i], heads, shape[i] // heads, *shape[i + 1 :])
        axes = (*self.axes[:i], HEAD, *self.axes[i:])
        return Errors(self.got.reshape(split), self.truth.reshape(split), axes)

    def slices(self, heads: int) -> dict[str, list[float]]:
        """Return the ratios of the slices of every axis, and of every head where there are some."""
        found = {axis: self.along(axis).tolist() for axis in self.axes}
        return found if heads == 1 else found | {HEAD: self.by_heads(heads).along(HEAD).tolist()}

    def map(self) -> dict[str, Any] | None:
        """Return the ratios over two axes, or None for a tensor that has no such pair.

        Returns:
            Names of the axes, `height` and `width` of the map, at most 64, what they are reduced
            `of`, and `values`, rows of ratios.
        """
        pair = next((pair for pair in _MAPS if set(pair) <= set(self.axes)), None)
        if pair is None:
            return None
        whole = self.along(*pair)
        values = reduced(whole)
        rows, columns = pair
        height, width = values.shape
        facts = {"rows": rows, "columns": columns, "height": height, "width": width}
        return facts | {"of": list(whole.shape), "values": values.tolist()}


def reduced(values: np.ndarray, most: int = MOST) -> np.ndarray:
    """Make a map smaller: each cell is the worst of those that it stands for.

    Args:
        values: (rows, columns), or more axes after these two.
        most: Rows and columns that are left at most.
    """
    for axis in (0, 1):
        length = values.shape[axis]
        starts = np.arange(0, length, -(-length // most))
        values = np.maximum.reduceat(values, starts, axis=axis)
    return values
