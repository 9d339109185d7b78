"""The noise schedule: what is left of a sample at each timestep; and what all schedulers share.

Source: Ho et al., "Denoising Diffusion Probabilistic Models" (DDPM), 2020, section 2: at timestep t
the sample is ``x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) epsilon`` (equation 4), where
``alpha_bar_t``, called ``alphas_cumprod[t]``, falls from almost 1 to almost 0. Timesteps count
from 0, the paper's from 1.

Tables are float64 and their entries enter formulas as Python floats: a step on float64 tensors is
float64 throughout. (diffusers has float32 tables: its ``1 - alphas_cumprod[0]`` is off by 3e-5.)

Shapes: T timesteps of the training (1000), B batch; a sample is ``(B, ...)``, whatever follows.
"""

import math
import operator
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sd1_impl.config import SchedulerConfig


@dataclass
class Run:
    """One way from noise to a sample, of a certain number of steps.

    Attributes:
        timesteps: Where the model is asked, in this order; int64. Image-to-image begins later.
        stride: Distance between neighbouring timesteps.
    """

    timesteps: NDArray[np.int64]
    stride: int

    def check(self, t: SupportsIndex) -> int:
        """Return a timestep as an int; refuse one that is not of this run."""
        t = operator.index(t)
        if t not in self.timesteps:
            first, last = self.timesteps[0], self.timesteps[-1]
            raise ValueError(
                f"timestep {t} is not of this run: {first} to {last} in strides of {self.stride}"
            )
        return t


class NoiseSchedule:
    """Noise levels, and the part of a scheduler that does not depend on the algorithm.

    Args:
        config: The schedule's numbers.
        set_alpha_to_one: Whether a run ends at the clean sample, or at timestep 0's noise level.

    Attributes:
        betas: Variance that timestep t adds, ``(T,)``; float64, read-only, like all tables.
        alphas: ``1 - betas``.
        alphas_cumprod: Products of the alphas up to t: the share of x_0 in the variance of x_t.
        final_alpha_cumprod: What takes the place of ``alphas_cumprod`` after the last step.
        init_noise_sigma: Deviation of the noise that a run begins with: 1 where the variance of x_t
            is 1 at every t.
    """

    init_noise_sigma = 1.0

    def __init__(self, config: SchedulerConfig, *, set_alpha_to_one: bool) -> None:
        self.config = config
        start, end, count = config.beta_start, config.beta_end, config.num_train_timesteps
        if config.beta_schedule == "scaled_linear":
            self.betas = np.linspace(math.sqrt(start), math.sqrt(end), count) ** 2
        else:
            self.betas = np.linspace(start, end, count)
        self.alphas = 1 - self.betas
        self.alphas_cumprod = np.cumprod(self.alphas)
        self.final_alpha_cumprod = 1.0 if set_alpha_to_one else float(self.alphas_cumprod[0])
        for table in (self.betas, self.alphas, self.alphas_cumprod):
            table.flags.writeable = False

    def timesteps(self, num_inference_steps: int) -> NDArray[np.int64]:
        """Choose evenly spaced timesteps, "leading": every stride begins with its timestep.

        Args:
            num_inference_steps: Number of steps, 1 to T. The stride is T over it, rounded down.

        Returns:
            The timesteps, decreasing to ``steps_offset``; int64.

        Raises:
            ValueError: If there are not that many timesteps.
        """
        count, offset = self.config.num_train_timesteps, self.config.steps_offset
        if not 1 <= num_inference_steps <= count:
            raise ValueError(f"num_inference_steps is {num_inference_steps}, expected 1 to {count}")
        steps = np.arange(num_inference_steps, dtype=np.int64)[::-1]
        timesteps = steps * (count // num_inference_steps) + offset
        if timesteps[0] >= count:
            raise ValueError(
                f"{num_inference_steps} steps with steps_offset {offset} begin at timestep "
                f"{timesteps[0]}, but the last is {count - 1}"
            )
        return timesteps

    def start(self, num_inference_steps: int) -> Run:
        """Begin a run: `step` wants it. Raises as `timesteps` does."""
        timesteps = self.timesteps(num_inference_steps)
        return Run(timesteps, self.config.num_train_timesteps // num_inference_steps)

    def adds_noise(
        self,
        t: SupportsIndex,  # noqa: ARG002 - DDPM adds none at 0
    ) -> bool:
        """Tell whether `step` adds noise at t, and so has an argument for it: not here."""
        return False

    def scale_model_input(
        self,
        sample: Tensor,
        t: SupportsIndex,  # noqa: ARG002 - schedulers whose variance grows with t divide by it
    ) -> Tensor:
        """Return what the model is given at t: the sample itself, of variance 1 at every t."""
        return sample

    def add_noise(self, original: Tensor, noise: Tensor, t: SupportsIndex | Tensor) -> Tensor:
        """Take a clean sample to a noise level (equation 4).

        Args:
            original: ``(B, ...)``, x_0.
            noise: Standard normal, of the same shape and dtype.
            t: Timestep 0 to T - 1, an int or an integer tensor of shape ``()``, ``(1,)`` or
                ``(B,)``.

        Returns:
            x_t, of the same shape and dtype.

        Raises:
            TypeError: If the timestep is no integer.
            ValueError: If a shape does not fit, or if there is no such timestep.
        """
        check_shape("noise", noise, original)
        t = torch.as_tensor(t).cpu().numpy()
        if t.dtype.kind not in "iu":
            raise TypeError(f"timestep has dtype {t.dtype}, expected integers")
        if t.shape not in ((), (1,), original.shape[:1]):
            raise ValueError(f"timestep has shape {t.shape}, expected () or ({len(original)},)")
        if t.min() < 0 or t.max() >= len(self.betas):
            raise ValueError(f"timestep is {t}, expected 0 to {len(self.betas) - 1}")
        alpha_bar = self.alphas_cumprod[t].reshape(-1, *[1] * (original.ndim - 1))  # (B, 1, ...)
        signal = torch.tensor(np.sqrt(alpha_bar), dtype=original.dtype, device=original.device)
        sigma = torch.tensor(np.sqrt(1 - alpha_bar), dtype=original.dtype, device=original.device)
        return signal * original + sigma * noise

    def alpha_cumprod(self, t: int) -> float:
        """Return alpha_bar_t; for a negative t, which a last step arrives at, the final one."""
        return float(self.alphas_cumprod[t]) if t >= 0 else self.final_alpha_cumprod

    def predict_original(self, model_output: Tensor, t: int, sample: Tensor) -> Tensor:
        """Return the x_0 that the model's output means for x_t (DDPM, equation 15)."""
        alpha_bar = self.alpha_cumprod(t)
        if self.config.prediction_type == "v_prediction":
            return math.sqrt(alpha_bar) * sample - math.sqrt(1 - alpha_bar) * model_output
        return (sample - math.sqrt(1 - alpha_bar) * model_output) / math.sqrt(alpha_bar)

    def predict_noise(self, model_output: Tensor, t: int, sample: Tensor) -> Tensor:
        """Return the epsilon that the model's output means for x_t."""
        alpha_bar = self.alpha_cumprod(t)
        if self.config.prediction_type == "v_prediction":
            return math.sqrt(alpha_bar) * model_output + math.sqrt(1 - alpha_bar) * sample
        return model_output


def check_shape(name: str, tensor: Tensor, sample: Tensor) -> None:
    """Refuse a tensor that would be broadcast to the sample's shape, or the sample to its."""
    if tensor.shape != sample.shape:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, the sample has {tuple(sample.shape)}"
        )
