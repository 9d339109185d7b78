"""PNDM: DDIM's step without fresh noise, along a blend of the last four answers of the model.

Source: "Pseudo Numerical Methods for Diffusion Models on Manifolds" (Liu et al., 2022), section 3,
whose transfer part is DDIM's equation 12 at sigma 0. The paper warms up by three Runge-Kutta steps
of four answers each. Stable Diffusion does without (PLMS): it takes the first step twice, the
second time by the mean of the answers at both of its ends.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from sd1_numpy.layers import Array
from sd1_numpy.schedulers.base import EITHER, Settings
from sd1_numpy.schedulers.shares import ShareScheduler

START, HALF_WAY, AGAIN, END = range(4)
"""The calls of a Runge-Kutta step."""

WARM_UP = 3 * (END + 1)
"""Calls of all three."""


class PNDM(ShareScheduler):
    """A linear multistep method that keeps samples where the model knows them."""

    settings: ClassVar[Settings] = {
        "prediction_type": ("epsilon", "v_prediction"),
        "set_alpha_to_one": EITHER,
        "skip_prk_steps": EITHER,
    }

    BLENDS = (
        (1,),
        (3 / 2, -1 / 2),
        (23 / 12, -16 / 12, 5 / 12),
        (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    )
    """Adams-Bashforth: how much the latest answer counts, the one before it, ..."""

    RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    """How much the answers of a step count."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Begin a run; nothing was said yet."""
        self.warm_up = 0 if config["skip_prk_steps"] else WARM_UP
        super().__init__(config)
        if self.warm_up and self.late:
            raise ValueError(f"begin_index is {self.late}, expected 0 with a Runge-Kutta warm-up")
        self.said: list[Array] = []
        self.first = self.slope = np.empty(0)

    def asked(self, every: Array) -> Array:
        """Return the second timestep twice; or a warm-up along the first three strides."""
        if len(every) < (4 if self.warm_up else 2):
            raise ValueError(
                f"num_inference_steps is {len(every)}: PLMS, which takes its first step twice, "
                "needs 2 timesteps, and a Runge-Kutta warm-up 4"
            )
        if not self.warm_up:
            return every.repeat([1, 2, *[1] * (len(every) - 2)])
        ends = every[1:4, None] + self.stride // 2 * np.array([1, 1, 0, 0])
        return np.concatenate([every[:1], ends.ravel(), every[4:]])

    def step(self, k: int, said: Array, x: Array, noise: Array | None) -> Array:  # noqa: ARG002
        """Return the next sample; of PLMS the second call takes the first step again."""
        if k < self.warm_up:
            return self.runge_kutta(k, said, x)
        t = self.timesteps[k]
        if k == 1:
            return self.move(t + self.stride, t, (said + self.said[0]) / 2, self.first)
        if k == 0:
            self.first = x
        self.said = [said, *self.said[:3]]
        blend = self.BLENDS[len(self.said) - 1]
        said = sum(w * e for w, e in zip(blend, self.said, strict=True))
        return self.move(t, t - self.stride, said, x)

    def runge_kutta(self, k: int, said: Array, x: Array) -> Array:
        """Return where the model is asked next: from the start of a step, by the answer so far."""
        stage = k % len(self.RUNGE_KUTTA)
        if stage == START:
            self.first, self.slope = x, np.zeros_like(x)
            self.said = [said, *self.said]
        self.slope = self.slope + self.RUNGE_KUTTA[stage] * said
        if stage == END:
            said = self.slope
        t = self.timesteps[k]
        to = t - self.stride // 2 if stage in (START, AGAIN) else t
        return self.move(self.timesteps[k - stage], to, said, self.first)

    def move(self, t: int, to: int, said: Array, x: Array) -> Array:
        """Bring a sample from one timestep to another: DDIM's step, with its two terms collected.

        By way of the picture early steps would divide by sqrt(a) = 0.07, and rounding with it.
        """
        a, b = self.share(t), self.share(to)
        _, e = self.split(said, x, a)
        growth = math.sqrt(b / a)
        return growth * x + (math.sqrt(1 - b) - growth * math.sqrt(1 - a)) * e
