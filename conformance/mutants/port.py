"""`sd1_impl` with one wrong choice, as a port like any other."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from conformance.adapters import sd1_impl
from conformance.adapters.torch_module import TorchPort
from conformance.execution import SDPA
from conformance.mutants.mutant import Mutant
from conformance.port import Arrays, Component, Hello

if TYPE_CHECKING:
    from conformance.variants import Variant, Weights


@dataclass
class Spoiled:
    """A loaded component that is wrong whenever it runs."""

    component: Any
    mutant: Mutant

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        probes: Collection[str] = (),
        replace: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[Arrays, Arrays]:
        """Evaluate once; see `conformance.port.Component`."""
        with self.mutant.living():
            answer: tuple[Arrays, Arrays] = self.component.run(inputs, probes, replace)
            return answer

    def traced(self, *arguments: Any) -> Any:
        """Call it on tensors, which mode `memory` counts."""
        with self.mutant.living():
            return self.component.traced(*arguments)

    def __getattr__(self, name: str) -> Any:
        """Return what the component has beside: its module, how it reads inputs."""
        if name.startswith("_") or name == "component":  # not there yet, where it is copied
            raise AttributeError(name)
        return getattr(self.component, name)


class MutantPort:
    """A mutant behind the port contract."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self.port = (mutant.port or sd1_impl.port)()

    def hello(self) -> Hello:
        """Say what the port says that is spoiled, under another name."""
        return replace(self.port.hello(), name=f"sd1_impl with {self.mutant.id}")

    def load(
        self,
        component: str,
        variant: Variant,
        weights: Weights,
        arithmetic: str,
        device: str,
        backend: str = SDPA,
    ) -> Component:
        """Build sd1_impl's component and spoil it; see `conformance.port.Port`."""
        with self.mutant.living():
            loaded = self.port.load(component, variant, weights, arithmetic, device, backend)
        self.mutant.spoil(getattr(loaded, "module", None))
        return Spoiled(loaded, self.mutant)

    def torch_port(self) -> TorchPort:
        """Return the port that is spoiled, under its own name, so that what it holds is judged."""
        spoiled = copy(self.port)
        object.__setattr__(spoiled, "load", self.load)  # a port is frozen
        return spoiled
