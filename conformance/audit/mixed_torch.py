"""Layers of one network in different arithmetics, for torch modules in this process.

A layer is a module that owns parameters. It computes in its own arithmetic: its weights are those
of the checkpoint in that arithmetic, what enters it is cast to it, what leaves it is cast back.
Work between layers (sums, activations, attention) belongs to the module around them: that computes
in the arithmetic of its layers where they all have the same, and in the base arithmetic otherwise.
So a block all of whose layers are kept in float32 is kept so as a whole, residual sums too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from conformance.adapters.arithmetics import FRACTION_BITS
from conformance.adapters.hooks import Callback
from conformance.adapters.torch_component import TorchComponent
from conformance.audit.regions_torch import STORED, Regions, cast
from conformance.case import Case
from conformance.errors import UsageError
from conformance.port import Port


@dataclass
class MixedComponent(TorchComponent):
    """A component some of whose layers compute in another arithmetic.

    Attributes:
        leaving: Dtype of its outputs.
        regions: Rounds operands where that is asked for; None where no layer does.
    """

    leaving: torch.dtype = torch.float32
    regions: Regions | None = None

    def traced(
        self, tensors: dict[str, Tensor], names: Collection[str], callback: Callback
    ) -> dict[str, Tensor]:
        """Call the network once, calling back for probes; see `TorchComponent`."""
        with self.regions or nullcontext():
            outputs = super().traced(tensors, names, callback)
        whole: dict[str, Tensor] = cast(outputs, self.leaving)
        return whole


@dataclass
class Mixed:
    """A network whose layers can be given their arithmetics, over and over.

    Attributes:
        component: The port's own, in float32.
        base: The arithmetic of all that is not said otherwise.
        layers: By canonical name, the path of the module.
    """

    component: TorchComponent
    base: str
    layers: dict[str, str] = field(default_factory=dict)
    _weights: dict[str, list[tuple[nn.Module, str, dict[torch.dtype, Tensor]]]] = field(
        default_factory=dict
    )

    @classmethod
    def of(cls, port: Port, case: Case, base: str, device: str) -> Mixed:
        """Load a case's network in float32, from which every other arithmetic is made.

        Raises:
            UsageError: The port is no torch module in this process, or the base arithmetic
                is none of a single layer.
        """
        if base not in STORED:
            message = f"{base} is a mixture already: layers are mixed over {', '.join(STORED)}"
            raise UsageError(message)
        component = port.load(case.component, case.variant, case.weights(), "float32", device)
        if not isinstance(component, TorchComponent):
            message = (
                "layers can be computed in another arithmetic only of torch modules in this "
                "process: sd1_impl, diffusers, any TorchPort"
            )
            raise UsageError(message)
        if device.partition(":")[0] != "cpu" and base in FRACTION_BITS:
            message = f"{base} on {device} is torch's own switch, which holds for all layers"
            raise UsageError(message)
        mixed = cls(component, base)
        canonical = {place.path: name for name, place in (component.places or {}).items()}
        for path, module in component.module.named_modules():
            own = dict(module.named_parameters(recurse=False))
            if own:
                mixed.layers[canonical.get(path, path)] = path
            own |= {n: b for n, b in module.named_buffers(recurse=False) if b.is_floating_point()}
            mixed._weights[path] = [(module, n, {torch.float32: t.data}) for n, t in own.items()]
        return mixed

    @contextmanager
    def computing(self, arithmetics: Mapping[str, str]) -> Iterator[MixedComponent]:
        """Give the layers their arithmetics while the block runs.

        Args:
            arithmetics: By canonical name of a layer; the base for all others.

        Yields:
            The component that computes so; its outputs are kept in the base's dtype.
        """
        own = self.component
        chosen = {path: arithmetics.get(name, self.base) for name, path in self.layers.items()}
        root = _common(chosen, "") or self.base
        regions = Regions(root)
        self._weigh("", root)
        wrapped: list[nn.Module] = []
        for path, module in own.module.named_modules():
            inner = _common(chosen, path)
            called = type(module).forward is not nn.Module.forward
            if path and inner is not None and called:
                weigh = partial(self._weigh, path)
                module.forward = regions.bordered(module.forward, inner, weigh)
                wrapped.append(module)
        try:
            yield MixedComponent(
                own.module,
                own.call,
                STORED[root],
                own.device,
                own.keep,
                own.places,
                own.component,
                own_dtypes=True,
                leaving=STORED[self.base],
                regions=regions if set(chosen.values()) & set(FRACTION_BITS) else None,
            )
        finally:
            for module in wrapped:
                del module.forward

    def _weigh(self, path: str, arithmetic: str) -> None:
        """Give a module, and all in it, weights in the dtype of an arithmetic."""
        dtype = STORED[arithmetic]
        for owner in self._inside(path):
            for module, name, kept in self._weights[owner]:
                if dtype not in kept:
                    kept[dtype] = kept[torch.float32].to(dtype)
                getattr(module, name).data = kept[dtype]

    def _inside(self, path: str) -> list[str]:
        """Return the paths of a module and of all in it."""
        return [p for p in self._weights if not path or p == path or p.startswith(f"{path}.")]


def _common(chosen: Mapping[str, str], path: str) -> str | None:
    """Return the arithmetic that all layers in a module have; None for several, or no layer."""
    inside = {a for p, a in chosen.items() if not path or p == path or p.startswith(f"{path}.")}
    return inside.pop() if len(inside) == 1 else None
