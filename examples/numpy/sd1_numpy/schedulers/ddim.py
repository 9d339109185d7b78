"""DDIM: picture and noise are kept, their shares change; some of the noise may be fresh.

Source: "Denoising Diffusion Implicit Models" (Song et al., 2021), equations 12 and 16.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from sd1_numpy.layers import Array
from sd1_numpy.schedulers.base import ANY, EITHER, Settings, needed
from sd1_numpy.schedulers.shares import ShareScheduler


class DDIM(ShareScheduler):
    """The same picture with less noise, of which eta says how much is fresh."""

    settings: ClassVar[Settings] = {
        "set_alpha_to_one": EITHER,
        "clip_sample": EITHER,
        "clip_sample_range": ANY,
        "eta": ANY,
    }

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Begin a run."""
        if not 0 <= config["eta"] <= 1:
            raise ValueError(f"eta is {config['eta']}, expected 0 to 1")
        super().__init__(config)

    def step(self, k: int, said: Array, x: Array, noise: Array | None) -> Array:
        """Go one stride on, whatever the spacing of timesteps."""
        t = self.timesteps[k]
        a, b = self.share(t), self.share(t - self.stride)
        x_0, e = self.split(said, x, a)
        sigma = self.config["eta"] * math.sqrt((1 - b) / (1 - a) * (1 - a / b))
        x = math.sqrt(b) * x_0 + math.sqrt(1 - b - sigma**2) * e
        return x + sigma * needed(noise) if self.config["eta"] > 0 else x
