"""How much a port written with torch holds: predicted on shapes alone, or counted as it runs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from conformance import spec
from conformance.adapters.imagined import Hollow, Imagined, hollow
from conformance.adapters.storages import StorageTracker
from conformance.case import Case
from conformance.determinism import gradient_mode
from conformance.errors import UnsupportedError
from conformance.execution import SDPA, Execution
from conformance.memory.footprint import Footprint
from conformance.port import Port
from conformance.training import TRAINED

_CPU = "cpu"


class Predictor:
    """Predicts what a port holds; keeps the network that was loaded last."""

    def __init__(self, port: Port, name: str) -> None:
        """Take the port, and its name for messages."""
        self.port = port
        self.name = name
        self._imagined = Imagined()
        self._loaded: tuple[tuple[Any, ...], Any] | None = None

    def predict(self, case: Case, execution: Execution) -> Footprint:
        """Predict what the first call of a component holds.

        Args:
            case: Gives component, variant and inputs.
            execution: Gives arithmetic and backend. Whatever its device, the CPU's operations are
                looked at.

        Returns:
            The footprint: no weight is read, nothing large is allocated.

        Raises:
            UnsupportedError: The port declines, or what it loads cannot be looked into.
        """
        component = self._load(case, execution)
        with self._imagined:
            return footprint(component, case, case.inputs())

    def _load(self, case: Case, execution: Execution) -> Any:
        key = (case.component, case.variant, execution.dtype, execution.backend)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None
            weights = hollow(case.weights())
            load: Any = self.port.load
            own = (case.component, case.variant, weights, execution.dtype, _CPU)
            with Hollow():
                if execution.backend == SDPA:
                    component = load(*own)
                else:
                    component = load(*own, backend=execution.backend)
            require_traceable(component, self.name)
            self._imagined.fill(component.module)
            self._loaded = key, component
        return self._loaded[1]


def require_traceable(component: Any, name: str) -> None:
    """Check that a component can be called on torch's tensors.

    Raises:
        UnsupportedError: It is no module behind the port contract.
    """
    if not all(hasattr(component, part) for part in ("module", "tensors", "traced")):
        message = (
            f"{name} is no TorchPort: the memory of a {type(component).__name__} cannot be seen "
            "from here"
        )
        raise UnsupportedError(message)


def footprint(component: Any, case: Case, inputs: Mapping[str, np.ndarray]) -> Footprint:
    """Call a component once and count what it holds.

    Args:
        component: A `TorchComponent` or `TrainingComponent`.
        case: The case.
        inputs: Its inputs, which count from the beginning.

    Returns:
        The footprint.
    """
    module = component.module
    tracker = StorageTracker([*module.parameters(), *module.buffers()])
    tensors = component.tensors(inputs)
    for tensor in tensors.values():
        if isinstance(tensor, Tensor):
            tracker.count(tensor)
    network, names = _names(component, case)
    blocks = spec.block_names(_network_of(case))
    grad = nullcontext() if case.is_training else gradient_mode()
    with grad, tracker.watching(network, names, blocks), tracker:
        component.traced(tensors, (), _look_away)
    found = tracker.footprint()
    order = spec.execution_order(_network_of(case))
    ordered = sorted(found.blocks, key=lambda name: order.get(name, len(order)))
    return replace(found, blocks={name: found.blocks[name] for name in ordered})


def _look_away(_name: str, _tensor: Tensor) -> None:
    """Observe nothing."""


def _network_of(case: Case) -> str:
    """Return the network whose blocks are named: of a training the one that is trained."""
    return TRAINED.get(case.component, case.component)


def _names(component: Any, case: Case) -> tuple[Any, dict[str, str]]:
    """Return the network that is watched, and its modules' canonical names by their paths."""
    network = component.module
    if case.is_training:
        network = network[component.trained]
    places = getattr(component, "places", None)
    if places is None:
        return network, {path: path for path, _ in network.named_modules()}
    return network, {place.path: canonical for canonical, place in places.items()}
