"""Heun's method: Euler's step, tried, and taken again along the mean slope of both its ends.

Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
algorithm 1 (deterministic); ``sample_heun`` of k-diffusion, without churn.

A step asks the model twice, the second time where it arrives; the last one, which arrives at
sigma 0, once. So n steps are 2 n - 1 calls, and each call of `step` is one of them: in a run's
timesteps all but the first occur twice, at the end of one step and at the beginning of the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sd1_impl.scheduler_config import HeunConfig
from sd1_impl.schedulers.sigma_schedule import SigmaRun, SigmaSchedule


@dataclass
class HeunRun(SigmaRun):
    """A run and what it remembers between the two halves of a step.

    Attributes:
        x: The sample that the step began with; None between steps.
        d: The slope there.
    """

    x: Tensor | None = None
    d: Tensor | None = None


class HeunDiscreteScheduler(SigmaSchedule):
    """The deterministic method of second order.

    Args:
        config: Its numbers.
    """

    config: HeunConfig
    takes_timesteps: ClassVar[bool] = True
    order: ClassVar[int] = 2
    run_type: ClassVar[type[SigmaRun]] = HeunRun

    def grid(self, timesteps: NDArray) -> tuple[NDArray, NDArray[np.float64]]:
        """Return a grid in which all but the first timestep, and all but the ends, are twice."""
        timesteps, sigmas = super().grid(timesteps)
        inner = sigmas[1:-1].repeat(2)
        return timesteps.repeat(2)[1:], np.concatenate([sigmas[:1], inner, sigmas[-1:]])

    def start(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        begin_index: int = 0,
    ) -> HeunRun:
        """Begin a run, as `SigmaSchedule.start`; ``begin_index`` counts calls, and is even."""
        if begin_index % 2:
            raise ValueError(
                f"begin_index is {begin_index}, expected an even one: each step has two calls"
            )
        return super().start(num_inference_steps, timesteps=timesteps, begin_index=begin_index)

    def solve(
        self,
        model_output: Tensor,
        x: Tensor,
        i: int,
        run: HeunRun,
        noise: Tensor | None,  # noqa: ARG002 - deterministic
    ) -> Tensor:
        """Return x at the end of the step: tried, or taken (algorithm 1, lines 4 to 8)."""
        denoised = self.denoised(model_output, x, float(run.sigmas[i]))
        if self.config.clip_sample:
            bound = self.config.clip_sample_range
            denoised = denoised.clamp(-bound, bound)
        d = (x - denoised) / float(run.sigmas[i])
        if run.x is None:
            sigma, sigma_next = run.sigmas[i : i + 2].tolist()
            run.x, run.d = x, d
        else:
            sigma, sigma_next = run.sigmas[i - 1 : i + 1].tolist()
            x, d = run.x, (run.d + d) / 2
            run.x = run.d = None
        return x + (sigma_next - sigma) * d
