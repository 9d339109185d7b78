"""Schedulers and pipelines written with torch, behind the port contract."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from conformance.adapters.torch_module import Callback, to_numpy
from conformance.determinism import gradient_mode
from conformance.port import Arrays
from conformance.sampling import (
    SCHEDULER_STEPS,
    SPLICED_TERMS,
    TABLES,
    TIMESTEPS,
    read_config,
    step_name,
    term_and_step,
)

Observe = Callable[[str, Tensor], None]


class Sampler(Protocol):
    """One run of a scheduler.

    Attributes:
        timesteps: Where the model is asked, in this order.
        tables: Those of `sampling.TABLES` that the scheduler has, one axis each.
    """

    timesteps: Any
    tables: dict[str, Any]

    def scale_model_input(self, sample: Tensor, t: Any) -> Tensor:
        """Return what the model is given."""

    def step(self, model_output: Tensor, t: Any, sample: Tensor, noise: Tensor | None) -> Tensor:
        """Return the next sample."""


@dataclass
class SchedulerComponent:
    """A scheduler, open loop: what the model says at each step is data.

    Attributes:
        begin: Begins a run, given its configuration.
        dtype: What samples are cast to.
        device: Where they go.
        module: Whatever makes the schedulers, for those who want to change how they compute.
    """

    begin: Callable[[dict[str, Any]], Sampler]
    dtype: torch.dtype
    device: str = "cpu"
    module: Any = None

    def tensors(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Copy inputs to the device, in the component's dtype; the configuration is read."""
        return {
            name: read_config(array)
            if name == "config"
            else torch.tensor(array).to(self.device, self.dtype)
            for name, array in inputs.items()
        }

    def traced(
        self, tensors: Mapping[str, Any], names: Collection[str], callback: Callback
    ) -> dict[str, Tensor]:
        """Run once; call back for the tables and for `model_inputs` and `samples` of each step.

        Args:
            tensors: From `tensors`.
            names: What to call back for: tables, `samples#3` and the like.
            callback: Gets name and tensor.

        Returns:
            `timesteps`: int64, or float64 where some have fractions.
        """
        wanted = set(names)

        def see(name: str, tensor: Tensor) -> None:
            if name in wanted:
                callback(name, tensor)

        sampler = self.begin(tensors["config"])
        for name, table in sampler.tables.items():
            exact = table if isinstance(table, Tensor) else torch.from_numpy(np.array(table))
            see(name, exact.reshape(-1))
        sample, noise = tensors["sample"], tensors.get("noise")
        # A port that takes more steps than it should is told so by its timesteps.
        for i, t in enumerate(sampler.timesteps[: len(tensors["model_outputs"])]):
            model_input = sampler.scale_model_input(sample, t)
            see(step_name("model_inputs", i), model_input)
            own = None if noise is None else noise[i]
            sample = sampler.step(tensors["model_outputs"][i], t, sample, own)
            see(step_name("samples", i), sample)
        timesteps = torch.as_tensor(sampler.timesteps)
        if tensors["config"].get("use_karras_sigmas") and timesteps.is_floating_point():
            return {TIMESTEPS: timesteps.to(torch.float64)}  # whole by chance only
        return {TIMESTEPS: _whole(timesteps)}

    @gradient_mode()
    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        probes: Collection[str] = (),
        replace: Mapping[str, np.ndarray] | None = None,  # noqa: ARG002 - nothing is replaced here
    ) -> tuple[Arrays, Arrays]:
        """Evaluate once; see `conformance.port.Component`."""
        seen: dict[str, list[np.ndarray]] = {}

        def keep(name: str, tensor: Tensor) -> None:
            seen.setdefault(term_and_step(name)[0], []).append(to_numpy(tensor))

        tensors = self.tensors(inputs)
        steps = range(len(tensors["model_outputs"]))
        names = [*TABLES, *(step_name(term, i) for term in SCHEDULER_STEPS for i in steps)]
        outputs = {n: to_numpy(t) for n, t in self.traced(tensors, names, keep).items()}
        outputs |= {term: np.stack(seen[term]) for term in SCHEDULER_STEPS}
        return outputs, {name: seen[name][0] for name in probes if name in seen}


def _whole(timesteps: Tensor) -> Tensor:
    """Return timesteps as integers where all are whole, else in float64."""
    whole = timesteps.to(torch.int64)
    return whole if bool((whole == timesteps).all()) else timesteps.to(torch.float64)


@dataclass
class PipelineComponent:
    """A pipeline: prompts to pictures.

    Attributes:
        draw: Makes the pictures. It gets the inputs (`prompt` and `negative_prompt` lists of
            strings, `latents` and, where the scheduler adds noise, `noise` tensors,
            `guidance_scale` a float, `config` a dict) and calls back with name and tensor for
            everything that it computes, outputs included; names as in docs/contract.md. To be
            spliced it calls back at once, with the tensor itself: what is written into it then has
            to reach whatever reads it next.
        dtype: What tensors are cast to.
        device: Where they go.
        module: Holds the networks as children, for those who want to change how they compute.
    """

    draw: Callable[[Mapping[str, Any], Observe], None]
    dtype: torch.dtype
    device: str = "cpu"
    module: Any = None

    def tensors(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Read strings, numbers and configuration; copy tensors to the device."""
        read: dict[str, Any] = {}
        for name, array in inputs.items():
            if name == "config":
                read[name] = read_config(array)
            elif array.dtype.kind == "U":
                read[name] = array.tolist()
            elif array.ndim == 0:
                read[name] = array.item()
            elif array.dtype.kind == "u":
                read[name] = torch.tensor(array).to(self.device)
            else:
                read[name] = torch.tensor(array).to(self.device, self.dtype)
        return read

    def traced(
        self, tensors: Mapping[str, Any], names: Collection[str], callback: Callback
    ) -> dict[str, Tensor]:
        """Draw once, calling back for every term of `names`.

        Args:
            tensors: From `tensors`.
            names: Terms: `noise_pred#3` and the like.
            callback: Gets name and tensor.

        Returns:
            `image` and `image_uint8`.
        """
        wanted, outputs = set(names), {}

        def observe(name: str, tensor: Tensor) -> None:
            if name in {"image", "image_uint8"}:
                outputs[name] = tensor
            elif name in wanted:
                value = callback(name, tensor)
                if value is not None:
                    _overwrite(name, tensor, value)

        self.draw(tensors, observe)
        return outputs

    @gradient_mode()
    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        probes: Collection[str] = (),
        replace: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[Arrays, Arrays]:
        """Evaluate once; see `conformance.port.Component`."""
        outputs: Arrays = {}
        observed: Arrays = {}
        wanted = set(probes)
        values = replace or {}

        def observe(name: str, tensor: Tensor) -> None:
            term, _ = term_and_step(name)
            if term in {"latents", "image", "image_uint8"}:
                outputs[name] = to_numpy(tensor)
            elif name in wanted:
                observed[name] = to_numpy(tensor)
            if name in values:
                _overwrite(name, tensor, torch.tensor(values[name]))

        self.draw(self.tensors(inputs), observe)
        return outputs, observed


def _overwrite(name: str, tensor: Tensor, value: Tensor) -> None:
    """Give a term another value in place; what nothing reads is left as it is."""
    if term_and_step(name)[0] in SPLICED_TERMS and tensor.shape == value.shape:
        tensor.copy_(value)
