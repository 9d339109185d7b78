"""Outputs too large to store whole: a sketch of all, and the first and last rows and columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from conformance.sketch import distance, sketch

WHOLE_LIMIT = 50_000
"""Outputs of up to this many elements are stored whole."""

EDGE = 8
"""Rows and columns kept at each end of the last two axes."""

BORDER = 1
"""The same of a pipeline's image, whose uint8 picture is kept besides, and of large latents."""


@dataclass(frozen=True)
class Large:
    """What a golden holds of a large output.

    Attributes:
        shape: Shape of the whole.
        norm: L2 norm of the whole.
        buckets: float64 (64,), its sketch.
        rows: Its first and last 8 rows (or 1 each): (..., 16, columns).
        columns: Its first and last 8 columns (or 1 each): (..., rows, 16).
    """

    shape: tuple[int, ...]
    norm: float
    buckets: np.ndarray
    rows: np.ndarray
    columns: np.ndarray

    @classmethod
    def of(cls, array: np.ndarray, edge: int = EDGE) -> Large:
        """Keep what is stored of a floating array of two or more axes."""
        wide = array.astype(np.float64)
        rows, columns = edges(wide, edge)
        with np.errstate(all="ignore"):
            return cls(array.shape, float(np.linalg.norm(wide)), sketch(array), rows, columns)

    @property
    def edge(self) -> int:
        """Return the number of rows and columns kept at each end."""
        return self.rows.shape[-2] // 2

    def errors(self, other: Large) -> tuple[float, float]:
        """Measure another tensor of the same shape against this one.

        Args:
            other: What is kept of it.

        Returns:
            Two relative errors: of the whole (L2, estimated from the sketches) and of the worst
            element among the edges (over the RMS of the whole).
        """
        pairs = ((other.rows, self.rows), (other.columns, self.columns))
        with np.errstate(all="ignore"):
            element = max(float(np.max(np.abs(got - wanted))) for got, wanted in pairs)
            norm = np.float64(self.norm)  # against an exact zero any error is infinite
            rms = norm / np.sqrt(np.prod(self.shape))
            return float(distance(other.buckets, self.buckets) / norm), float(element / rms)


def edges(array: np.ndarray, edge: int = EDGE) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and last rows, and the first and last columns."""
    rows = np.concatenate([array[..., :edge, :], array[..., -edge:, :]], axis=-2)
    columns = np.concatenate([array[..., :edge], array[..., -edge:]], axis=-1)
    return rows, columns
