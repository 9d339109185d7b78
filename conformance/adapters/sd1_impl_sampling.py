"""The schedulers of `sd1_impl`, behind the port contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch import Tensor

from conformance.adapters.torch_module import DTYPES, Load
from conformance.adapters.torch_sampling import SchedulerComponent
from conformance.errors import UnsupportedError
from conformance.sampling import RUN, SCHEDULERS, SIGMA_FAMILY
from sd1_impl.schedulers import SCHEDULERS as ALGORITHMS

if TYPE_CHECKING:
    from conformance.variants import Variant, Weights


def make_scheduler(algorithm: str, config: Mapping[str, Any]) -> Any:
    """Build sd1_impl's scheduler.

    Args:
        algorithm: One of `sampling.ALGORITHMS`.
        config: Full configuration, as `sampling.settings` makes it.

    Returns:
        The scheduler.

    Raises:
        UnsupportedError: sd1_impl has no such setting, or not this value of it.
    """
    run = {"scheduler", *RUN} - {"eta"}  # eta is a setting of this DDIM, not of its step
    arguments = {name: value for name, value in config.items() if name not in run}
    settings, scheduler = cast("tuple[Any, Any]", ALGORITHMS[algorithm])
    unknown = sorted(set(arguments) - {field.name for field in fields(settings)})
    if unknown:
        raise UnsupportedError(f"sd1_impl's {algorithm} has no {', '.join(unknown)}")
    try:
        own = settings(**arguments)
    except ValueError as error:
        raise UnsupportedError(f"sd1_impl's {algorithm}: {error}") from error
    return scheduler(own)


class _Sampler:
    """One run, as `torch_sampling.Sampler`."""

    def __init__(self, algorithm: str, config: dict[str, Any]) -> None:
        self.scheduler = make_scheduler(algorithm, config)
        steps, begin = config["num_inference_steps"], config["begin_index"]
        self.run = self.scheduler.start(steps, begin_index=begin)
        self.timesteps = self.run.timesteps.copy()  # torch wants no negative strides
        self.tables = _tables(algorithm, self.scheduler, self.run)

    def scale_model_input(self, sample: Tensor, t: Any) -> Tensor:
        return self.scheduler.scale_model_input(sample, t, self.run)

    def step(self, model_output: Tensor, t: Any, sample: Tensor, noise: Tensor | None) -> Tensor:
        own = () if noise is None else (noise,)
        return self.scheduler.step(model_output, t, sample, self.run, *own)


def _tables(algorithm: str, scheduler: Any, run: Any) -> dict[str, Any]:
    """Return the tables of a scheduler and its run, by name of `sampling.TABLES`."""
    tables = {"betas": scheduler.betas, "alphas_cumprod": scheduler.alphas_cumprod}
    if algorithm not in SIGMA_FAMILY:
        return tables | {"final_alpha_cumprod": scheduler.final_alpha_cumprod}
    tables |= {"sigmas": run.sigmas, "init_noise_sigma": run.init_noise_sigma}
    if algorithm == "dpmpp_2m":  # which reads them off the sigmas as it goes
        tables["lambdas"] = -np.log(run.sigmas[:-1])
    return tables


def _load_scheduler(
    algorithm: str, _variant: Variant, _weights: Weights, arithmetic: str, device: str
) -> SchedulerComponent:
    return SchedulerComponent(partial(_Sampler, algorithm), DTYPES[arithmetic], device)


LOADERS: dict[str, Load] = {
    name: partial(_load_scheduler, name.partition("/")[2]) for name in SCHEDULERS
}
"""By component: loads it for the port `sd1_impl`."""
