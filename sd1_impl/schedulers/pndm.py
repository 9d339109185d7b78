"""PNDM: DDIM's deterministic step along a noise extrapolated from the last four predictions.

Source: Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds" (PNDM), 2022,
equations 9, 12 (linear multistep, PLMS) and 13 (Runge-Kutta). The paper begins with three steps of
the latter, of four predictions each, the second and third of them half way. Stable Diffusion v1
skips them (``skip_prk_steps``) and begins with lower orders, as in
``ldm/models/diffusion/plms.py``: the first step is taken twice, so n steps ask the model n + 1
times. One step alone is no PLMS: there is no second timestep to ask at before it is taken again.

Symbols: ``alpha_bar`` is ``alphas_cumprod``, the paper's alpha_bar_t; epsilon is the paper's e.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sd1_impl.scheduler_config import PNDMConfig
from sd1_impl.schedulers.noise_schedule import NoiseSchedule, Run, check_shape

# The newest prediction first. The last row is equation 12; all integrate over one step from now
# the polynomial through the predictions (Bashforth and Adams, 1883), and so sum to 1.
COEFFICIENTS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)

# Equation 13: the shares of a Runge-Kutta step's four predictions: at its beginning, twice half way
# and at its end.
RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
WARM_UP = 3 * len(RUNGE_KUTTA)  # predictions, after which there are three noises to go on from


@dataclass
class PLMSRun(Run):
    """A run and what it remembers: `PNDMScheduler.step` updates it, and nothing else.

    Attributes:
        calls: How many steps have been taken.
        last_t: Timestep of the last of them.
        outputs: The model's last outputs, at most four, newest first; not copied.
        first_sample: The sample that a step of several predictions begins with: PLMS's first,
            until the second call takes it again, and each Runge-Kutta step.
        slope: What a Runge-Kutta step has added up of its predictions so far.
    """

    calls: int = 0
    last_t: int | None = None
    outputs: list[Tensor] = field(default_factory=list)
    first_sample: Tensor | None = None
    slope: Tensor | None = None

    def check(self, t: SupportsIndex) -> int:
        """Return a timestep as an int; refuse one that does not follow the last."""
        t = super().check(t)
        neighbours = zip(self.timesteps[:-1], self.timesteps[1:], strict=True)
        if self.calls > 0 and (self.last_t, t) not in neighbours:
            raise ValueError(
                f"timestep {t} does not follow {self.last_t}: a new run needs a new start"
            )
        return t


class PNDMScheduler(NoiseSchedule):
    """Pseudo numerical sampling: linear multistep, after a Runge-Kutta warm-up or without one.

    Args:
        config: Its numbers.
    """

    config: PNDMConfig

    def __init__(self, config: PNDMConfig) -> None:
        super().__init__(config, set_alpha_to_one=config.set_alpha_to_one)

    def timesteps(self, num_inference_steps: int) -> NDArray:
        """Choose timesteps as `NoiseSchedule.timesteps`, some of them several times.

        Args:
            num_inference_steps: Number n of steps, from 2; from 4 with a Runge-Kutta warm-up.

        Returns:
            The n + 1 timesteps, the second twice, or with a warm-up the n + 9; decreasing; int64.

        Raises:
            ValueError: If there are not that many timesteps, or if n is too small.
        """
        if not self.config.skip_prk_steps:
            return self.runge_kutta_timesteps(num_inference_steps)
        if num_inference_steps == 1:
            raise ValueError(
                "num_inference_steps is 1, expected 2 or more: PLMS takes its first step twice, "
                "the second time with a prediction from the next timestep, and one step has none"
            )
        timesteps = super().timesteps(num_inference_steps)
        return np.concatenate([timesteps[:2], timesteps[1:]])

    def runge_kutta_timesteps(self, num_inference_steps: int) -> NDArray:
        """Return timesteps whose first three strides are asked at begin, middle twice, and end."""
        timesteps = super().timesteps(num_inference_steps)
        if num_inference_steps <= WARM_UP // len(RUNGE_KUTTA):
            raise ValueError(
                f"num_inference_steps is {num_inference_steps}, expected 4 or more with "
                "skip_prk_steps False: the Runge-Kutta warm-up alone takes three steps"
            )
        half = self.config.num_train_timesteps // num_inference_steps // 2
        ends = timesteps[1:4]
        warm_up = [timesteps[:1], *([end + half, end + half, end, end] for end in ends)]
        return np.concatenate([np.concatenate(warm_up)[:WARM_UP], timesteps[3:]])

    def start(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        begin_index: int = 0,
    ) -> PLMSRun:
        """Begin a run, without a past; as `NoiseSchedule.start`, but a warm-up is never left out.

        A run without one may begin late: as in diffusers, its second call then still takes the
        first step again, although the timestep is not given twice.
        """
        if begin_index and not self.config.skip_prk_steps:
            raise ValueError(
                f"begin_index is {begin_index}, expected 0 with skip_prk_steps False: "
                "a run cannot begin within its Runge-Kutta warm-up, or without it"
            )
        run = super().start(num_inference_steps, timesteps=timesteps, begin_index=begin_index)
        return PLMSRun(run.timesteps, run.stride)

    def step(self, model_output: Tensor, t: SupportsIndex, sample: Tensor, run: PLMSRun) -> Tensor:
        """Go to the next timestep, and remember the model's output in the run.

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
        if run.calls < WARM_UP and not self.config.skip_prk_steps:
            return self.runge_kutta(model_output, t, sample, run)
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

    def runge_kutta(self, model_output: Tensor, t: int, sample: Tensor, run: PLMSRun) -> Tensor:
        """Take a quarter of a Runge-Kutta step: from its beginning to where it asks next."""
        stage = run.calls % len(RUNGE_KUTTA)
        if stage == 0:
            run.outputs = [model_output, *run.outputs]
            run.first_sample, run.slope = sample, RUNGE_KUTTA[0] * model_output
        else:
            run.slope = run.slope + RUNGE_KUTTA[stage] * model_output
        first_t = int(run.timesteps[run.calls - stage])
        next_t = t - run.stride // 2 if stage in (0, 2) else t
        slope = run.slope if stage == len(RUNGE_KUTTA) - 1 else model_output
        run.calls += 1
        epsilon = self.predict_noise(slope, first_t, run.first_sample)
        return self.transfer(epsilon, first_t, next_t, run.first_sample)

    def transfer(self, epsilon: Tensor, t: int, prev_t: int, sample: Tensor) -> Tensor:
        """Move x_t to prev_t along a noise (equation 9): DDIM's step at eta 0, rearranged."""
        alpha_bar, alpha_bar_prev = self.alpha_cumprod(t), self.alpha_cumprod(prev_t)
        denominator = alpha_bar * math.sqrt(1 - alpha_bar_prev) + math.sqrt(
            alpha_bar * (1 - alpha_bar) * alpha_bar_prev
        )
        sample_coefficient = math.sqrt(alpha_bar_prev / alpha_bar)
        epsilon_coefficient = (alpha_bar_prev - alpha_bar) / denominator
        return sample_coefficient * sample - epsilon_coefficient * epsilon
