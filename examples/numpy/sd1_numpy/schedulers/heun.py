"""Heun: a step of Euler's is tried, then taken along the mean of the slopes at both of its ends.

Source: EDM (Karras et al., 2022), algorithm 1. The second slope takes a second call of the model;
not in the last step, whose end is the picture itself: n steps are 2 n - 1 calls.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from sd1_numpy.layers import Array
from sd1_numpy.schedulers.base import ANY, EITHER, Settings
from sd1_numpy.schedulers.sigmas import SigmaScheduler


class Heun(SigmaScheduler):
    """The method of second order: even calls try a step, odd calls take it."""

    settings: ClassVar[Settings] = {
        "use_karras_sigmas": EITHER,
        "clip_sample": EITHER,
        "clip_sample_range": ANY,
    }
    calls_per_step = 2

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Begin a run."""
        super().__init__(config)
        if self.late % 2:
            raise ValueError(
                f"begin_index is {self.late}, expected an even one: steps take 2 calls"
            )
        self.start = self.tried = np.empty(0)

    def grid(self, every: Array) -> tuple[Array, Array]:
        """Return all but the first twice: as the end of a step and as the start of the next."""
        every, sigmas = super().grid(every)
        return every.repeat(2)[1:], sigmas.repeat(2)[1:]

    def picture(self, said: Array, x: Array, s: float) -> Array:
        """Return the picture, clipped where that is asked for."""
        x_0 = super().picture(said, x, s)
        limit = self.config["clip_sample_range"]
        return np.clip(x_0, -limit, limit) if self.config["clip_sample"] else x_0

    def step(self, k: int, said: Array, x: Array, noise: Array | None) -> Array:  # noqa: ARG002
        """Return where a step would end, and in the next call where it ends."""
        slope = self.slope(k, said, x)
        if k % 2 == 0:
            self.start, self.tried = x, slope
            return x + (self.sigma(k + 1) - self.sigma(k)) * slope
        return self.start + (self.sigma(k) - self.sigma(k - 1)) * (self.tried + slope) / 2
