"""diffusers' schedulers behind the contract: one class each, their noise handed over as data."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from torch import Tensor

from conformance.adapters.torch_module import DTYPES, Load
from conformance.adapters.torch_sampling import SchedulerComponent
from conformance.errors import UnsupportedError
from conformance.sampling import RUN, SCHEDULERS, SIGMA_FAMILY

if TYPE_CHECKING:
    from conformance.variants import Variant, Weights

MakeScheduler = Callable[[str, dict[str, Any]], Any]
LoadModule = Callable[[str], ModuleType]

_CLASSES = {
    "ddpm": ("ddpm", "DDPMScheduler"),
    "ddim": ("ddim", "DDIMScheduler"),
    "pndm": ("pndm", "PNDMScheduler"),
    "lms": ("lms_discrete", "LMSDiscreteScheduler"),
    "euler": ("euler_discrete", "EulerDiscreteScheduler"),
    "euler_ancestral": ("euler_ancestral_discrete", "EulerAncestralDiscreteScheduler"),
    "heun": ("heun_discrete", "HeunDiscreteScheduler"),
    "dpmpp_2m": ("dpmsolver_multistep", "DPMSolverMultistepScheduler"),
}
"""Module and class by algorithm."""

_FIXED = {
    "dpmpp_2m": {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"},
}
"""What makes a class of several algorithms this one."""


def make_scheduler(
    algorithm: str,
    config: Mapping[str, Any],
    load: LoadModule = importlib.import_module,
) -> Any:
    """Build diffusers' scheduler, its timesteps set.

    Args:
        algorithm: One of `sampling.ALGORITHMS`.
        config: Full configuration, as `sampling.settings` makes it.
        load: Finds the module of the scheduler's class.

    Returns:
        The scheduler.
    """
    module_name, class_name = _CLASSES[algorithm]
    module = load(f"diffusers.schedulers.scheduling_{module_name}")
    arguments = {k: v for k, v in config.items() if k not in (*RUN, "scheduler")}
    scheduler = getattr(module, class_name)(**arguments, **_FIXED.get(algorithm, {}))
    scheduler.set_timesteps(config["num_inference_steps"])
    return scheduler


@contextmanager
def drawn(module: Any, values: Iterator[Tensor]) -> Iterator[None]:
    """Let a module of diffusers take its random tensors from here instead of drawing them."""
    plain = getattr(module, "randn_tensor", None)
    module.randn_tensor = lambda *_, **__: next(values)
    try:
        yield
    finally:
        if plain is None:
            del module.randn_tensor
        else:
            module.randn_tensor = plain


def module_of(thing: Any) -> Any:
    """Return the module that a class of diffusers, or an object of one, is defined in."""
    owner = thing if isinstance(thing, type) else type(thing)
    return importlib.import_module(owner.__module__)


class DiffusersSampler:
    """One run of a diffusers scheduler, as `torch_sampling.Sampler`."""

    def __init__(self, algorithm: str, scheduler: Any, config: Mapping[str, Any]) -> None:
        begin = config["begin_index"]
        if begin and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        self.scheduler = scheduler
        self.timesteps = scheduler.timesteps[begin:]
        self.tables = _tables(algorithm, scheduler)
        self.arguments = {"eta": config["eta"]} if config.get("eta") else {}

    def scale_model_input(self, sample: Tensor, t: Tensor) -> Tensor:
        """Return what the model is given."""
        return self.scheduler.scale_model_input(sample, t)

    def step(self, model_output: Tensor, t: Tensor, sample: Tensor, noise: Tensor | None) -> Tensor:
        """Return the next sample."""
        own = iter(() if noise is None else (noise,))
        with drawn(module_of(self.scheduler), own):
            return self.scheduler.step(model_output, t, sample, **self.arguments).prev_sample


def _tables(algorithm: str, scheduler: Any) -> dict[str, Any]:
    """Return the tables of a scheduler that has its timesteps, by name of `sampling.TABLES`."""
    tables: dict[str, Any] = {
        "betas": scheduler.betas,
        "alphas_cumprod": scheduler.alphas_cumprod,
    }
    if algorithm not in SIGMA_FAMILY:
        final = getattr(scheduler, "final_alpha_cumprod", None)
        tables["final_alpha_cumprod"] = scheduler.one if final is None else final
        return tables
    tables["sigmas"] = scheduler.sigmas
    tables["init_noise_sigma"] = torch.as_tensor(
        scheduler.init_noise_sigma, dtype=scheduler.sigmas.dtype
    )
    if algorithm == "dpmpp_2m":  # as its step computes them
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[:-1])  # noqa: SLF001
        tables["lambdas"] = torch.log(alpha) - torch.log(sigma)
    return tables


@dataclass
class Maker:
    """Makes the schedulers of a component; whoever wants another arithmetic replaces `make`."""

    make: MakeScheduler = make_scheduler


def scheduler_component(
    algorithm: str, dtype: torch.dtype, device: str = "cpu", make: MakeScheduler = make_scheduler
) -> SchedulerComponent:
    """Return diffusers' scheduler of that name as a component; its `module` is a `Maker`."""
    maker = Maker(make)

    def begin(config: dict[str, Any]) -> DiffusersSampler:
        return DiffusersSampler(algorithm, maker.make(algorithm, config), config)

    return SchedulerComponent(begin, dtype, device, maker)


def dtype_of(arithmetic: str) -> torch.dtype:
    """Return the dtype of an arithmetic that diffusers' own schedulers can be judged in."""
    if arithmetic == "float64":
        message = (
            f"diffusers {diffusers.__version__} computes the tables of its schedulers in float32: "
            "float64 would judge those alone"
        )
        raise UnsupportedError(message)
    return DTYPES[arithmetic]


def _load_scheduler(
    algorithm: str, _variant: Variant, _weights: Weights, arithmetic: str, device: str
) -> SchedulerComponent:
    return scheduler_component(algorithm, dtype_of(arithmetic), device)


LOADERS: dict[str, Load] = {
    name: partial(_load_scheduler, name.partition("/")[2]) for name in SCHEDULERS
}
"""By component: loads it for the port `diffusers`."""
