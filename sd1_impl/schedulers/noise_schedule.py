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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, SupportsFloat, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sd1_impl.scheduler_config import SchedulerConfig


@dataclass
class Run:
    """One way from noise to a sample, of a certain number of steps.

    Attributes:
        timesteps: Where the model is asked, in this order. Image-to-image begins later.
        stride: T over the number of steps, rounded down: the distance between neighbours in
            "leading" spacing, and the length of DDIM's and PLMS's steps in every spacing.
        init_noise_sigma: Deviation of the noise that a run begins with: 1 where the variance of x_t
            is 1 at every t.
    """

    timesteps: NDArray
    stride: int
    init_noise_sigma: float = 1.0

    def check(self, t: SupportsIndex) -> int:
        """Return a timestep as an int; refuse one that is not of this run."""
        t = operator.index(t)
        if t not in self.timesteps:
            first, last, count = self.timesteps[0], self.timesteps[-1], len(self.timesteps)
            raise ValueError(f"timestep {t} is not of this run: {first} to {last} in {count} steps")
        return t

    def following(self, t: int) -> int:
        """Return the timestep after one of this run; -1 after the last."""
        later = self.timesteps[self.timesteps < t]
        return int(later[0]) if len(later) else -1


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
        takes_timesteps: Whether `start` takes timesteps of the caller's own; as in diffusers.
        fractional: Whether a timestep may lie between two of the training.
        order: How many calls of the model a step has; of PLMS the first alone has two.
    """

    takes_timesteps: ClassVar[bool] = False
    fractional: ClassVar[bool] = False
    order: ClassVar[int] = 1

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

    def timesteps(self, num_inference_steps: int) -> NDArray:
        """Choose evenly spaced timesteps, as ``timestep_spacing`` says.

        Args:
            num_inference_steps: Number of steps, 1 to T.

        Returns:
            The timesteps, decreasing; int64.

        Raises:
            ValueError: If there are not that many timesteps.
        """
        return self.spaced(num_inference_steps).round().astype(np.int64)

    def spaced(self, num_inference_steps: int) -> NDArray[np.float64]:
        """Return `timesteps` before "linspace" is rounded; raises as it does."""
        total, spacing = self.config.num_train_timesteps, self.config.timestep_spacing
        self.check_count(num_inference_steps)
        if spacing == "linspace":
            return np.linspace(0, total - 1, num_inference_steps)[::-1]
        if spacing == "trailing":
            # The stride's rounding can make one more, at timestep -1: diffusers goes there.
            stride = total / num_inference_steps
            return np.arange(total, 0, -stride).round()[:num_inference_steps] - 1
        return self.leading(num_inference_steps, total // num_inference_steps)

    def check_count(self, num_inference_steps: int) -> None:
        """Refuse more steps than there are timesteps, and none."""
        total = self.config.num_train_timesteps
        if not 1 <= num_inference_steps <= total:
            raise ValueError(f"num_inference_steps is {num_inference_steps}, expected 1 to {total}")

    def leading(self, num_inference_steps: int, stride: int) -> NDArray[np.float64]:
        """Return the first timestep of every stride, plus the offset."""
        last, offset = self.config.num_train_timesteps - 1, self.config.steps_offset
        timesteps = np.arange(num_inference_steps)[::-1] * float(stride) + offset
        if timesteps[0] > last:
            raise ValueError(
                f"{num_inference_steps} steps with timestep_spacing 'leading' and steps_offset "
                f"{offset} begin at timestep {timesteps[0]:.0f}, but the last is {last}"
            )
        return timesteps

    def start(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        begin_index: int = 0,
    ) -> Run:
        """Begin a run, which `step` is given.

        Args:
            num_inference_steps: Number of steps, 1 to T.
            timesteps: The caller's own, decreasing, instead of a number of them.
            begin_index: How many timesteps of the run are left out, as image-to-image does.

        Returns:
            The run, with the timesteps that are left.

        Raises:
            ValueError: If there is no such run, or if both or neither of the first two are given.
        """
        chosen = self.choose(num_inference_steps, timesteps)
        stride = self.config.num_train_timesteps // (num_inference_steps or len(chosen))
        return Run(late(chosen, begin_index), stride)

    def choose(self, num_inference_steps: int | None, timesteps: Sequence[float] | None) -> NDArray:
        """Return the timesteps of a number of steps, or the caller's own where they fit."""
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("a run has either num_inference_steps or timesteps of its own")
        if timesteps is None:
            return self.timesteps(num_inference_steps)
        if not self.takes_timesteps:
            raise ValueError(f"timesteps are given, but {type(self).__name__} chooses its own")
        own, last = np.array(timesteps), self.config.num_train_timesteps - 1
        if own.ndim != 1 or own.size == 0 or not (np.diff(own) < 0).all():
            raise ValueError(f"timesteps are {timesteps}, expected decreasing ones")
        if not 0 <= own[-1] <= own[0] <= last:
            raise ValueError(f"timesteps are {timesteps}, expected 0 to {last}")
        if own.dtype.kind not in "iu" and not self.fractional:
            raise ValueError(f"timesteps are {timesteps}, expected integers")
        return own

    def adds_noise(
        self,
        t: SupportsFloat,  # noqa: ARG002 - DDPM adds none at 0
    ) -> bool:
        """Tell whether `step` adds noise at t, and so has an argument for it: not here."""
        return False

    def scale_model_input(
        self,
        sample: Tensor,
        t: SupportsFloat,  # noqa: ARG002 - schedulers whose variance grows with t divide by it
        run: Run | None = None,  # noqa: ARG002 - and a run of theirs knows the variance
    ) -> Tensor:
        """Return what the model is given at t: the sample itself, of variance 1 at every t."""
        return sample

    def add_noise(
        self,
        original: Tensor,
        noise: Tensor,
        t: SupportsFloat | Tensor,
        run: Run | None = None,
    ) -> Tensor:
        """Take a clean sample to a noise level (equation 4).

        Args:
            original: ``(B, ...)``, x_0.
            noise: Standard normal, of the same shape and dtype.
            t: Timestep 0 to T - 1, an int or an integer tensor of shape ``()``, ``(1,)`` or
                ``(B,)``.
            run: Not needed here: a timestep is a noise level, whatever the run.

        Returns:
            x_t, of the same shape and dtype.

        Raises:
            TypeError: If the timestep is no integer.
            ValueError: If a shape does not fit, or if there is no such timestep.
        """
        check_shape("noise", noise, original)
        t = torch.as_tensor(t).cpu().numpy()
        if t.shape not in ((), (1,), original.shape[:1]):
            raise ValueError(f"timestep has shape {t.shape}, expected () or ({len(original)},)")
        signal, sigma = (
            torch.tensor(level, dtype=original.dtype, device=original.device).reshape(
                -1,
                *[1] * (original.ndim - 1),  # (B, 1, ...)
            )
            for level in self.levels(t, run)
        )
        return signal * original + sigma * noise

    def levels(
        self,
        t: NDArray,
        run: Run | None,  # noqa: ARG002 - see `add_noise`
    ) -> tuple[NDArray, NDArray]:
        """Return the shares of x_0 and of the noise in x_t, each of t's shape."""
        if t.dtype.kind not in "iu":
            raise TypeError(f"timestep has dtype {t.dtype}, expected integers")
        if t.min() < 0 or t.max() >= len(self.betas):
            raise ValueError(f"timestep is {t}, expected 0 to {len(self.betas) - 1}")
        alpha_bar = self.alphas_cumprod[t]
        return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)

    def alpha_cumprod(self, t: int) -> float:
        """Return alpha_bar_t; for a negative t, which a last step arrives at, the final one."""
        return float(self.alphas_cumprod[t]) if t >= 0 else self.final_alpha_cumprod

    def predict_original(self, model_output: Tensor, t: int, sample: Tensor) -> Tensor:
        """Return the x_0 that the model's output means for x_t (DDPM, equation 15)."""
        alpha_bar = self.alpha_cumprod(t)
        if self.config.prediction_type == "sample":
            return model_output
        if self.config.prediction_type == "v_prediction":
            return math.sqrt(alpha_bar) * sample - math.sqrt(1 - alpha_bar) * model_output
        return (sample - math.sqrt(1 - alpha_bar) * model_output) / math.sqrt(alpha_bar)

    def predict_noise(self, model_output: Tensor, t: int, sample: Tensor) -> Tensor:
        """Return the epsilon that the model's output means for x_t."""
        alpha_bar = self.alpha_cumprod(t)
        if self.config.prediction_type == "sample":
            return (sample - math.sqrt(alpha_bar) * model_output) / math.sqrt(1 - alpha_bar)
        if self.config.prediction_type == "v_prediction":
            return math.sqrt(alpha_bar) * model_output + math.sqrt(1 - alpha_bar) * sample
        return model_output


def late(timesteps: NDArray, begin_index: int) -> NDArray:
    """Return the timesteps of a run that begins late."""
    if not 0 <= begin_index < len(timesteps):
        raise ValueError(f"begin_index is {begin_index}, expected 0 to {len(timesteps) - 1}")
    return timesteps[begin_index:]


def check_shape(name: str, tensor: Tensor, sample: Tensor) -> None:
    """Refuse a tensor that would be broadcast to the sample's shape, or the sample to its."""
    if tensor.shape != sample.shape:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, the sample has {tuple(sample.shape)}"
        )
