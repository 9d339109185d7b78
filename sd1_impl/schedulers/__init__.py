"""The schedulers: how the model's predictions lead from noise to a sample, one algorithm per file.

All are used in the same way, and none of them draws noise: where it is needed, it is an argument.

    scheduler = DDIMScheduler(SD_V1_DDIM)
    run = scheduler.start(num_inference_steps=50)
    for t in run.timesteps:
        model_output = model(scheduler.scale_model_input(sample, t), t)
        sample = scheduler.step(model_output, t, sample, run)  # noise, where adds_noise(t)

A scheduler holds tables only, and what an algorithm remembers is in the run: one scheduler serves
any number of runs at a time. Start with `sd1_impl.schedulers.noise_schedule`, then read ``ddim``.
"""

from sd1_impl.config import DDIMConfig, DDPMConfig, PNDMConfig, SchedulerConfig
from sd1_impl.schedulers.ddim import DDIMScheduler
from sd1_impl.schedulers.ddpm import DDPMScheduler
from sd1_impl.schedulers.noise_schedule import NoiseSchedule, Run
from sd1_impl.schedulers.pndm import PLMSRun, PNDMScheduler

Scheduler = DDPMScheduler | DDIMScheduler | PNDMScheduler

SCHEDULERS: dict[str, tuple[type[SchedulerConfig], type[Scheduler]]] = {
    "pndm": (PNDMConfig, PNDMScheduler),
    "ddim": (DDIMConfig, DDIMScheduler),
    "ddpm": (DDPMConfig, DDPMScheduler),
}
"""Config and algorithm by short name; SD v1's own, PNDM, first."""

__all__ = [
    "SCHEDULERS",
    "DDIMScheduler",
    "DDPMScheduler",
    "NoiseSchedule",
    "PLMSRun",
    "PNDMScheduler",
    "Run",
    "Scheduler",
]
