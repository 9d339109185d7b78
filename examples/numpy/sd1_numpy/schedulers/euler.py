"""Euler: from one sigma to the next along the slope at the first.

Source: EDM (Karras et al., 2022), algorithm 1, lines 4 and 5.
"""

from typing import ClassVar

from sd1_numpy.layers import Array
from sd1_numpy.schedulers.base import EITHER, Settings
from sd1_numpy.schedulers.sigmas import SigmaScheduler


class Euler(SigmaScheduler):
    """The method of first order."""

    settings: ClassVar[Settings] = {
        "use_karras_sigmas": EITHER,
        "final_sigmas_type": ("zero", "sigma_min"),
    }

    def step(self, k: int, said: Array, x: Array, noise: Array | None) -> Array:  # noqa: ARG002
        """Follow the tangent."""
        return x + (self.sigma(k + 1) - self.sigma(k)) * self.slope(k, said, x)
