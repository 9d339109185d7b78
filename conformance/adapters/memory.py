"""How much a port written with torch holds: predicted on shapes alone, or counted as it runs."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException

from conformance.adapters.imagined import Hollow, Imagined, hollow
from conformance.adapters.storages import StorageTracker
from conformance.adapters.torch_module import TorchPort
from conformance.case import Case
from conformance.determinism import gradient_mode
from conformance.errors import UnsupportedError
from conformance.execution import SDPA, Execution
from conformance.memory.budgets import block_order
from conformance.memory.footprint import Footprint
from conformance.port import Port
from conformance.raised import where_raised
from conformance.variants import Weights

_CPU = "cpu"


class Predictor:
    """Predicts what a port holds; keeps the network that was loaded last."""

    def __init__(self, port: Port) -> None:
        """Take the port, or what says by `torch_port()` which one it stands for.

        Raises:
            UnsupportedError: It is none that is written with torch and runs in this process.
        """
        self.port = getattr(port, "torch_port", lambda: port)()
        if not isinstance(self.port, TorchPort):
            kind = type(self.port).__name__
            message = f"the port ({kind}) is no TorchPort: what it holds cannot be seen from here"
            raise UnsupportedError(message)
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
        try:
            with self._imagined:
                return footprint(component, case, case.inputs())
        except DataDependentOutputException as error:
            message = (
                f"it looks at a value, as float(x), x.item() or `if x` do ({where_raised(error)}): "
                "a prediction has shapes and no values of what depends on weights"
            )
            raise UnsupportedError(message) from error

    def _load(self, case: Case, execution: Execution) -> Any:
        key = (case.component, case.variant, execution.dtype, execution.backend)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None
            weights = hollow(case.weights())
            with Hollow():
                component = _load(self.port, case, weights, execution, _CPU)
            require_traceable(component)
            self._imagined.fill(component.module)
            self._loaded = key, component
        return self._loaded[1]


def require_traceable(component: Any) -> None:
    """Check that a component can be called on torch's tensors.

    Raises:
        UnsupportedError: It is no module behind the port contract.
    """
    if not all(hasattr(component, part) for part in ("module", "tensors", "traced")):
        message = f"a {type(component).__name__} is no torch module: what it holds cannot be seen"
        raise UnsupportedError(message)


def loaded(port: Port, case: Case, execution: Execution, device: str) -> Any:
    """Load a component with its weights, to be run as it is.

    Raises:
        UnsupportedError: The port declines, or what it loads cannot be looked into.
    """
    component = _load(port, case, case.weights(), execution, device)
    require_traceable(component)
    return component


def _load(port: Port, case: Case, weights: Weights, execution: Execution, device: str) -> Any:
    """Let a port load; only other backends than its own are named to it."""
    load: Any = port.load
    options = {} if execution.backend == SDPA else {"backend": execution.backend}
    return load(case.component, case.variant, weights, execution.dtype, device, **options)


def footprint_of(port: Port, case: Case, execution: Execution) -> Footprint:
    """Predict what a port holds; `Predictor` does the same for many cases."""
    return Predictor(port).predict(case, execution)


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
    blocks = block_order(case)
    grad = nullcontext() if case.is_training else gradient_mode()
    with _no_collection(), grad, tracker.watching(network, names, blocks), tracker:
        component.traced(tensors, (), _look_away)
    found = tracker.footprint()
    own = {name: found.blocks[name] for name in blocks if name in found.blocks}
    return replace(found, blocks=own)


def allocated(component: Any, case: Case, inputs: Mapping[str, np.ndarray], device: str) -> int:
    """Call a component once on a CUDA device and ask the allocator for its peak.

    Returns:
        The most bytes that tensors and kernels held at once beside what was there before: inputs
        count, weights do not.
    """
    tensors = component.tensors(inputs)
    own = {t.untyped_storage() for t in tensors.values() if isinstance(t, Tensor) and t.is_cuda}
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device) - sum(storage.nbytes() for storage in own)
    torch.cuda.reset_peak_memory_stats(device)
    with nullcontext() if case.is_training else gradient_mode():
        component.traced(tensors, (), _look_away)
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device)) - before


def device_class(device: str) -> str:
    """Return the name under which allowances of a CUDA device are recorded."""
    return str(torch.cuda.get_device_name(device))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from looking for cycles: when it would do so is no property of a port.

    A tensor in a cycle counts as held.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _look_away(_name: str, _tensor: Tensor) -> None:
    """Observe nothing."""


def _names(component: Any, case: Case) -> tuple[Any, dict[str, str]]:
    """Return the network that is watched, and its modules' canonical names by their paths."""
    network = component.module
    if case.is_training:
        network = network[component.trained]
    places = getattr(component, "places", None)
    if places is None:
        return network, {path: path for path, _ in network.named_modules()}
    return network, {place.path: canonical for canonical, place in places.items()}
