"""DDPM: ancestral sampling, the reverse of the training's diffusion, with new noise in every step.

Source: Ho et al., "Denoising Diffusion Probabilistic Models", 2020, algorithm 2 and equation 7;
with fewer steps than timesteps, as Nichol and Dhariwal, "Improved DDPM", 2021, section 4.

Symbols, of a step from t to the run's next timestep, ``prev``: ``alpha_bar`` is what is left of x_0
at t; ``alpha = alpha_bar / alpha_bar_prev`` what the whole stride leaves, ``beta = 1 - alpha``.
"""

import math
import operator
from typing import ClassVar, SupportsIndex

from torch import Tensor

from sd1_impl.scheduler_config import DDPMConfig
from sd1_impl.schedulers.noise_schedule import NoiseSchedule, Run, check_shape


class DDPMScheduler(NoiseSchedule):
    """Ancestral sampling.

    The last step always ends at the clean sample: here alpha_bar after it is 1, while SD v1's DDIM
    and PLMS end at the noise level of timestep 0.

    Args:
        config: Its numbers.
    """

    config: DDPMConfig
    takes_timesteps: ClassVar[bool] = True

    def __init__(self, config: DDPMConfig) -> None:
        super().__init__(config, set_alpha_to_one=True)

    def adds_noise(self, t: SupportsIndex) -> bool:
        """Tell whether `step` needs noise at t: not at 0, where it arrives at x_0."""
        return operator.index(t) != 0

    def step(
        self,
        model_output: Tensor,
        t: SupportsIndex,
        sample: Tensor,
        run: Run,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Draw the sample at the next timestep: a pure function, the run is only read.

        Args:
            model_output: ``(B, ...)``, what the model says of x_t.
            t: The timestep, one of the run's.
            sample: x_t, of the same shape, any floating dtype.
            run: From `start`.
            noise: Standard normal, of the same shape; not needed, and not used, at t = 0. SD v1
                does not come to 0: its last step, at t = 1, adds noise too, if only 1e-10 of it.

        Returns:
            x_prev, of the same shape and dtype.

        Raises:
            ValueError: If the run has no such timestep, a shape differs, or the noise is missing.
        """
        t = run.check(t)
        check_shape("model_output", model_output, sample)
        prev_t = run.following(t)
        alpha_bar, alpha_bar_prev = self.alpha_cumprod(t), self.alpha_cumprod(prev_t)
        alpha = alpha_bar / alpha_bar_prev
        beta = 1 - alpha

        x_0 = self.predict_original(model_output, t, sample)
        if self.config.clip_sample:
            x_0 = x_0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)

        # Equation 7: the mean of q(x_prev | x_t, x_0).
        original_coefficient = math.sqrt(alpha_bar_prev) * beta / (1 - alpha_bar)
        sample_coefficient = math.sqrt(alpha) * (1 - alpha_bar_prev) / (1 - alpha_bar)
        mean = original_coefficient * x_0 + sample_coefficient * sample
        if not self.adds_noise(t):
            return mean
        if noise is None:
            raise ValueError(f"noise is missing: the step from timestep {t} adds some")
        check_shape("noise", noise, sample)
        return mean + math.sqrt(self.variance(t, prev_t)) * noise

    def variance(self, t: int, prev_t: int) -> float:
        """Return the variance of the noise that a step adds (section 3.2), bounded from below."""
        alpha_bar, alpha_bar_prev = self.alpha_cumprod(t), self.alpha_cumprod(prev_t)
        beta = 1 - alpha_bar / alpha_bar_prev
        if self.config.variance_type == "fixed_large":
            return beta
        # Equation 7: the variance of q(x_prev | x_t, x_0); code with a "log" goes by way of it.
        return max((1 - alpha_bar_prev) / (1 - alpha_bar) * beta, self.config.min_variance)
