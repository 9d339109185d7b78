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
from conformance.adapters.arithmetics import built_in, computing_in
from conformance.adapters.axes import MisfitError, Source
from conformance.adapters.backends import (
    Compiled,
    Switch,
    backends_here,
    evaluating_by,
    require_compilable,
)
from conformance.adapters.callables import LOAD
from conformance.adapters.hooks import INPUT_SUFFIX, Callback, first_tensor, observe, to_numpy
from conformance.adapters.rename import Place, Rename, Rules, Table, some, table_of
from conformance.adapters.torch_component import TorchComponent
from conformance.determinism import float32_is_float32
from conformance.errors import PortError, UnsupportedError
from conformance.execution import COMPILE, PACKED, SAVINGS, SDPA
from conformance.offer import require_function
from conformance.port import Component, Hello
from conformance.tolerance import EVERY_ARITHMETIC
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
        attention: Lets the attentions of a network be `plain` or `sliced`, and says how many they
            are; None where torch's kernel is to be replaced from outside.
        saving: Lets a network, or a dict of them, save memory in one of the ways of
            `execution.SAVINGS`, and says in how many places it does; None where there is no way.
        packing: Lays a network's weights out for the kernels of a CPU, and says of how many layers;
            raises `UnsupportedError` where it cannot. None where there is no such way.
    """

    name: str
    version: str
    builders: Mapping[str, tuple[Build, Call]]
    tokenizer: Callable[[], Component] | None = None
    others: Mapping[str, Load] = field(default_factory=dict)
    rename: Mapping[str, Rules] = field(default_factory=dict)
    attention: Switch | None = None
    saving: Switch | None = None
    packing: Callable[[nn.Module], int] | None = None

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
        float32_is_float32()  # before anything is recorded of this process

    def hello(self) -> Hello:
        """Say what is offered; CUDA is offered where torch sees it."""
        cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        devices = ("cpu", *(["cuda", *cuda] if cuda else []))
        own = [spec.TOKENIZER] if self.tokenizer else []
        components = (*own, *self.builders, *self.others)
        return Hello(
            self.name,
            self.version,
            components,
            EVERY_ARITHMETIC,
            devices,
            details=self._details(),
            backends=tuple(dict.fromkeys([*backends_here(), *([PACKED] if self.packing else [])])),
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
        build = self.builders[component][0]
        require_function(build, f"build of {component}", "variant")
        module = build(variant)
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
        self,
        component: str,
        variant: Variant,
        weights: Weights,
        arithmetic: str,
        device: str,
        backend: str = SDPA,
    ) -> Component:
        """Build the network and give it its weights; see `conformance.port.Port`."""
        if component == spec.TOKENIZER and self.tokenizer:
            return self.tokenizer()
        if arithmetic not in EVERY_ARITHMETIC:
            message = f"{self.name} has no arithmetic {arithmetic}"
            raise UnsupportedError(message)
        dtype = built_in(arithmetic)
        loaded = self._loaded(component, variant, weights, dtype, device)
        if (arithmetic, backend) == (dtype, SDPA):
            return loaded
        require_compilable(arithmetic, device, backend)
        if backend in SAVINGS:
            if self.saving is None or not self.saving(loaded.module, backend):
                message = f"{self.name} has no way to compute {component} {backend}"
                if self.saving is None:
                    message += ": a switch gives it one, TorchPort(..., saving=...), docs/memory.md"
                raise UnsupportedError(message)
            return computing_in(arithmetic, loaded)
        if backend == PACKED:
            if self.packing is None or arithmetic != dtype or not hasattr(loaded, "module"):
                message = f"{self.name} has no packed weights of {component} in {arithmetic}"
                raise UnsupportedError(message)
            self.packing(loaded.module)
            return loaded
        changed = computing_in(arithmetic, evaluating_by(backend, loaded, self.attention))
        return Compiled(changed) if backend == COMPILE else changed

    def _loaded(
        self, component: str, variant: Variant, weights: Weights, arithmetic: str, device: str
    ) -> Any:
        """Load a component that computes in one dtype, by torch's own backend."""
        if component in self.others:
            load = self.others[component]
            require_function(load, f"load of {component}", LOAD)
            return load(variant, weights, arithmetic, device)
        call, dtype = self.builders[component][1], DTYPES[arithmetic]
        require_function(call, f"call of {component}", "module, tensors")
        module = self._built(component, variant)
        probes = spec.probe_names(component, variant.size)
        sources, places = self._places(component, module, probes, weights)
        assign_weights(module, weights, dtype, device, sources)
        return TorchComponent(module, call, dtype, device, places=places, component=component)
