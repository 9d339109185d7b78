"""Training written with torch, behind the port contract: a loss in, every gradient out.

docs/training.md shows how a port offers it in a few lines.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from conformance.adapters.torch_module import (
    DTYPES,
    Callback,
    Load,
    assign_weights,
    observe,
    to_numpy,
)
from conformance.errors import PortError
from conformance.judge import TIME_PROJ
from conformance.port import Arrays, Component
from conformance.sampling import read_config
from conformance.training import FOLDERS, GRADIENT, LOSS, TERMS, TRAINED

if TYPE_CHECKING:
    from conformance.variants import Variant, Weights

Build = Callable[["Variant"], nn.Module]
Observe = Callable[[str, Tensor], None]
Objective = Callable[[nn.ModuleDict, Mapping[str, Any], Observe], Tensor]


@dataclass
class TrainingComponent:
    """Networks and their loss.

    Attributes:
        module: The networks, by folder of the checkpoint; those that are not trained are frozen.
        trained: The folder of the one that is.
        objective: Computes the loss, shape (). It gets the networks and the inputs (tensors,
            `config` a dict) and calls back with name and tensor for the terms of docs/contract.md.
        dtype: What tensors are cast to.
        device: Where they go.
    """

    module: nn.ModuleDict
    trained: str
    objective: Objective
    dtype: torch.dtype
    device: str = "cpu"

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Return the parameters that get gradients, by name of the gradient."""
        own = self.module[self.trained].named_parameters()
        return {f"{GRADIENT}{name}": parameter for name, parameter in own}

    def tensors(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Copy inputs to the device, floating ones in the component's dtype; read `config`."""
        return {name: self._read(array) for name, array in inputs.items()}

    def _read(self, array: np.ndarray) -> Any:
        if array.dtype.kind == "U":
            return read_config(array)
        tensor = torch.tensor(array).to(self.device)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def traced(
        self, tensors: Mapping[str, Any], names: Collection[str], callback: Callback
    ) -> dict[str, Tensor]:
        """Compute loss and gradients once, calling back for terms and gradients.

        Args:
            tensors: From `tensors`.
            names: What to call back for.
            callback: Gets name and tensor; what it returns takes the place of `time_proj`.

        Returns:
            `loss`. Parameters that it does not depend on get gradients of zeros.
        """
        wanted = set(names)

        def see(name: str, tensor: Tensor) -> None:
            if name in wanted:
                callback(name, tensor.detach())

        def see_term(name: str, tensor: Tensor) -> None:
            self._require_term(name, tensor)
            see(name, tensor)

        parameters = self.parameters
        own = dict(self.module.items()).get("unet", self.module)
        with torch.enable_grad(), observe(own, wanted & {TIME_PROJ}, callback):
            loss = self._scalar(self.objective(self.module, tensors, see_term))
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            see(name, torch.zeros_like(parameter) if gradient is None else gradient)
        return {LOSS: loss.detach()}

    @property
    def component(self) -> str:
        """Return its name: there is one for each network that is trained."""
        return next(name for name, folder in TRAINED.items() if folder == self.trained)

    def _require_term(self, name: str, tensor: object) -> None:
        """Check what the loss observes.

        Raises:
            PortError: It is no term of this component, or no tensor.
        """
        terms = TERMS[self.component]
        if name not in terms:
            message = (
                f"the loss of {self.component} observed {name!r}, which is none of its terms: "
                f"choose from {', '.join(terms)}"
            )
            raise PortError(message)
        if not isinstance(tensor, Tensor):
            message = f"the loss of {self.component} observed {name} as {type(tensor).__name__}"
            raise PortError(f"{message}: a tensor is wanted")

    def _scalar(self, loss: object) -> Tensor:
        """Return a loss that gradients can be taken of.

        Raises:
            PortError: It is something else.
        """
        if not isinstance(loss, Tensor):
            found = "None" if loss is None else type(loss).__name__
        elif loss.shape != ():
            found = f"a tensor of shape {tuple(loss.shape)}"
        elif not loss.requires_grad:
            found = "a detached tensor"
        else:
            return loss
        message = (
            f"the loss of {self.component} returned {found}: a scalar tensor with a graph is wanted"
        )
        raise PortError(message)

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        probes: Collection[str] = (),
        replace: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[Arrays, Arrays]:
        """Evaluate once; see `conformance.port.Component`."""
        values = replace or {}
        pieces: dict[str, list[np.ndarray]] = {}

        def keep(name: str, tensor: Tensor) -> Tensor | None:
            own = pieces.setdefault(name, [])
            first = sum(map(len, own))  # of a batch that is computed in pieces
            own.append(to_numpy(tensor))
            if name not in values:
                return None
            rows = values[name][first : first + len(tensor)]
            return torch.tensor(rows).to(self.device, self.dtype)

        gradients = self.parameters
        outputs = self.traced(self.tensors(inputs), {*probes, *values, *gradients}, keep)
        answer = {name: to_numpy(tensor) for name, tensor in outputs.items()}
        observed = {
            name: own[0] if len(own) == 1 else np.concatenate(own) for name, own in pieces.items()
        }
        answer |= {name: observed[name] for name in gradients}
        return answer, {name: observed[name] for name in probes if name in observed}


def assembled(
    build: Mapping[str, Build],
    trained: str,
    objective: Objective,
    variant: Variant,
    weights: Weights,
    dtype: torch.dtype,
    device: str = "cpu",
) -> TrainingComponent:
    """Build networks, give them their weights and let one of them be trained.

    Args:
        build: By folder of the checkpoint, what builds a network, its parameters named as there.
        trained: The folder of the network that gets gradients.
        objective: Computes the loss; see `TrainingComponent`.
        variant: Architecture.
        weights: Names begin with the folder.
        dtype: Of parameters and inputs.
        device: Where they go.

    Returns:
        The component.

    Raises:
        PortError: The networks are not those of the component that the weights are of.
    """
    _require_folders(build, trained, weights)
    networks = nn.ModuleDict(
        {
            folder: assign_weights(make(variant), weights.part(folder), dtype, device)
            for folder, make in build.items()
        }
    )
    networks[trained].requires_grad_(requires_grad=True)
    return TrainingComponent(networks, trained, objective, dtype, device)


def _require_folders(build: Collection[str], trained: str, weights: Weights) -> None:
    """Check the folders that a port names against those of the weights."""
    own = {name.partition("/")[0] for name in weights}
    component = next((name for name, folders in FOLDERS.items() if own == {*folders}), None)
    if component is None:
        message = f"loader() is for {', '.join(FOLDERS)}: nothing else goes through it"
        raise PortError(message)
    folders = FOLDERS[component]
    if {*build} != own:
        has = f"{component} has the folder{'s' if len(folders) > 1 else ''} {', '.join(folders)}"
        message = f"{has}, not {', '.join(build) or 'none'}: mend the first argument of loader()"
        raise PortError(message)
    if trained != TRAINED[component]:
        message = f"{component} trains {TRAINED[component]}, not {trained!r}: mend loader()"
        raise PortError(message)


def loader(build: Mapping[str, Build], trained: str, objective: Objective) -> Load:
    """Return what loads a component of training, for `TorchPort.others`; see `assembled`."""

    def load(variant: Variant, weights: Weights, arithmetic: str, device: str) -> Component:
        return assembled(build, trained, objective, variant, weights, DTYPES[arithmetic], device)

    return load
