"""Any `torch.nn.Module` as a port: probes and replacement through hooks."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from conformance import spec
from conformance.adapters.axes import MisfitError, Source, fitted
from conformance.adapters.callables import outputs_of
from conformance.adapters.hooks import INPUT_SUFFIX, Callback, first_tensor, observe, to_numpy
from conformance.adapters.rename import Place, Rename, Rules, Table, some, table_of
from conformance.errors import PortError, UnsupportedError
from conformance.port import Arrays, Component, Hello
from conformance.variants import parse_variant

if TYPE_CHECKING:
    from conformance.variants import Variant, Weights

__all__ = [
    "DTYPES",
    "INPUT_SUFFIX",
    "Callback",
    "Load",
    "Rename",
    "TorchComponent",
    "TorchPort",
    "assign_weights",
    "first_tensor",
    "observe",
    "to_numpy",
]

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


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
    """

    module: nn.Module
    call: Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]
    dtype: torch.dtype
    device: str = "cpu"
    keep: Collection[str] = ("timestep",)
    places: Mapping[str, Place] | None = None
    component: str = "network"

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

    @torch.no_grad()
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
            return torch.tensor(value).to(self.device, self.dtype)

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
        return arrays, {name: observed[name] for name in observed if name in set(probes)}


def _kind(value: Any) -> str:
    """Name a type, and those that a dict holds."""
    if not isinstance(value, Mapping):
        return type(value).__name__
    return f"a dict of {', '.join({type(v).__name__: 0 for v in value.values()}) or 'nothing'}"


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all that a module is given by its weights."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def assign_weights(
    module: nn.Module,
    weights: Mapping[str, np.ndarray],
    dtype: torch.dtype,
    device: str = "cpu",
    sources: Mapping[str, Source] | None = None,
) -> nn.Module:
    """Give a module its weights, strictly, one tensor at a time.

    Args:
        module: Network on the meta device (it may hold real tensors, which are replaced).
        weights: Canonical name to float32 array.
        dtype: Dtype of the parameters.
        device: Where they go.
        sources: Where each parameter has its values from; None where names are canonical.

    Returns:
        The module in eval mode, without gradients.

    Raises:
        PortError: Missing, unexpected or misshaped names; a tensor that is still without values.
    """
    wanted = shapes(module)
    if sources is None:
        sources = Table().sources(wanted, weights)
    state, misfits = {}, []
    for name, tensor in module.state_dict().items():
        if not sources[name].names:
            state[name] = tensor
            continue
        try:
            array = sources[name].draw(weights, wanted[name])
        except MisfitError as error:
            misfits.append(f"{name} {error}")
            continue
        state[name] = torch.from_numpy(array).to(device, dtype)
    if misfits:
        raise PortError(some(misfits, len(wanted), "weights do not fit"))
    module.load_state_dict(state, strict=True, assign=True)
    tensors = [*module.named_parameters(), *module.named_buffers()]
    empty = [name for name, tensor in tensors if tensor.device.type == "meta"]
    if empty:
        message = some(
            empty, len(tensors), "tensors are on the meta device and no weight is theirs"
        )
        raise PortError(f"{message}: build them with their values, outside torch.device('meta')")
    return module.to(device).eval().requires_grad_(requires_grad=False)


Build = Callable[["Variant"], nn.Module]
Call = Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]
Load = Callable[["Variant", "Weights", str, str], Component]


@dataclass(frozen=True)
class TorchPort:
    """A port made of modules; docs/adapters.md shows how.

    Attributes:
        name: The port's name.
        version: The port's version.
        builders: By network: a function that builds it for a variant, best on the meta device, and
            one that calls it.
        tokenizer: Makes the tokenizer, where the port has one.
        others: By component, what loads it, given variant, weights, arithmetic and device:
            schedulers and pipelines (`torch_sampling` helps with both).
        rename: By network, where its names are not the canonical ones: rows, or the name of a
            preset (`diffusers`, `compvis`), or both.
    """

    name: str
    version: str
    builders: Mapping[str, tuple[Build, Call]]
    tokenizer: Callable[[], Component] | None = None
    others: Mapping[str, Load] = field(default_factory=dict)
    rename: Mapping[str, Rules] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no network can be built from.

        Raises:
            PortError: A builder that is no pair of functions, a table of no network, or no table.
        """
        for component, pair in self.builders.items():
            if component not in spec.CHECKPOINT_FOLDERS:
                message = (
                    f"{self.name}: {component!r} is no network: choose from "
                    f"{', '.join(spec.CHECKPOINT_FOLDERS)}; all else goes into `others`"
                )
                raise PortError(message)
            if not (isinstance(pair, (tuple, list)) and list(map(callable, pair)) == [True, True]):
                message = (
                    f"{self.name}: {component} is {pair!r}, not a pair of functions: "
                    "(build, call), build(variant) -> module, call(module, tensors) -> dict"
                )
                raise PortError(message)
        for component, rows in self.rename.items():
            if component not in self.builders:
                message = f"{self.name}: rename has {component!r}, which is none of its networks"
                raise PortError(message)
            table_of(rows, component)

    def hello(self) -> Hello:
        """Say what is offered; CUDA is offered where torch sees it."""
        cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        devices = ("cpu", *(["cuda", *cuda] if cuda else []))
        own = [spec.TOKENIZER] if self.tokenizer else []
        components = (*own, *self.builders, *self.others)
        return Hello(
            self.name, self.version, components, tuple(DTYPES), devices, details=self._details()
        )

    def _details(self) -> dict[str, str]:
        """Say which probes a renamed network lacks; what cannot be built says so when loaded."""
        details = {}
        for component in self.rename:
            with suppress(Exception):
                missing = self.unmapped(component)
                kinds = dict.fromkeys(re.sub(r"\.\d+", ".*", name) for name in missing)
                total = len(spec.probe_names(component, "tiny"))
                details[f"unmapped probes of {component}"] = (
                    f"{len(missing)} of {total}: {', '.join(kinds)}" if missing else "none"
                )
        return details

    def unmapped(self, component: str, variant: str = "tiny") -> list[str]:
        """Return the probes that no module of a network stands for.

        Args:
            component: One of its networks.
            variant: The variant that is built, without weights, to see.
        """
        chosen = parse_variant(variant)
        module = self._built(component, chosen)
        names = spec.probe_names(component, chosen.size)
        places = self._places(component, module, names, chosen.weights(component))[1]
        known = places if places is not None else dict(module.named_modules())
        return [name for name in names if name.removesuffix(INPUT_SUFFIX) not in known]

    def _built(self, component: str, variant: Variant) -> nn.Module:
        module = self.builders[component][0](variant)
        if not isinstance(module, nn.Module):
            message = (
                f"build of {component} returned {type(module).__name__}, not a torch.nn.Module"
            )
            raise PortError(message)
        return module

    def _places(
        self, component: str, module: nn.Module, probes: Collection[str], weights: Collection[str]
    ) -> tuple[dict[str, Source], dict[str, Place] | None]:
        """Return where parameters have their values from and where canonical modules are."""
        rows = self.rename.get(component)
        if rows is None:
            return Table().sources(shapes(module), weights), None
        table = table_of(rows, component)
        modules = [path for path, _ in module.named_modules() if path]
        sources = table.sources(shapes(module), weights, modules)
        return sources, table.places(modules, sources, probes)

    def load(
        self, component: str, variant: Variant, weights: Weights, arithmetic: str, device: str
    ) -> Component:
        """Build the network and give it its weights; see `conformance.port.Port`."""
        if component == spec.TOKENIZER and self.tokenizer:
            return self.tokenizer()
        if arithmetic not in DTYPES:
            message = f"{self.name} has no arithmetic {arithmetic}"
            raise UnsupportedError(message)
        if arithmetic == "float32":
            torch.backends.cudnn.allow_tf32 = (
                False  # float32 means float32: cuDNN's default differs
            )
        if component in self.others:
            return self.others[component](variant, weights, arithmetic, device)
        call, dtype = self.builders[component][1], DTYPES[arithmetic]
        module = self._built(component, variant)
        probes = spec.probe_names(component, variant.size)
        sources, places = self._places(component, module, probes, weights)
        assign_weights(module, weights, dtype, device, sources)
        return TorchComponent(module, call, dtype, device, places=places, component=component)
