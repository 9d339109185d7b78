"""Euler's method: along the slope of the present noise level to the next one, in a straight line.

Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
algorithm 1 without its second-order correction; ``sample_euler`` of k-diffusion, without churn.

In exact arithmetic this is DDIM at eta 0, seen in sigmas, wherever the grids are the same.
"""

from typing import ClassVar

from torch import Tensor

from sd1_impl.scheduler_config import EulerConfig
from sd1_impl.schedulers.sigma_schedule import SigmaRun, SigmaSchedule


class EulerDiscreteScheduler(SigmaSchedule):
    """The deterministic method of first order.

    Args:
        config: Its numbers.
    """

    config: EulerConfig
    takes_timesteps: ClassVar[bool] = True

    def __init__(self, config: EulerConfig) -> None:
        super().__init__(config, final_sigmas_type=config.final_sigmas_type)

    def solve(
        self,
        model_output: Tensor,
        x: Tensor,
        i: int,
        run: SigmaRun,
        noise: Tensor | None,  # noqa: ARG002 - deterministic
    ) -> Tensor:
        """Return x at the next sigma (algorithm 1, lines 4 and 5)."""
        sigma, sigma_next = run.sigmas[i : i + 2].tolist()
        d = (x - self.denoised(model_output, x, sigma)) / sigma
        return x + (sigma_next - sigma) * d
