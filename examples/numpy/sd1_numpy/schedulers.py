"""Schedulers: from noise to latents, step by step, by what the UNet says is noise.

All three walk along x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e, where e is noise and a_t, the share of
the signal, is `alphas_cumprod[t]`. In the code a is the share at the timestep of a step, b that at
the next one, which is nearer to the picture. What the model says and fresh noise are arguments.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sd1_numpy.layers import Array


class UnsupportedError(Exception):
    """The port declines what it is asked for, and says why."""


NUMBERS = frozenset(
    {
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "steps_offset",
        "num_inference_steps",
        "begin_index",
    }
)
"""Settings of every scheduler that may have any value."""

CHOICES: dict[str, tuple[Any, ...]] = {
    "beta_schedule": ("linear", "scaled_linear"),
    "prediction_type": ("epsilon", "v_prediction"),
    "timestep_spacing": ("leading",),
}
"""Settings of every scheduler that name one of several ways, and the ways that are known here."""


class Scheduler:
    """What all schedulers share: the tables, the timesteps, and what the model's answer means.

    Attributes:
        tables: `betas`, `alphas_cumprod` and `final_alpha_cumprod`, float64.
        timesteps: Where the model is asked, in this order.
        numbers: Settings of its own, of any value.
        choices: Settings of its own that name one of several ways.
    """

    numbers: frozenset[str] = frozenset()
    choices: Mapping[str, tuple[Any, ...]] = {}

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Begin a run.

        Args:
            config: Every setting, named as in `scheduler_config.json`.

        Raises:
            UnsupportedError: A setting is unknown, or has a value that is.
            ValueError: There is no such run: a timestep lies beyond the table.
        """
        self.config = config
        self.check()
        trained, count = config["num_train_timesteps"], config["num_inference_steps"]
        betas = self.betas(trained)
        self.alphas_cumprod = np.cumprod(1 - betas)
        self.final = 1.0 if config.get("set_alpha_to_one", True) else self.alphas_cumprod[0]
        self.tables = {
            "betas": betas,
            "alphas_cumprod": self.alphas_cumprod,
            "final_alpha_cumprod": np.array([self.final]),
        }
        self.stride = trained // count
        every = [i * self.stride + config["steps_offset"] for i in reversed(range(count))]
        if every[0] >= trained:
            raise ValueError(f"{count} steps begin at timestep {every[0]}, beyond the table")
        self.timesteps = self.asked(every)[config["begin_index"] :]

    def check(self) -> None:
        """Decline what this scheduler would have to ignore."""
        choices = {**CHOICES, **self.choices}
        for name, value in self.config.items():
            if name not in NUMBERS | self.numbers | choices.keys():
                raise UnsupportedError(f"{type(self).__name__} has no setting {name}")
            if name in choices and value not in choices[name]:
                raise UnsupportedError(f"{type(self).__name__} has no {name} {value!r}")

    def betas(self, count: int) -> Array:
        """Return the variances of the noise that training adds at each timestep."""
        first, last = self.config["beta_start"], self.config["beta_end"]
        if self.config["beta_schedule"] == "linear":
            return np.linspace(first, last, count)
        return np.linspace(math.sqrt(first), math.sqrt(last), count) ** 2

    def asked(self, every: list[int]) -> list[int]:
        """Return where the model is asked, given the timesteps of all steps."""
        return every

    def share(self, t: int) -> float:
        """Return the share of the signal at a timestep; below 0 the run has ended."""
        return float(self.alphas_cumprod[t] if t >= 0 else self.final)

    def split(self, said: Array, x: Array, a: float) -> tuple[Array, Array]:
        """Split a sample into picture and noise, by what the model says of it.

        Args:
            said: The noise e, or the velocity sqrt(a) e - sqrt(1 - a) x_0 (Salimans and Ho, 2022).
            x: The sample, shaped as said.
            a: Its share of the signal.

        Returns:
            x_0, clipped where that is asked for, and e, which then stays as it was.
        """
        signal, noise = math.sqrt(a), math.sqrt(1 - a)
        if self.config["prediction_type"] == "epsilon":
            x_0, e = (x - noise * said) / signal, said
        else:
            x_0, e = signal * x - noise * said, signal * said + noise * x
        if self.config.get("clip_sample"):
            limit = self.config["clip_sample_range"]
            x_0 = np.clip(x_0, -limit, limit)
        return x_0, e

    def step(self, k: int, said: Array, x: Array, noise: Array | None) -> Array:
        """Return the next sample.

        Args:
            k: Which of the timesteps.
            said: What the model said at it.
            x: The sample that it was given.
            noise: Of a standard normal, None where the run adds none; all shaped alike.
        """
        raise NotImplementedError


class DDPM(Scheduler):
    """Draws from the posterior of the next sample, given this one and the picture in it.

    Source: "Denoising Diffusion Probabilistic Models" (Ho et al., 2020), equations 6 and 7, with
    the timesteps between two steps taken as one.
    """

    numbers = frozenset({"clip_sample", "clip_sample_range"})
    choices: Mapping[str, tuple[Any, ...]] = {"variance_type": ("fixed_small", "fixed_large")}

    def step(self, k: int, said: Array, x: Array, noise: Array | None) -> Array:
        """Return the mean of the posterior, and noise of its deviation but at timestep 0."""
        t = self.timesteps[k]
        last = k == len(self.timesteps) - 1
        a, b = self.share(t), self.share(-1 if last else t - self.stride)
        x_0, _ = self.split(said, x, a)
        alpha = a / b
        beta = 1 - alpha
        mean = math.sqrt(b) * beta / (1 - a) * x_0 + math.sqrt(alpha) * (1 - b) / (1 - a) * x
        if t == 0:
            return mean
        variance = max((1 - b) / (1 - a) * beta, 1e-20)
        if self.config["variance_type"] == "fixed_large":
            variance = beta
        return mean + math.sqrt(variance) * noise


class DDIM(Scheduler):
    """Keeps picture and noise and changes their shares; some of the noise may be fresh.

    Source: "Denoising Diffusion Implicit Models" (Song et al., 2021), equations 12 and 16.
    """

    numbers = frozenset({"set_alpha_to_one", "clip_sample", "clip_sample_range", "eta"})

    def step(self, k: int, said: Array, x: Array, noise: Array | None) -> Array:
        """Return the picture with less noise, of which eta says how much is fresh."""
        t = self.timesteps[k]
        a, b = self.share(t), self.share(t - self.stride)
        x_0, e = self.split(said, x, a)
        sigma = self.config["eta"] * math.sqrt((1 - b) / (1 - a) * (1 - a / b))
        x = math.sqrt(b) * x_0 + math.sqrt(1 - b - sigma**2) * e
        return x + sigma * noise if sigma > 0 else x


class PNDM(Scheduler):
    """Steps like DDIM without fresh noise, by a blend of the last four answers: PLMS.

    Source: "Pseudo Numerical Methods for Diffusion Models on Manifolds" (Liu et al., 2022), section
    3, whose transfer part is DDIM's equation 12 at sigma 0. Stable Diffusion begins without the
    paper's Runge-Kutta steps: it takes the first step twice, the second time by the mean of the
    answers at both of its ends.
    """

    numbers = frozenset({"set_alpha_to_one"})
    choices: Mapping[str, tuple[Any, ...]] = {"skip_prk_steps": (True,)}

    BLENDS = (
        (1,),
        (3 / 2, -1 / 2),
        (23 / 12, -16 / 12, 5 / 12),
        (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    )
    """Adams-Bashforth: how much the latest answer counts, the one before it, ..."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Begin a run; nothing was said yet."""
        super().__init__(config)
        self.said: list[Array] = []
        self.first = np.empty(0)

    def asked(self, every: list[int]) -> list[int]:
        """Return the timesteps, the second one twice."""
        if len(every) == 1:
            raise ValueError("PLMS takes its first step twice: it needs two timesteps")
        return [every[0], every[1], *every[1:]]

    def step(self, k: int, said: Array, x: Array, noise: Array | None) -> Array:  # noqa: ARG002
        """Return the next sample; the second call takes the first step again."""
        t = self.timesteps[k]
        if k == 1:
            return self.move(t + self.stride, (said + self.said[0]) / 2, self.first)
        if k == 0:
            self.first = x
        self.said = [said, *self.said[:3]]
        blend = self.BLENDS[len(self.said) - 1]
        return self.move(t, sum(w * e for w, e in zip(blend, self.said, strict=True)), x)

    def move(self, t: int, said: Array, x: Array) -> Array:
        """Step from a timestep to the next."""
        a, b = self.share(t), self.share(t - self.stride)
        x_0, e = self.split(said, x, a)
        return math.sqrt(b) * x_0 + math.sqrt(1 - b) * e


SCHEDULERS = {"ddpm": DDPM, "ddim": DDIM, "pndm": PNDM}


def scheduler_of(name: str, config: Mapping[str, Any]) -> Scheduler:
    """Begin a run of the scheduler of that name.

    Raises:
        UnsupportedError: There is none, or a setting is not known.
    """
    if name not in SCHEDULERS:
        raise UnsupportedError(f"there is no scheduler {name!r}")
    return SCHEDULERS[name](config)


def open_loop(
    scheduler: Scheduler, sample: Array, model_outputs: Array, noise: Array | None = None
) -> dict[str, Array]:
    """Run a scheduler on what a model is said to have said.

    Args:
        scheduler: The scheduler.
        sample: (B, 4, h, w).
        model_outputs: (N, B, 4, h, w).
        noise: Of each step, (N, B, 4, h, w), where some is added.

    Returns:
        `timesteps` (N,); `model_inputs`, what the model is given, and `samples`, what comes of each
        step, (N, B, 4, h, w).
    """
    samples = [sample]
    for k, said in enumerate(model_outputs):
        fresh = None if noise is None else noise[k]
        samples.append(scheduler.step(k, said, samples[-1], fresh))
    return {
        "timesteps": np.array(scheduler.timesteps),
        "model_inputs": np.stack(samples[:-1]),  # all three give the model the sample itself
        "samples": np.stack(samples[1:]),
    }
