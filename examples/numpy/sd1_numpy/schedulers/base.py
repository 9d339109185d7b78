"""What all schedulers share: settings, the noise of training, and where a run asks the model.

Training mixes a picture x_0 with noise e: x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e, where a_t, the
share of the signal, is `alphas_cumprod[t]` ("Denoising Diffusion Probabilistic Models", Ho et al.,
2020, equation 4). A scheduler goes the other way: from noise to a picture, by what the model says
is noise. What the model says and fresh noise are arguments, so nothing here is random.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from sd1_numpy.layers import Array


class UnsupportedError(Exception):
    """The port declines what it is asked for, and says why."""


ANY: tuple[Any, ...] = ()
EITHER = (False, True)

Settings = Mapping[str, tuple[Any, ...]]
"""Names of settings, and the values of each that are known here."""

SETTINGS: Settings = {
    "num_train_timesteps": ANY,
    "beta_start": ANY,
    "beta_end": ANY,
    "beta_schedule": ("linear", "scaled_linear"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "steps_offset": ANY,
    "num_inference_steps": ANY,
    "begin_index": ANY,
}
"""Those of every scheduler."""


def needed(noise: Array | None) -> Array:
    """Return the noise of a step that adds some."""
    if noise is None:
        raise ValueError("noise is missing: the steps of this run add some")
    return noise


class Scheduler:
    """One run, from its first call of the model to its last.

    Attributes:
        settings: What an algorithm has beyond `SETTINGS`, or less of it.
        calls_per_step: How often a step of `num_inference_steps` asks the model.
        init_noise_sigma: Deviation of the noise that a run begins with.
        tables: Numbers to be looked at, by name, float64, one axis each.
        timesteps: Where the model is asked, in this order.
    """

    settings: ClassVar[Settings] = {}
    calls_per_step = 1
    init_noise_sigma = 1.0
    timesteps: list[Any]

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Begin a run, but for its timesteps: they are for an algorithm to set, by `ask`.

        Args:
            config: Every setting, named as in `scheduler_config.json`.

        Raises:
            UnsupportedError: A setting is unknown, or has a value that is.
            ValueError: There is no such run.
        """
        self.config = config
        self.check()
        self.trained, self.count = config["num_train_timesteps"], config["num_inference_steps"]
        if not 1 <= self.count <= self.trained:
            raise ValueError(f"num_inference_steps is {self.count}, expected 1 to {self.trained}")
        self.stride = self.trained // self.count
        betas = self.betas(self.trained)
        self.alphas_cumprod = np.cumprod(1 - betas)
        self.tables = {"betas": betas, "alphas_cumprod": self.alphas_cumprod}

    def check(self) -> None:
        """Decline what this scheduler would have to ignore."""
        known = {**SETTINGS, **self.settings}
        for name, value in self.config.items():
            if name not in known:
                raise UnsupportedError(f"{type(self).__name__} has no setting {name}")
            if known[name] and value not in known[name]:
                raise UnsupportedError(f"{type(self).__name__} has no {name} {value!r}")
        limit = self.config.get("clip_sample_range", 1)
        if not limit > 0:
            raise ValueError(f"clip_sample_range is {limit}, expected more than 0")

    def betas(self, count: int) -> Array:
        """Return the variances of the noise that training adds at each timestep."""
        first, last = self.config["beta_start"], self.config["beta_end"]
        if self.config["beta_schedule"] == "linear":
            return np.linspace(first, last, count)
        return np.linspace(math.sqrt(first), math.sqrt(last), count) ** 2

    def spaced(self, count: int) -> Array:
        """Return timesteps, falling: the first of every stride, the last, or from end to end.

        Source: "Common Diffusion Noise Schedules and Sample Steps are Flawed" (Lin et al., 2024),
        table 2. Only from end to end (`linspace`) some may lie between two timesteps.
        """
        spacing = self.config["timestep_spacing"]
        if spacing == "linspace":
            return np.linspace(0, self.trained - 1, count)[::-1]
        if spacing == "trailing":  # rounding can leave room for one more, at -1
            return np.arange(self.trained, 0, -self.trained / count).round()[:count] - 1
        stride = self.trained // count
        every = np.arange(count)[::-1] * float(stride) + self.config["steps_offset"]
        if stride == 0 or every[0] >= self.trained:
            raise ValueError(
                f"timestep_spacing leading: {count} strides of {stride} timesteps that begin at "
                f"{every[0]:g} do not fit into {self.trained}"
            )
        return every

    def ask(self, every: Array) -> None:
        """Take the timesteps of all calls; a run may leave out the first of them."""
        self.late = self.config["begin_index"]
        if not 0 <= self.late < len(every):
            raise ValueError(f"begin_index is {self.late}, expected 0 to {len(every) - 1}")
        self.timesteps = every[self.late :].tolist()

    def levels(self, k: int) -> tuple[float, float]:
        """Return what x_0 and noise of deviation 1 are multiplied by in the k-th call's sample."""
        raise NotImplementedError

    def mix(self, k: int, x_0: Array, noise: Array) -> Array:
        """Return a picture as noisy as the sample of the k-th call."""
        signal, deviation = self.levels(k)
        return signal * x_0 + deviation * noise

    def scale(self, k: int, x: Array) -> Array:  # noqa: ARG002
        """Return what the model is given in the k-th call: here the sample itself."""
        return x

    def step(self, k: int, said: Array, x: Array, noise: Array | None) -> Array:
        """Return the next sample.

        Args:
            k: Which call of the model, from 0.
            said: What the model said.
            x: The sample, not scaled.
            noise: Of a standard normal, None where the run adds none; all shaped alike.
        """
        raise NotImplementedError
