"""PLMS: DDIM's deterministic step along a noise extrapolated from the last four predictions.

Source: Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds" (PNDM), 2022,
equations 9 and 12. The paper begins with Runge-Kutta steps, of four predictions each; Stable
Diffusion v1 skips them (``skip_prk_steps``) and begins with lower orders, as in
``ldm/models/diffusion/plms.py``: the first step is taken twice, so n steps ask the model n + 1
times. One step alone is no PLMS: there is no second timestep to ask at before it is taken again.

Symbols: ``alpha_bar`` is ``alphas_cumprod``, the paper's alpha_bar_t; epsilon is the paper's e.
"""

import math
from dataclasses import dataclass, field
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sd1_impl.config import PNDMConfig
from sd1_impl.schedulers.noise_schedule import NoiseSchedule, Run, check_shape

# The newest prediction first. The last row is equation 12; all integrate over one step from now
# the polynomial through the predictions (Bashforth and Adams, 1883), and so sum to 1.
COEFFICIENTS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclass
class PLMSRun(Run):
    """A run and what it remembers: `PNDMScheduler.step` updates it, and nothing else.

    Attributes:
        calls: How many steps have been taken.
        last_t: Timestep of the last of them.
        outputs: The model's last outputs, at most four, newest first; not copied.
        first_sample: The sample of the first step, until the second takes that step again.
    """

    calls: int = 0
    last_t: int | None = None
    outputs: list[Tensor] = field(default_factory=list)
    first_sample: Tensor | None = None

    def check(self, t: SupportsIndex) -> int:
        """Return a timestep as an int; refuse one that does not follow the last: whose past?"""
        t = super().check(t)
        neighbours = zip(self.timesteps[:-1], self.timesteps[1:], strict=True)
        if self.calls > 0 and (self.last_t, t) not in neighbours:
            raise ValueError(
                f"timestep {t} does not follow {self.last_t}: a new run needs a new start"
            )
        return t


class PNDMScheduler(NoiseSchedule):
    """Pseudo linear multistep sampling.

    Args:
        config: Its numbers.
    """

    config: PNDMConfig

    def __init__(self, config: PNDMConfig) -> None:
        super().__init__(config, set_alpha_to_one=config.set_alpha_to_one)

    def timesteps(self, num_inference_steps: int) -> NDArray[np.int64]:
        """Choose timesteps as `NoiseSchedule.timesteps`, the second twice.

        Args:
            num_inference_steps: Number n of steps, from 2.

        Returns:
            The n + 1 timesteps, decreasing to ``steps_offset``; int64.

        Raises:
            ValueError: If there are not that many timesteps, or if n is 1.
        """
        if num_inference_steps == 1:
            raise ValueError(
                "num_inference_steps is 1, expected 2 or more: PLMS takes its first step twice, "
                "the second time with a prediction from the next timestep, and one step has none"
            )
        timesteps = super().timesteps(num_inference_steps)
        return np.concatenate([timesteps[:2], timesteps[1:]])

    def start(self, num_inference_steps: int) -> PLMSRun:
        """Begin a run, without a past. Raises as `timesteps` does."""
        run = super().start(num_inference_steps)
        return PLMSRun(run.timesteps, run.stride)

    def step(self, model_output: Tensor, t: SupportsIndex, sample: Tensor, run: PLMSRun) -> Tensor:
        """Go to the next timestep, and remember the model's output in the run.

        A run may begin late, as in image-to-image: as in diffusers, the second step then still
        takes the first one again, although the timestep is not given twice.

        Args:
            model_output: ``(B, ...)``, what the model says of x_t.
            t: The timestep, the next of the run's.
            sample: x_t, of the same shape, any floating dtype.
            run: From `start`, of this sample alone.

        Returns:
            x_prev, of the same shape and dtype.

        Raises:
            ValueError: If the run has no such timestep, or if a shape differs.
        """
        t = run.check(t)
        check_shape("model_output", model_output, sample)
        run.last_t, prev_t = t, t - run.stride
        if run.calls == 1:
            # x_prev of the first step is known by now: take that step along the mean of both ends.
            t, prev_t = t + run.stride, t
            model_output = (run.outputs[0] + model_output) / 2
            sample, run.first_sample = run.first_sample, None
        else:
            run.outputs = [model_output, *run.outputs[:3]]
            if run.calls == 0:
                run.first_sample = sample
            coefficients = COEFFICIENTS[len(run.outputs) - 1]
            model_output = sum(
                c * output for c, output in zip(coefficients, run.outputs, strict=True)
            )
        run.calls += 1
        return self.transfer(self.predict_noise(model_output, t, sample), t, prev_t, sample)

    def transfer(self, epsilon: Tensor, t: int, prev_t: int, sample: Tensor) -> Tensor:
        """Move x_t to prev_t along a noise (equation 9): DDIM's step at eta 0, rearranged."""
        alpha_bar, alpha_bar_prev = self.alpha_cumprod(t), self.alpha_cumprod(prev_t)
        denominator = alpha_bar * math.sqrt(1 - alpha_bar_prev) + math.sqrt(
            alpha_bar * (1 - alpha_bar) * alpha_bar_prev
        )
        sample_coefficient = math.sqrt(alpha_bar_prev / alpha_bar)
        epsilon_coefficient = (alpha_bar_prev - alpha_bar) / denominator
        return sample_coefficient * sample - epsilon_coefficient * epsilon
