"""The schedulers: how the model's predictions lead from noise to a sample, one algorithm per file.

All are used in the same way, and none of them draws noise: where it is needed, it is an argument.

    scheduler = DDIMScheduler(SD_V1_DDIM)
    run = scheduler.start(num_inference_steps=50)
    sample = noise * run.init_noise_sigma
    for t in run.timesteps:
        model_output = model(scheduler.scale_model_input(sample, t, run), t)
        sample = scheduler.step(model_output, t, sample, run)  # noise, where adds_noise(t)

A scheduler holds tables only, and what an algorithm remembers is in the run: one scheduler serves
any number of runs at a time. Start with `sd1_impl.schedulers.noise_schedule`, then read ``ddim``;
`sd1_impl.schedulers.sigma_schedule` is the other view, with ``euler`` to begin with.
"""

from sd1_impl.scheduler_config import (
    DDIMConfig,
    DDPMConfig,
    DPMPP2MConfig,
    EulerAncestralConfig,
    EulerConfig,
    HeunConfig,
    LMSConfig,
    PNDMConfig,
    SchedulerConfig,
)
from sd1_impl.schedulers.ddim import DDIMScheduler
from sd1_impl.schedulers.ddpm import DDPMScheduler
from sd1_impl.schedulers.dpmpp_2m import DPMSolverMultistepScheduler
from sd1_impl.schedulers.euler import EulerDiscreteScheduler
from sd1_impl.schedulers.euler_ancestral import EulerAncestralDiscreteScheduler
from sd1_impl.schedulers.heun import HeunDiscreteScheduler
from sd1_impl.schedulers.lms import LMSDiscreteScheduler
from sd1_impl.schedulers.noise_schedule import NoiseSchedule, Run
from sd1_impl.schedulers.pndm import PLMSRun, PNDMScheduler
from sd1_impl.schedulers.sigma_schedule import SigmaRun, SigmaSchedule

Scheduler = (
    DDPMScheduler
    | DDIMScheduler
    | PNDMScheduler
    | LMSDiscreteScheduler
    | EulerDiscreteScheduler
    | EulerAncestralDiscreteScheduler
    | HeunDiscreteScheduler
    | DPMSolverMultistepScheduler
)

SCHEDULERS: dict[str, tuple[type[SchedulerConfig], type[Scheduler]]] = {
    "pndm": (PNDMConfig, PNDMScheduler),
    "ddim": (DDIMConfig, DDIMScheduler),
    "ddpm": (DDPMConfig, DDPMScheduler),
    "lms": (LMSConfig, LMSDiscreteScheduler),
    "euler": (EulerConfig, EulerDiscreteScheduler),
    "euler_ancestral": (EulerAncestralConfig, EulerAncestralDiscreteScheduler),
    "heun": (HeunConfig, HeunDiscreteScheduler),
    "dpmpp_2m": (DPMPP2MConfig, DPMSolverMultistepScheduler),
}
"""Config and algorithm by short name; SD v1's own, PNDM, first. Classes are named as diffusers'."""

__all__ = [
    "SCHEDULERS",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "NoiseSchedule",
    "PLMSRun",
    "PNDMScheduler",
    "Run",
    "Scheduler",
    "SigmaRun",
    "SigmaSchedule",
]
