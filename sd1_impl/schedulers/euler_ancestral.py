"""Ancestral sampling with Euler's method: to less noise than the next level has, then new noise.

Source: ``sample_euler_ancestral`` and ``get_ancestral_step`` of k-diffusion: Euler's method of
Karras et al., 2022, algorithm 1, with the variance of DDPM's posterior (Ho et al., 2020,
equation 7) in sigmas.
"""

import math

from torch import Tensor

from sd1_impl.scheduler_config import EulerAncestralConfig
from sd1_impl.schedulers.sigma_schedule import SigmaRun, SigmaSchedule


class EulerAncestralDiscreteScheduler(SigmaSchedule):
    """The stochastic method of first order.

    Args:
        config: Its numbers.
    """

    config: EulerAncestralConfig

    def adds_noise(self, t: float) -> bool:  # noqa: ARG002 - in every step, though 0 of it in the last
        """Tell whether `step` needs noise at t: it does."""
        return True

    def solve(
        self, model_output: Tensor, x: Tensor, i: int, run: SigmaRun, noise: Tensor
    ) -> Tensor:
        """Return x at the next sigma: deterministic down to sigma_down, then sigma_up of noise."""
        sigma, sigma_next = run.sigmas[i : i + 2].tolist()
        # The two are at a right angle: sigma_down^2 + sigma_up^2 = sigma_next^2.
        sigma_down = sigma_next**2 / sigma
        sigma_up = sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
        d = (x - self.denoised(model_output, x, sigma)) / sigma
        return x + (sigma_down - sigma) * d + sigma_up * noise.to(x.dtype)
