"""Every number of the schedulers, named, with the place where it is written down.

Sources, by the short names used below, beside those of `sd1_impl.config`:

- *scheduler_config.json*: the file of that name in ``scheduler`` of the published diffusers
  checkpoint of SD v1-5;
- *k-diffusion*: crowsonkb/k-diffusion, with which the first users of SD v1 sampled beyond DDIM and
  PLMS (``K.external.CompVisDenoiser``), and ``K.sampling``.

What a scheduler does not offer, because diffusers' does not, is refused here, by name.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal


def _check_choice(name: str, value: str, *choices: str) -> None:
    """Refuse a name that means nothing."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}")


def _check_range(clip_sample_range: float) -> None:
    """Refuse to clip to nothing."""
    if not clip_sample_range > 0:
        raise ValueError(f"clip_sample_range is {clip_sample_range}, expected more than 0")


@dataclass(frozen=True)
class SchedulerConfig:
    """What every scheduler has to know of the training; the defaults are SD v1's.

    Attributes:
        num_train_timesteps: Number T of noise levels, 0 to T - 1 (``timesteps``,
            *v1-inference.yaml*).
        beta_start: Variance added at timestep 0 (``linear_start``; DDPM itself used 0.0001).
        beta_end: Variance added at the last timestep (``linear_end``; DDPM itself used 0.02).
        beta_schedule: What is spaced evenly between the two: "linear" the variances, as in DDPM,
            "scaled_linear" their square roots (``make_beta_schedule``,
            *ldm/modules/diffusionmodules/util.py*, which calls this one "linear").
        steps_offset: Added to the timesteps of a run with "leading" spacing, so that the last is 1
            and not 0 (``ddim_timesteps + 1`` in ``make_ddim_timesteps``, *ldm/.../util.py*).
        prediction_type: What the model's output is: "epsilon" the noise (``parameterization: eps``,
            *ldm/models/diffusion/ddpm.py*); "v_prediction" the velocity (Salimans and Ho, 2022,
            section 4) or "sample" x_0 itself (Ho et al., 2020, section 3.2), which SD v1 does not
            use.
        timestep_spacing: Which of the T timesteps a run asks at (Lin et al., "Common Diffusion
            Noise Schedules and Sample Steps are Flawed", 2023, table 2): "leading" the first of
            every stride (``make_ddim_timesteps``, *ldm/.../util.py*), "trailing" the last,
            "linspace" evenly from T - 1 to 0.

    Raises:
        ValueError: If there is no such schedule, or no such scheduler.
    """

    predictions: ClassVar = ("epsilon", "v_prediction", "sample")

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["linear", "scaled_linear"] = "scaled_linear"
    steps_offset: int = 1
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"

    def __post_init__(self) -> None:
        """Refuse what cannot be a noise schedule."""
        _check_choice("beta_schedule", self.beta_schedule, "linear", "scaled_linear")
        _check_choice("prediction_type", self.prediction_type, *self.predictions)
        _check_choice("timestep_spacing", self.timestep_spacing, "leading", "trailing", "linspace")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"betas from {self.beta_start} to {self.beta_end} do not rise within (0, 1)"
            )
        if self.num_train_timesteps < 1 or self.steps_offset < 0:
            raise ValueError(
                f"num_train_timesteps {self.num_train_timesteps} or steps_offset "
                f"{self.steps_offset} is too small"
            )


@dataclass(frozen=True)
class DDPMConfig(SchedulerConfig):
    """What ancestral sampling adds to the schedule; the defaults are SD v1's.

    Attributes:
        clip_sample: Whether the predicted x_0 is clipped: right for pixels, wrong for latents
            (*scheduler_config.json*).
        clip_sample_range: Largest magnitude after clipping: pixels are in [-1, 1] (Ho et al., 2020,
            section 3.3).
        variance_type: Variance of the noise added by a step: "fixed_small" that of the posterior
            (``v_posterior: 0.``, *ldm/models/diffusion/ddpm.py*), "fixed_large" beta (Ho et al.,
            2020, section 3.2, compare both). "fixed_small_log", the name of code that goes by way
            of the logarithm, is the same number as "fixed_small".
        min_variance: Lower bound of the posterior's variance, which is 0 in the last step
            (``np.maximum(posterior_variance, 1e-20)``, *ldm/models/diffusion/ddpm.py*).

    Raises:
        ValueError: If there is no such variance, or if the clipping range is not positive.
    """

    clip_sample: bool = False
    clip_sample_range: float = 1.0
    variance_type: Literal["fixed_small", "fixed_small_log", "fixed_large"] = "fixed_small"
    min_variance: float = 1e-20

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled."""
        super().__post_init__()
        _check_range(self.clip_sample_range)
        _check_choice(
            "variance_type", self.variance_type, "fixed_small", "fixed_small_log", "fixed_large"
        )


SD_V1_DDPM = DDPMConfig()
"""Ancestral sampling with the schedule of Stable Diffusion v1, the one of its training."""


@dataclass(frozen=True)
class DDIMConfig(SchedulerConfig):
    """What DDIM adds to the schedule; the defaults are SD v1's.

    Attributes:
        eta: Share of DDPM's noise that a step adds, 0 to 1: 0 is deterministic (``--ddim_eta``,
            *scripts/txt2img.py* of CompVis).
        set_alpha_to_one: Whether the last step ends at the clean sample, instead of at the noise
            level of timestep 0 (``alphacums[0]`` in ``make_ddim_sampling_parameters``,
            *ldm/.../util.py*; *scheduler_config.json*).
        clip_sample: As `DDPMConfig`'s.
        clip_sample_range: As `DDPMConfig`'s.

    Raises:
        ValueError: If eta is not within 0 and 1, or if the clipping range is not positive.
    """

    eta: float = 0.0
    set_alpha_to_one: bool = False
    clip_sample: bool = False
    clip_sample_range: float = 1.0

    def __post_init__(self) -> None:
        """Refuse more noise than there may be after a step."""
        super().__post_init__()
        _check_range(self.clip_sample_range)
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}, expected 0 to 1")


SD_V1_DDIM = DDIMConfig()
"""DDIM as Stable Diffusion v1 configures it: what ``scripts/txt2img.py`` samples with."""


@dataclass(frozen=True)
class PNDMConfig(SchedulerConfig):
    """What PNDM adds to the schedule; the defaults are SD v1's.

    Attributes:
        set_alpha_to_one: As `DDIMConfig`'s.
        skip_prk_steps: Whether a run begins with low orders at once, as SD v1's
            (``plms.py``; *scheduler_config.json*), and not with Runge-Kutta steps, as the paper's.
    """

    predictions: ClassVar = ("epsilon", "v_prediction")

    set_alpha_to_one: bool = False
    skip_prk_steps: bool = True


SD_V1_PNDM = PNDMConfig()
"""PLMS as Stable Diffusion v1 configures it: *scheduler_config.json*, with ``skip_prk_steps``."""


@dataclass(frozen=True)
class SigmaConfig(SchedulerConfig):
    """What the schedulers that count in sigmas share; the defaults are those used with SD v1.

    Attributes:
        timestep_spacing: Here evenly from T - 1 to 0, fractions included (``get_sigmas`` of
            ``DiscreteSchedule``, *k-diffusion*).
        use_karras_sigmas: Whether the sigmas between the largest and the smallest of the run are
            those of Karras et al., 2022, equation 5, instead of those of the timesteps.
    """

    timestep_spacing: Literal["leading", "trailing", "linspace"] = "linspace"
    use_karras_sigmas: bool = False


@dataclass(frozen=True)
class LMSConfig(SigmaConfig):
    """The linear multistep method adds nothing."""


SD_V1_LMS = LMSConfig()
"""The linear multistep method with the schedule of Stable Diffusion v1."""


@dataclass(frozen=True)
class EulerConfig(SigmaConfig):
    """What Euler's method adds.

    Attributes:
        final_sigmas_type: Whether the last step ends at the clean sample, "zero" (``append_zero``
            in ``get_sigmas``, *k-diffusion*), or at timestep 0's noise level, "sigma_min".

    Raises:
        ValueError: If there is no such end.
    """

    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"

    def __post_init__(self) -> None:
        """Refuse what is no end."""
        super().__post_init__()
        _check_choice("final_sigmas_type", self.final_sigmas_type, "zero", "sigma_min")


SD_V1_EULER = EulerConfig()
"""Euler's method with the schedule of Stable Diffusion v1."""


@dataclass(frozen=True)
class EulerAncestralConfig(SigmaConfig):
    """Ancestral sampling with Euler's method adds nothing, and has less.

    Raises:
        ValueError: If Karras sigmas are asked for, which diffusers does not offer with it.
    """

    predictions: ClassVar = ("epsilon", "v_prediction")

    def __post_init__(self) -> None:
        """Refuse what it does not have."""
        super().__post_init__()
        if self.use_karras_sigmas:
            raise ValueError("use_karras_sigmas is True, but Euler-ancestral has no such option")


SD_V1_EULER_ANCESTRAL = EulerAncestralConfig()
"""Ancestral sampling with Euler's method, with the schedule of Stable Diffusion v1."""


@dataclass(frozen=True)
class HeunConfig(SigmaConfig):
    """What Heun's method adds.

    Attributes:
        clip_sample: As `DDPMConfig`'s.
        clip_sample_range: As `DDPMConfig`'s.

    Raises:
        ValueError: If the clipping range is not positive.
    """

    clip_sample: bool = False
    clip_sample_range: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be clipped to."""
        super().__post_init__()
        _check_range(self.clip_sample_range)


SD_V1_HEUN = HeunConfig()
"""Heun's method with the schedule of Stable Diffusion v1."""


@dataclass(frozen=True)
class DPMPP2MConfig(EulerConfig):
    """What DPM-Solver++ (2M) adds.

    Attributes:
        final_sigmas_type: As `EulerConfig`'s; at "zero" the last step is of first order, for there
            is no second at the clean sample, where lambda is infinite.
        lower_order_final: Whether the last step of a run of fewer than 15 steps is of first order
            (``lower_order_final``, *dpm_solver_pytorch.py* of LuChengTHU/dpm-solver: for stability
            with few steps).
        euler_at_final: Whether it is so in every run.
    """

    lower_order_final: bool = True
    euler_at_final: bool = False


SD_V1_DPMPP_2M = DPMPP2MConfig()
"""DPM-Solver++ (2M) with the schedule of Stable Diffusion v1."""
