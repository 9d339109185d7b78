"""DDPM: every step draws from the posterior of the next sample.

Source: "Denoising Diffusion Probabilistic Models" (Ho et al., 2020), equations 6 and 7, with the
timesteps between two steps taken as one.
"""

import math
from typing import ClassVar

from sd1_numpy.layers import Array
from sd1_numpy.schedulers.base import ANY, EITHER, Settings, needed
from sd1_numpy.schedulers.shares import ShareScheduler


class DDPM(ShareScheduler):
    """The posterior of the next sample, given this one and the picture in it."""

    settings: ClassVar[Settings] = {
        "variance_type": ("fixed_small", "fixed_small_log", "fixed_large"),
        "clip_sample": EITHER,
        "clip_sample_range": ANY,
    }

    def step(self, k: int, said: Array, x: Array, noise: Array | None) -> Array:
        """Return the mean of the posterior, and noise of its deviation but at timestep 0."""
        t, *later = self.timesteps[k : k + 2]
        a, b = self.share(t), self.share(later[0] if later else -1)
        x_0, _ = self.split(said, x, a)
        alpha = a / b
        beta = 1 - alpha
        mean = math.sqrt(b) * beta / (1 - a) * x_0 + math.sqrt(alpha) * (1 - b) / (1 - a) * x
        if t == 0:
            return mean
        variance = max((1 - b) / (1 - a) * beta, 1e-20)
        if self.config["variance_type"] == "fixed_large":
            variance = beta
        return mean + math.sqrt(variance) * needed(noise)
