"""Euler ancestral: Euler's step to less noise than the next sigma, then fresh noise up to it.

Source: `sample_euler_ancestral` of k-diffusion (Crowson, 2022). How much is fresh is what DDPM's
posterior has (Ho et al., 2020, equation 7), told in sigmas: variance t^2 (s^2 - t^2) / s^2.
"""

import math
from typing import ClassVar

from sd1_numpy.layers import Array
from sd1_numpy.schedulers.base import Settings, needed
from sd1_numpy.schedulers.sigmas import SigmaScheduler


class EulerAncestral(SigmaScheduler):
    """Euler's method on the way of DDPM."""

    settings: ClassVar[Settings] = {"prediction_type": ("epsilon", "v_prediction")}

    def step(self, k: int, said: Array, x: Array, noise: Array | None) -> Array:
        """Go down to t^2 / s; the squares of that and of the fresh noise add up to t^2."""
        s, t = self.sigma(k), self.sigma(k + 1)
        fresh = t * math.sqrt((s - t) * (s + t)) / s
        return x + (t**2 / s - s) * self.slope(k, said, x) + fresh * needed(noise)
