"""A loaded `torch.nn.Module` behind the port contract."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conformance.adapters.axes import fitted
from conformance.adapters.callables import outputs_of
from conformance.adapters.hooks import INPUT_SUFFIX, Callback, observe, to_numpy
from conformance.adapters.rename import Place
from conformance.determinism import gradient_mode
from conformance.errors import PortError
from conformance.port import Arrays


@dataclass
class TorchComponent:
    """A loaded module behind the port contract.

    Attributes:
        module: The network, in eval mode, in its dtype, on its device.
        call: Turns input tensors into named output tensors.
        dtype: Floating inputs are cast to it.
        device: Where inputs go.
        keep: Inputs that keep their own dtype (`timestep`); float64 runs widen them.
        places: Where it has the canonical modules; None where it names them so.
        component: What it is, for messages.
        own_dtypes: Supplied probes take the dtype of what they replace, where dtypes are mixed.
    """

    module: nn.Module
    call: Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]
    dtype: torch.dtype
    device: str = "cpu"
    keep: Collection[str] = ("timestep",)
    places: Mapping[str, Place] | None = None
    component: str = "network"
    own_dtypes: bool = False

    def tensors(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Copy inputs to the device, floating ones in the component's dtype."""
        result = {}
        for name, array in inputs.items():
            tensor = torch.tensor(array)
            if tensor.is_floating_point() and (
                name not in self.keep or self.dtype is torch.float64
            ):
                tensor = tensor.to(self.dtype)
            result[name] = tensor.to(self.device)
        return result

    def traced(
        self, tensors: dict[str, Tensor], names: Collection[str], callback: Callback
    ) -> dict[str, Tensor]:
        """Call the network once, calling back for probes.

        Args:
            tensors: From `tensors`.
            names: Probes.
            callback: Gets name and tensor; see `observe`.

        Returns:
            Output tensors by name.
        """
        with observe(self.module, names, callback, self.places):
            return self.call(self.module, tensors)

    @gradient_mode()
    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        probes: Collection[str] = (),
        replace: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[Arrays, Arrays]:
        """Evaluate once; see `conformance.port.Component`."""
        replace = replace or {}
        observed: Arrays = {}

        def callback(name: str, tensor: Tensor) -> Tensor | None:
            if name in observed:
                message = f"probe {name} fired more than once in one run"
                raise PortError(message)
            place = (self.places or {}).get(name.removesuffix(INPUT_SUFFIX))
            turn = place.turn if place else None
            own = to_numpy(tensor)
            observed[name] = turn.to_canonical(own) if turn else own
            value = replace.get(name)
            if value is None:
                return None
            value = turn.to_own(value, own.shape) if turn else fitted(value, own.shape)
            dtype = tensor.dtype if self.own_dtypes else self.dtype
            return _view(value).to(self.device, dtype)

        wanted = dict.fromkeys([*probes, *replace])
        outputs = self.traced(self.tensors(inputs), wanted, callback)
        if not (
            isinstance(outputs, Mapping) and all(isinstance(t, Tensor) for t in outputs.values())
        ):
            message = (
                f"the call of {self.component} returned {_kind(outputs)}, not a dict of tensors: "
                f"write {outputs_of(self.component)}"
            )
            raise PortError(message)
        arrays = {name: to_numpy(tensor) for name, tensor in outputs.items()}
        asked = set(probes)
        return arrays, {name: value for name, value in observed.items() if name in asked}


def _view(array: np.ndarray) -> Tensor:
    """Return a tensor to read from: on an array's own memory, where torch takes that."""
    fits = array.flags.writeable and array.flags.c_contiguous
    return torch.from_numpy(array) if fits else torch.tensor(array)


def _kind(value: Any) -> str:
    """Name a type, and those that a dict holds."""
    if not isinstance(value, Mapping):
        return type(value).__name__
    return f"a dict of {', '.join({type(v).__name__: 0 for v in value.values()}) or 'nothing'}"
