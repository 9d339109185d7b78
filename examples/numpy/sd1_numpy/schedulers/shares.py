"""Schedulers that walk along the shares of picture and noise, in samples of variance 1."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sd1_numpy.layers import Array
from sd1_numpy.schedulers.base import Scheduler


class ShareScheduler(Scheduler):
    """What DDPM, DDIM and PNDM share.

    In their code a is the share of the signal at the timestep of a step, b that at the next one,
    which is nearer to the picture.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Begin a run; after its last step the share is 1, or that of timestep 0."""
        super().__init__(config)
        self.final = 1.0 if config.get("set_alpha_to_one", True) else self.alphas_cumprod[0]
        self.tables["final_alpha_cumprod"] = np.array([self.final])
        self.ask(self.asked(self.spaced(self.count).round().astype(np.int64)))

    def asked(self, every: Array) -> Array:
        """Return where the model is asked, given the timesteps of all steps."""
        return every

    def share(self, t: int) -> float:
        """Return the share of the signal at a timestep; below 0 the run has ended."""
        return float(self.alphas_cumprod[t] if t >= 0 else self.final)

    def levels(self, k: int) -> tuple[float, float]:
        """Return the roots of both shares."""
        a = self.share(self.timesteps[k])
        return math.sqrt(a), math.sqrt(1 - a)

    def split(self, said: Array, x: Array, a: float) -> tuple[Array, Array]:
        """Split a sample into picture and noise, by what the model says of it.

        Args:
            said: The noise e, the picture x_0, or the velocity sqrt(a) e - sqrt(1 - a) x_0
                ("Progressive Distillation ...", Salimans and Ho, 2022, appendix D).
            x: The sample, shaped as said.
            a: Its share of the signal.

        Returns:
            x_0, clipped where that is asked for, and e, which then stays as it was.
        """
        signal, noise = math.sqrt(a), math.sqrt(1 - a)
        if self.config["prediction_type"] == "epsilon":
            x_0, e = (x - noise * said) / signal, said
        elif self.config["prediction_type"] == "sample":
            x_0, e = said, (x - signal * said) / noise
        else:
            x_0, e = signal * x - noise * said, signal * said + noise * x
        if self.config.get("clip_sample"):
            limit = self.config["clip_sample_range"]
            x_0 = np.clip(x_0, -limit, limit)
        return x_0, e
