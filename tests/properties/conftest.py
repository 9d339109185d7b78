"""Both implementations with the same weights, and the unit in which their differences are judged.

Every property is one of Stable Diffusion v1 as the contract describes it: it has to hold for the
oracle too, or else it is no property of SD v1 but a habit of `sd1_impl`.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from conformance.adapters.torch_module import DTYPES, assign_weights
from conformance.case import find_case
from conformance.golden_files import load_golden
from conformance.tolerance import LIMIT, ratio
from conformance.variants import parse_variant

NETWORKS = {"sd1_impl": "sd1_impl_networks", "oracle": "diffusers_networks"}
"""Modules of `conformance.adapters`, each of which builds the networks."""
ARITHMETICS = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Network:
    """A network of variant `tiny`, called with the names of the border.

    Attributes:
        component: As in a case's id.
        module: In eval mode, in its dtype, on the CPU.
        call: Turns tensors by name into outputs by name.
    """

    component: str
    module: nn.Module
    call: Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]

    def __call__(self, **tensors: Tensor | float) -> dict[str, Tensor]:
        """Evaluate without gradients; fail where an input has been changed."""
        before = {n: t.clone() for n, t in tensors.items() if isinstance(t, Tensor)}
        with torch.no_grad():
            outputs = self.call(self.module, tensors)
        for name, tensor in before.items():
            assert torch.equal(tensors[name], tensor), f"{name} was changed in place"
        return outputs

    @contextmanager
    def laid_out(self, memory: torch.memory_format) -> Iterator[None]:
        """Give the weights a memory format for a while."""
        self.module.to(memory_format=memory)
        try:
            yield
        finally:
            self.module.to(memory_format=torch.contiguous_format)

    @contextmanager
    def hooked(self, hooks: dict[str, Callable]) -> Iterator[None]:
        """Call ``hook(module, inputs, output)`` after the modules of these names for a while."""
        handles = [self.layer(path).register_forward_hook(hook) for path, hook in hooks.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def layer(self, path: str) -> nn.Module:
        """Return a module by its canonical name."""
        return self.module.get_submodule(path)

    def assert_within_noise(self, got: Tensor, wanted: Tensor, place: str) -> None:
        """Judge two honest evaluations of the same by the noise of `tiny`'s base.

        Args:
            got: One of them.
            wanted: The other, of the same shape and dtype.
            place: The output or the probe whose noise is the unit.
        """
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
        arithmetic = ARITHMETICS[got.dtype]
        distance = float((got.double() - wanted.double()).norm())
        found = ratio(
            distance / float(wanted.double().norm()) if distance else 0.0,
            unit(f"{self.component}/tiny/base", arithmetic, place),
            arithmetic,
        )
        assert found <= LIMIT, f"{place}: {found:.2f} times the noise, in {arithmetic}"


@cache
def unit(case: str, arithmetic: str, place: str) -> float:
    """Return the noise of a golden at an output or a probe: relative, L2."""
    golden = load_golden(find_case(case))
    outputs = golden.output_noise[arithmetic]
    if place in outputs:
        return float(outputs[place][0])
    return float(golden.noise[arithmetic][golden.probes.index(place)])


@cache
def built(implementation: str, component: str, dtype: torch.dtype) -> Network:
    """Build a network once for all tests; they leave it as it was."""
    adapter = importlib.import_module(f"conformance.adapters.{NETWORKS[implementation]}")
    build, call = adapter.NETWORKS[component]
    variant = parse_variant("tiny")
    module = assign_weights(build(variant), variant.weights(component), dtype)
    return Network(component, module, call)


@pytest.fixture(scope="session", params=NETWORKS)
def network(request) -> Callable[[str, torch.dtype], Network]:
    """Return a network of either implementation, by component and dtype."""
    if request.param == "oracle":
        pytest.importorskip("diffusers")
    return lambda component, dtype=torch.float32: built(request.param, component, dtype)


@pytest.fixture(scope="session")
def ours() -> Callable[[str, torch.dtype], Network]:
    """Return a network of `sd1_impl`, by component and dtype."""
    return lambda component, dtype=torch.float32: built("sd1_impl", component, dtype)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors gain nothing from a second thread, which here is another worker's core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
