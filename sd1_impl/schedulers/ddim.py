"""DDIM: predict the clean sample, then go back to a smaller noise level; deterministic at eta 0.

Source: Song et al., "Denoising Diffusion Implicit Models", 2020, equations 12 and 16.

Symbols, of a step from t to the run's next timestep, ``prev``: the paper's alpha_t is DDPM's
alpha_bar_t, ``alphas_cumprod[t]``.
"""

import math
from typing import SupportsIndex

from torch import Tensor

from sd1_impl.scheduler_config import DDIMConfig
from sd1_impl.schedulers.noise_schedule import NoiseSchedule, Run, check_shape


class DDIMScheduler(NoiseSchedule):
    """Denoising diffusion implicit models.

    Args:
        config: Its numbers.
    """

    config: DDIMConfig

    def __init__(self, config: DDIMConfig) -> None:
        super().__init__(config, set_alpha_to_one=config.set_alpha_to_one)

    def adds_noise(self, t: SupportsIndex) -> bool:  # noqa: ARG002 - at every t or at none
        """Tell whether `step` needs noise at t: only if eta is above 0."""
        return self.config.eta > 0

    def step(
        self,
        model_output: Tensor,
        t: SupportsIndex,
        sample: Tensor,
        run: Run,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Go to the next timestep: a pure function, the run is only read.

        Args:
            model_output: ``(B, ...)``, what the model says of x_t.
            t: The timestep, one of the run's.
            sample: x_t, of the same shape, any floating dtype.
            run: From `start`.
            noise: Standard normal, of the same shape; not needed, and not used, at eta 0.

        Returns:
            x_prev, of the same shape and dtype.

        Raises:
            ValueError: If the run has no such timestep, a shape differs, or the noise is missing.
        """
        t = run.check(t)
        check_shape("model_output", model_output, sample)
        prev_t = t - run.stride
        alpha_prev = self.alpha_cumprod(prev_t)
        sigma = self.config.eta * self.sigma(t, prev_t)

        epsilon = self.predict_noise(model_output, t, sample)
        x_0 = self.predict_original(model_output, t, sample)
        if self.config.clip_sample:  # epsilon stays what it was, as in diffusers
            x_0 = x_0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)

        # Equation 12: predicted x_0, direction pointing to x_t, random noise.
        direction = math.sqrt(1 - alpha_prev - sigma**2) * epsilon
        prev_sample = math.sqrt(alpha_prev) * x_0 + direction
        if not self.adds_noise(t):
            return prev_sample
        if noise is None:
            raise ValueError(f"noise is missing: with eta {self.config.eta} every step adds some")
        check_shape("noise", noise, sample)
        return prev_sample + sigma * noise

    def sigma(self, t: int, prev_t: int) -> float:
        """Return the deviation of the noise that a step adds at eta 1: DDPM's (equation 16)."""
        alpha, alpha_prev = self.alpha_cumprod(t), self.alpha_cumprod(prev_t)
        return math.sqrt((1 - alpha_prev) / (1 - alpha)) * math.sqrt(1 - alpha / alpha_prev)
