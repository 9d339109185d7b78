"""Schedulers that count in sigmas: the sample is the picture plus noise of that deviation.

Source: "Elucidating the Design Space of Diffusion-Based Generative Models" (EDM, Karras et al.,
2022). Divided by sqrt(a), a sample of variance 1 is x = x_0 + sigma e, where sigma^2 = (1 - a) / a.
It moves along dx/dsigma = (x - D) / sigma, D being the picture that the model sees in it, from a
large sigma to 0: sampling is solving that equation.

In the code of the algorithms s is the sigma of a call, t that of the next one.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sd1_numpy.layers import Array
from sd1_numpy.schedulers.base import Scheduler

RHO = 7
"""How much closer sigmas are near 0 (EDM, equation 5)."""


class SigmaScheduler(Scheduler):
    """What the schedulers that count in sigmas share.

    Attributes:
        sigmas: Those of all calls, left out or not, and where the last step ends.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Begin a run, which ends at the picture, or as noisy as timestep 0."""
        super().__init__(config)
        self.trained_sigmas = np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod)
        every, sigmas = self.grid(self.spaced(self.count))
        ends_noisy = config.get("final_sigmas_type") == "sigma_min"
        self.sigmas = [*sigmas.tolist(), float(self.trained_sigmas[0]) if ends_noisy else 0.0]
        self.init_noise_sigma = self.first_deviation(self.sigmas[0])
        self.tables["sigmas"] = np.array(self.sigmas)
        self.tables["init_noise_sigma"] = np.array([self.init_noise_sigma])
        self.ask(every)

    def grid(self, every: Array) -> tuple[Array, Array]:
        """Return timesteps and sigmas of all calls, given the timesteps of all steps."""
        sigmas = np.interp(every, np.arange(self.trained), self.trained_sigmas)
        if not self.config.get("use_karras_sigmas"):
            return every, sigmas
        sigmas = karras(sigmas[0], sigmas[-1], len(sigmas))
        return self.timesteps_of(sigmas), sigmas

    def timesteps_of(self, sigmas: Array) -> Array:
        """Return the timesteps of sigmas, between two of training by their logarithms."""
        return np.interp(np.log(sigmas), np.log(self.trained_sigmas), np.arange(self.trained))

    def first_deviation(self, sigma: float) -> float:
        """Return the deviation of the first sample.

        The picture's own share of it is left out where a run begins at the noisiest timestep: so
        diffusers has it.
        """
        leading = self.config["timestep_spacing"] == "leading"
        return math.sqrt(sigma**2 + 1) if leading else sigma

    def sigma(self, k: int) -> float:
        """Return the sigma of the k-th call; of the call after the last, the final one."""
        return self.sigmas[self.late + k]

    def levels(self, k: int) -> tuple[float, float]:
        """Return 1 and sigma."""
        return 1.0, self.sigma(k)

    def scale(self, k: int, x: Array) -> Array:
        """Return the sample with variance 1, as the model was trained."""
        return x / math.sqrt(self.sigma(k) ** 2 + 1)

    def picture(self, said: Array, x: Array, s: float) -> Array:
        """Return D: the picture that the model sees in a sample.

        Args:
            said: The noise, the picture itself, or the velocity, which is that of the sample scaled
                to variance 1.
            x: The sample, not scaled.
            s: Its sigma.
        """
        if self.config["prediction_type"] == "epsilon":
            return x - s * said
        if self.config["prediction_type"] == "sample":
            return said
        return x / (s**2 + 1) - s / math.sqrt(s**2 + 1) * said

    def slope(self, k: int, said: Array, x: Array) -> Array:
        """Return dx/dsigma in the k-th call."""
        s = self.sigma(k)
        return (x - self.picture(said, x, s)) / s


def karras(largest: float, smallest: float, count: int) -> Array:
    """Return sigmas whose seventh roots are evenly spaced (EDM, equation 5)."""
    return np.linspace(largest ** (1 / RHO), smallest ** (1 / RHO), count) ** RHO
