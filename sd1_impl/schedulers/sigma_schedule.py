"""The noise schedule in sigmas, where sampling is solving an ordinary differential equation.

Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022
(EDM); and k-diffusion, which brought it to Stable Diffusion v1 (``K.external.CompVisDenoiser``).

Divided by ``sqrt(alpha_bar_t)``, the sample of `noise_schedule` is ``x = x_0 + sigma epsilon`` with
``sigma = sqrt((1 - alpha_bar_t) / alpha_bar_t)``: the clean sample plus noise of a growing
deviation. Along the equation ``dx/dsigma = (x - D(x; sigma)) / sigma`` (EDM, equation 3, at
``sigma(t) = t``), where D is the predicted clean sample, x stays as noisy as sigma says; so a
sampler goes from a large sigma to 0 by any method that solves such equations. The model was
trained on samples of variance 1: it is asked about ``x / sqrt(sigma^2 + 1)``.

A run is a grid of sigmas, decreasing, and each of them has a timestep, which the model is told: not
always a whole number. Where the grid is that of Karras et al., sigma comes first and the timestep
is looked up, between those of the training by the logarithm of sigma.

Shapes: T timesteps of the training (1000), B batch; a sample is ``(B, ...)``, whatever follows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, SupportsFloat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sd1_impl.scheduler_config import SigmaConfig
from sd1_impl.schedulers.noise_schedule import NoiseSchedule, Run, check_shape, late

RHO = 7.0
"""How much denser the grid is near sigma 0 (EDM, equation 5 and the text below it)."""


@dataclass
class SigmaRun(Run):
    """A run, its sigmas, and how far it is: a scheduler's `step` updates it, and nothing else.

    Attributes:
        sigmas: Of the whole grid, what a late beginning leaves out included, and where the last
            step ends; one more than timesteps. float64.
        begin_index: Place in the grid of the run's first timestep.
        calls: How many steps have been taken.
    """

    sigmas: NDArray[np.float64] = field(kw_only=True)
    begin_index: int = 0
    calls: int = 0

    def place(self, t: SupportsFloat) -> int:
        """Return the place in the grid of the step to come; refuse a t that is not its timestep.

        Fractional timesteps may have passed through float32.
        """
        if self.calls == len(self.timesteps):
            raise ValueError(f"the run has ended: timestep {float(t):g} needs a new start")
        wanted = self.timesteps[self.calls]
        if np.float32(t) != np.float32(wanted):
            raise ValueError(
                f"timestep {float(t):g} is not the one to come, {wanted:g}: a run's timesteps "
                "follow each other, and a new run needs a new start"
            )
        return self.begin_index + self.calls

    def sigma_at(self, t: SupportsFloat) -> float:
        """Return the sigma of a timestep: of the step to come, or of another with this timestep.

        Where several sigmas have one timestep, as Karras' do once it is rounded, it is the second
        of them, as in diffusers.
        """
        places = np.flatnonzero(self.timesteps.astype(np.float32) == np.float32(t))
        if len(places) == 0:
            raise ValueError(f"timestep {float(t):g} is not of this run")
        place = self.calls if self.calls in places else places[:2][-1]
        return float(self.sigmas[self.begin_index + place])


class SigmaSchedule(NoiseSchedule):
    """Sigmas, and the part of their schedulers that does not depend on the algorithm.

    Args:
        config: The schedule's numbers.
        final_sigmas_type: Where a run ends: at the clean sample, "zero", or at timestep 0's sigma.

    Attributes:
        training_sigmas: Of the T timesteps, increasing; float64, read-only.
        final_sigma: What the last step arrives at.
        run_type: What `start` makes, with what the algorithm remembers.
    """

    config: SigmaConfig
    fractional: ClassVar[bool] = True
    run_type: ClassVar[type[SigmaRun]] = SigmaRun

    def __init__(self, config: SigmaConfig, *, final_sigmas_type: str = "zero") -> None:
        super().__init__(config, set_alpha_to_one=final_sigmas_type == "zero")
        self.training_sigmas = np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod)
        self.training_sigmas.flags.writeable = False
        zero = final_sigmas_type == "zero"
        self.final_sigma = 0.0 if zero else float(self.training_sigmas[0])

    def timesteps(self, num_inference_steps: int) -> NDArray:
        """Choose timesteps; of Karras' sigmas where they are asked for.

        Args:
            num_inference_steps: Number of steps, 1 to T.

        Returns:
            The timesteps, decreasing; float64, with fractions.

        Raises:
            ValueError: If there are not that many timesteps.
        """
        return self.grid(self.spaced(num_inference_steps))[0]

    def start(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        begin_index: int = 0,
    ) -> SigmaRun:
        """Begin a run, as `NoiseSchedule.start`; its memory is empty."""
        if timesteps is not None and self.config.use_karras_sigmas:
            raise ValueError("timesteps are given, but use_karras_sigmas makes a run's own")
        if num_inference_steps is not None and timesteps is None:
            chosen = self.spaced(num_inference_steps)
        else:
            chosen = self.choose(num_inference_steps, timesteps)
        asked, sigmas = self.grid(chosen)
        return self.run_type(
            late(asked, begin_index),
            self.config.num_train_timesteps // len(chosen),
            self.initial_sigma(float(sigmas.max())),
            sigmas=sigmas,
            begin_index=begin_index,
        )

    def grid(self, timesteps: NDArray) -> tuple[NDArray, NDArray[np.float64]]:
        """Return the timesteps that the model is told, and the sigmas, with the final one."""
        sigmas = self.sigma_of(timesteps)
        if self.config.use_karras_sigmas:
            sigmas = karras_sigmas(float(sigmas[0]), float(sigmas[-1]), len(timesteps))
            timesteps = self.timestep_of(sigmas)
        return np.asarray(timesteps, np.float64), np.append(sigmas, self.final_sigma)

    def sigma_of(self, timesteps: NDArray) -> NDArray[np.float64]:
        """Return the sigmas of timesteps; between two of the training, on the line."""
        return np.interp(timesteps, np.arange(len(self.betas)), self.training_sigmas)

    def timestep_of(self, sigmas: NDArray) -> NDArray[np.float64]:
        """Return the timesteps of sigmas; between two of the training, by the logarithm."""
        timesteps = np.arange(len(self.betas), dtype=np.float64)
        return np.interp(np.log(sigmas), np.log(self.training_sigmas), timesteps)

    def initial_sigma(self, sigma_max: float) -> float:
        """Return the deviation of a run's first sample.

        diffusers, which is followed here, leaves out x_0 where the grid begins at T - 1: there it
        is small beside the noise.
        """
        if self.config.timestep_spacing == "leading":
            return math.sqrt(sigma_max**2 + 1)
        return sigma_max

    def scale_model_input(
        self, sample: Tensor, t: SupportsFloat, run: SigmaRun | None = None
    ) -> Tensor:
        """Return what the model is given at t: the sample, divided to variance 1.

        Args:
            sample: ``(B, ...)``, x.
            t: The timestep, the next of the run's.
            run: From `start`; it is needed, for it knows the sigma.

        Returns:
            Of the same shape and dtype.

        Raises:
            ValueError: If there is no run, or if another timestep comes next.
        """
        run = _needed(run)
        return sample / math.sqrt(run.sigmas[run.place(t)] ** 2 + 1)

    def levels(self, t: NDArray, run: Run | None) -> tuple[NDArray, NDArray]:
        """Return the shares of x_0 and of the noise in x, of timesteps of a run."""
        run = _needed(run)
        sigma = np.vectorize(run.sigma_at, otypes=[np.float64])(t)
        return np.ones_like(sigma), sigma

    def step(
        self,
        model_output: Tensor,
        t: SupportsFloat,
        sample: Tensor,
        run: SigmaRun,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Go to the next sigma, and let the run know.

        Half types are widened to float32, in which a step computes; as in most of diffusers'.

        Args:
            model_output: ``(B, ...)``, what the model says of the scaled sample.
            t: The timestep, the next of the run's.
            sample: x, of the same shape, not scaled, any floating dtype.
            run: From `start`, of this sample alone.
            noise: Standard normal, of the same shape; read only where `adds_noise` says so.

        Returns:
            x at the next sigma, of the same shape and dtype.

        Raises:
            ValueError: If another timestep comes next, a shape differs, or the noise is missing.
        """
        place = run.place(t)
        check_shape("model_output", model_output, sample)
        if self.adds_noise(t):
            if noise is None:
                raise ValueError(f"noise is missing: the step from timestep {float(t):g} adds some")
            check_shape("noise", noise, sample)
        wide = torch.promote_types(sample.dtype, torch.float32)
        new = self.solve(model_output.to(wide), sample.to(wide), place, run, noise)
        run.calls += 1
        return new.to(sample.dtype)

    def solve(
        self, model_output: Tensor, x: Tensor, i: int, run: Any, noise: Tensor | None
    ) -> Tensor:
        """Return x at the grid's next sigma: the algorithm.

        Args:
            model_output: What the model says of x.
            x: The sample at ``run.sigmas[i]``; both in float32 or float64.
            i: Place in the grid.
            run: What to remember in.
            noise: As `step`'s.
        """
        raise NotImplementedError

    def denoised(self, model_output: Tensor, x: Tensor, sigma: float) -> Tensor:
        """Return D(x; sigma), the clean sample that the model's output means (EDM, equation 7).

        Of the noise, ``x - sigma epsilon``. The velocity is that of the scaled sample, of whose
        variance x_0 has the share ``1 / (sigma^2 + 1)``.
        """
        if self.config.prediction_type == "sample":
            return model_output
        if self.config.prediction_type == "v_prediction":
            variance = sigma**2 + 1
            return x / variance - sigma / math.sqrt(variance) * model_output
        return x - sigma * model_output


def karras_sigmas(sigma_max: float, sigma_min: float, count: int) -> NDArray[np.float64]:
    """Return sigmas whose ``1 / RHO``-th powers are evenly spaced (EDM, equation 5)."""
    powers = np.linspace(sigma_max ** (1 / RHO), sigma_min ** (1 / RHO), count)
    return powers**RHO


def _needed(run: Run | None) -> Any:
    """Return the run; here nothing can be said without one."""
    if run is None:
        raise ValueError("run is missing: the sigma of a timestep depends on it")
    return run
