"""DPM-Solver++ (2M): an exponential integrator of second order, which remembers one prediction.

Source: Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
Models", 2022, algorithm 2 (2M), whose first step is the first order of equation 9, DDIM.

Symbols, of a step from s to t; the paper's alpha_t and sigma_t are ``sqrt(alpha_bar)`` and
``sqrt(1 - alpha_bar)``, so that ``x_t = alpha_t x_0 + sigma_t epsilon`` has variance 1 and the
model is asked about x itself; ``lambda = log(alpha_t / sigma_t)`` is half the logarithm of the
signal-to-noise ratio, and minus the logarithm of `sigma_schedule`'s sigma, which is
``sigma_t / alpha_t``.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sd1_impl.scheduler_config import DPMPP2MConfig
from sd1_impl.schedulers.noise_schedule import Run
from sd1_impl.schedulers.sigma_schedule import SigmaRun, SigmaSchedule, karras_sigmas

FEW_STEPS = 15
"""Below, ``lower_order_final`` holds (``steps < 15``, *dpm_solver_pytorch.py*, and diffusers)."""


@dataclass
class DPMPP2MRun(SigmaRun):
    """A run and what it remembers.

    Attributes:
        x_0: What the last step predicted; None before the first.
    """

    x_0: Tensor | None = None


class DPMSolverMultistepScheduler(SigmaSchedule):
    """DPM-Solver++ with two predictions ("midpoint" in diffusers, where it is one of several).

    Args:
        config: Its numbers.
    """

    config: DPMPP2MConfig
    takes_timesteps: ClassVar[bool] = True
    fractional: ClassVar[bool] = False
    run_type: ClassVar[type[SigmaRun]] = DPMPP2MRun

    def __init__(self, config: DPMPP2MConfig) -> None:
        super().__init__(config, final_sigmas_type=config.final_sigmas_type)

    def spaced(self, num_inference_steps: int) -> NDArray[np.float64]:
        """Choose whole timesteps, of one more step than asked for, whose last is left out.

        That one would be timestep 0, or the offset, and the final sigma takes its place; only
        "trailing" spacing has none.
        """
        total, spacing = self.config.num_train_timesteps, self.config.timestep_spacing
        self.check_count(num_inference_steps)
        if self.config.use_karras_sigmas:
            return np.linspace(total - 1, 0, num_inference_steps)  # `grid` only counts them
        if spacing == "trailing":
            return super().spaced(num_inference_steps)
        if spacing == "linspace":
            timesteps = np.linspace(0, total - 1, num_inference_steps + 1).round()[:0:-1]
        else:
            stride = total // (num_inference_steps + 1)
            timesteps = self.leading(num_inference_steps + 1, stride)[:-1]
        if not (np.diff(timesteps) < 0).all():
            raise ValueError(
                f"num_inference_steps is {num_inference_steps}, but with timestep_spacing "
                f"{spacing!r} there are not that many different timesteps"
            )
        return timesteps

    def grid(self, timesteps: NDArray) -> tuple[NDArray, NDArray[np.float64]]:
        """Return the timesteps that the model is told, and the sigmas, with the final one.

        Karras' sigmas are here, as in diffusers, those between the training's largest and smallest,
        whatever the spacing, and their timesteps are rounded: some sigmas share one.
        """
        sigmas = self.sigma_of(timesteps)
        if self.config.use_karras_sigmas:
            smallest, largest = self.training_sigmas[[0, -1]].tolist()
            sigmas = karras_sigmas(largest, smallest, len(timesteps))
            timesteps = self.timestep_of(sigmas).round()
        return np.asarray(timesteps, np.int64), np.append(sigmas, self.final_sigma)

    def initial_sigma(self, sigma_max: float) -> float:  # noqa: ARG002 - whatever it is
        """Return the deviation of a run's first sample: 1, like that of every later one."""
        return 1.0

    def scale_model_input(
        self,
        sample: Tensor,
        t: float,  # noqa: ARG002 - of variance 1 at every t
        run: SigmaRun | None = None,  # noqa: ARG002 - in every run
    ) -> Tensor:
        """Return what the model is given at t: the sample itself."""
        return sample

    def levels(self, t: NDArray, run: Run | None) -> tuple[NDArray, NDArray]:
        """Return alpha_t and sigma_t of timesteps of a run."""
        _, sigma = super().levels(t, run)
        return 1 / np.sqrt(sigma**2 + 1), sigma / np.sqrt(sigma**2 + 1)

    def solve(
        self,
        model_output: Tensor,
        x: Tensor,
        i: int,
        run: DPMPP2MRun,
        noise: Tensor | None,  # noqa: ARG002 - deterministic
    ) -> Tensor:
        """Return x_t (algorithm 2, lines 4 to 11)."""
        _, sigma_s, lambda_s = _symbols(float(run.sigmas[i]))
        alpha_t, sigma_t, lambda_t = _symbols(float(run.sigmas[i + 1]))
        h = lambda_t - lambda_s
        x_0, last = self.predict(model_output, x, float(run.sigmas[i])), run.x_0
        run.x_0 = x_0
        if last is None or self.is_first_order(i, len(run.sigmas) - 1):
            d = x_0
        else:
            h_last = lambda_s - _symbols(float(run.sigmas[i - 1]))[2]
            d = x_0 + h / (2 * h_last) * (x_0 - last)  # h / h_last is the paper's 1 / r
        return sigma_t / sigma_s * x - alpha_t * math.expm1(-h) * d

    def is_first_order(self, i: int, steps: int) -> bool:
        """Tell whether the step at place i of a grid, if it is the last, is of first order."""
        few = self.config.lower_order_final and steps < FEW_STEPS
        lower = few or self.config.euler_at_final or self.config.final_sigmas_type == "zero"
        return i == steps - 1 and lower

    def predict(self, model_output: Tensor, x: Tensor, sigma: float) -> Tensor:
        """Return the x_0 that the model's output means for x."""
        alpha_s, sigma_s, _ = _symbols(sigma)
        if self.config.prediction_type == "sample":
            return model_output
        if self.config.prediction_type == "v_prediction":
            return alpha_s * x - sigma_s * model_output
        return (x - sigma_s * model_output) / alpha_s


def _symbols(sigma: float) -> tuple[float, float, float]:
    """Return the paper's alpha, sigma and lambda of a noise level."""
    alpha = 1 / math.sqrt(sigma**2 + 1)
    return alpha, sigma * alpha, -math.log(sigma) if sigma > 0 else math.inf
