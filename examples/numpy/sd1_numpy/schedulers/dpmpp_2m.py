"""DPM-Solver++ (2M): an exponential integrator for the picture, by its last two predictions.

Source: "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models" (Lu et
al., 2022), algorithm 2. Its samples have variance 1: x = alpha (x_0 + sigma e), where alpha =
1 / sqrt(sigma^2 + 1), and its time is lambda = -log(sigma), half the logarithm of the
signal-to-noise ratio.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from sd1_numpy.layers import Array
from sd1_numpy.schedulers.base import EITHER, Settings
from sd1_numpy.schedulers.sigmas import SigmaScheduler, karras

FEW = 15
"""A run of fewer steps is a short one."""


class DPMPP2M(SigmaScheduler):
    """The multistep method of second order; its first step is of first order, like DDIM's."""

    settings: ClassVar[Settings] = {
        "use_karras_sigmas": EITHER,
        "final_sigmas_type": ("zero", "sigma_min"),
        "lower_order_final": EITHER,
        "euler_at_final": EITHER,
    }

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Begin a run; no picture was seen yet."""
        super().__init__(config)
        self.tables["lambdas"] = -np.log(self.sigmas[:-1])
        self.seen: Array | None = None

    def spaced(self, count: int) -> Array:
        """Return whole timesteps, of one step more, whose last gives way to the final sigma."""
        trailing = self.config["timestep_spacing"] == "trailing"
        every = super().spaced(count) if trailing else super().spaced(count + 1)[:-1]
        return every.round().astype(np.int64)

    def grid(self, every: Array) -> tuple[Array, Array]:
        """Return timesteps and sigmas; Karras' are those between the ends of training."""
        if self.config["use_karras_sigmas"]:
            sigmas = karras(self.trained_sigmas[-1], self.trained_sigmas[0], self.count)
            return self.timesteps_of(sigmas).round().astype(np.int64), sigmas
        if len(set(every.tolist())) < self.count:
            raise ValueError(f"there are no {self.count} different timesteps of that spacing")
        return every, self.trained_sigmas[every]

    def first_deviation(self, sigma: float) -> float:  # noqa: ARG002
        """Return 1, as at every sigma."""
        return 1.0

    def levels(self, k: int) -> tuple[float, float]:
        """Return alpha, and what of the sample's deviation is noise."""
        alpha = alpha_of(self.sigma(k))
        return alpha, alpha * self.sigma(k)

    def scale(self, k: int, x: Array) -> Array:  # noqa: ARG002
        """Return the sample itself."""
        return x

    def step(self, k: int, said: Array, x: Array, noise: Array | None) -> Array:  # noqa: ARG002
        """Move towards the picture as it will be half way, if two predictions tell."""
        s, t = self.sigma(k), self.sigma(k + 1)
        now, before = self.picture(said, x / alpha_of(s), s), self.seen
        self.seen = now
        if before is None or self.ends_in_first_order(k):
            ahead = now
        else:
            way, way_before = math.log(s / t), math.log(self.sigma(k - 1) / s)  # in lambda
            ahead = now + way / (2 * way_before) * (now - before)
        alpha_s, alpha_t, left = alpha_of(s), alpha_of(t), t / s  # the paper's exp(-h)
        return left * alpha_t / alpha_s * x + (1 - left) * alpha_t * ahead

    def ends_in_first_order(self, k: int) -> bool:
        """Tell whether this is the last step, and one that two predictions cannot, or shall not."""
        lower = self.config["euler_at_final"] or self.config["final_sigmas_type"] == "zero"
        few = self.config["lower_order_final"] and self.count < FEW
        return k == len(self.timesteps) - 1 and (lower or few)


def alpha_of(sigma: float) -> float:
    """Return the root of the signal's share."""
    return 1 / math.sqrt(sigma**2 + 1)
