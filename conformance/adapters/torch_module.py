"""Any `torch.nn.Module` as a port: probes and replacement through hooks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from conformance.errors import PortError, UnsupportedError
from conformance.port import Arrays, Component, Hello
from conformance.spec import TOKENIZER

if TYPE_CHECKING:
    from conformance.variants import Variant, Weights

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

INPUT_SUFFIX = ".input"

Callback = Callable[[str, Tensor], Tensor | None]


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Copy a tensor to an array; bfloat16 is widened to float32, exactly."""
    tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.float()
    return tensor.to("cpu", copy=True).contiguous().numpy()


def first_tensor(value: Any) -> Tensor | None:
    """Return the tensor that a module hands on: itself, or the first of a tuple or output class."""
    while not isinstance(value, Tensor):
        if isinstance(value, Mapping):
            value = next(iter(value.values()), None)
        elif isinstance(value, (tuple, list)) and value:
            value = value[0]
        else:
            return None
    return value


@contextmanager
def observe(
    module: nn.Module, names: Collection[str], callback: Callback
) -> Iterator[Counter[str]]:
    """Call back for every probe that fires inside the block.

    Args:
        module: The network.
        names: Canonical probe names: a module path, or a path with `.input` for what enters it.
            Names that the module does not have are left out.
        callback: Gets name and tensor (not a copy); a returned tensor takes its place.

    Yields:
        How often each probe fired.
    """
    hooks = _Hooks(callback, _storages(module))
    modules = dict(module.named_modules())
    try:
        for name in names:
            path = name.removesuffix(INPUT_SUFFIX)
            if path in modules:
                hooks.attach(modules[path], name)
        yield hooks.fired
    finally:
        for handle in hooks.handles:
            handle.remove()


def _storages(module: nn.Module) -> frozenset[int]:
    """Return where the weights lie: a module may hand out a view of them, which is not written."""
    tensors = [*module.parameters(), *module.buffers()]
    return frozenset(t.untyped_storage().data_ptr() for t in tensors if t.device.type != "meta")


class _Hooks:
    """The hooks of one observation."""

    def __init__(self, callback: Callback, weights: frozenset[int]) -> None:
        self.callback = callback
        self.weights = weights
        self.fired: Counter[str] = Counter()
        self.handles: list[RemovableHandle] = []

    def attach(self, module: nn.Module, name: str) -> None:
        """Watch what leaves a module, or what enters it where the name ends in `.input`."""
        if name.endswith(INPUT_SUFFIX):
            handle = module.register_forward_pre_hook(partial(self._before, name))
        else:
            handle = module.register_forward_hook(partial(self._after, name))
        self.handles.append(handle)

    def _before(self, name: str, _module: nn.Module, args: tuple[Any, ...]) -> Any:
        if not args or not isinstance(args[0], Tensor):
            return None
        self.fired[name] += 1
        replacement = self.callback(name, args[0])
        if replacement is None:
            return None
        return (self._put(args[0], args[0], replacement), *args[1:])

    def _after(self, name: str, _module: nn.Module, _args: Any, output: Any) -> Any:
        tensor = first_tensor(output)
        if tensor is None:
            return None
        self.fired[name] += 1
        replacement = self.callback(name, tensor)
        return None if replacement is None else self._put(output, tensor, replacement)

    def _put(self, output: Any, tensor: Tensor, replacement: Tensor) -> Any:
        """Write a value into the module's own tensor, so that storage, strides and aliases stay.

        Where that would lose bits, or cannot be done, the value is handed on in its place.
        """
        if tensor.dtype == replacement.dtype and tensor.shape == replacement.shape:
            own = tensor.untyped_storage().data_ptr() not in self.weights
            spread = any(
                s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True)
            )
            if own and not spread:
                tensor.copy_(replacement)
                return output
        return self._handed_on(output, replacement)

    def _handed_on(self, output: Any, replacement: Tensor) -> Any:
        """Return a module's output with a value in the place of its first tensor."""
        if isinstance(output, Tensor):
            return replacement
        if isinstance(output, (tuple, list)) and output:
            parts = [self._handed_on(output[0], replacement), *output[1:]]
            named = hasattr(output, "_fields")  # a named tuple takes its fields one by one
            return type(output)(*parts) if named else type(output)(parts)
        message = f"cannot replace the output of a module that returns {type(output).__name__}"
        raise PortError(message)


@dataclass
class TorchComponent:
    """A loaded module behind the port contract.

    Attributes:
        module: The network, in eval mode, in its dtype, on its device.
        call: Turns input tensors into named output tensors.
        dtype: Floating inputs are cast to it.
        device: Where inputs go.
        keep: Inputs that keep their own dtype (`timestep`); float64 runs widen them.
    """

    module: nn.Module
    call: Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]
    dtype: torch.dtype
    device: str = "cpu"
    keep: Collection[str] = ("timestep",)

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
        with observe(self.module, names, callback):
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
            observed[name] = to_numpy(tensor)
            value = replace.get(name)
            if value is None:
                return None
            return torch.tensor(value).to(self.device, self.dtype)

        wanted = dict.fromkeys([*probes, *replace])
        outputs = self.traced(self.tensors(inputs), wanted, callback)
        if not isinstance(outputs, Mapping):
            message = f"the network's call returned {type(outputs).__name__}, not a dict of tensors"
            raise PortError(message)
        arrays = {name: to_numpy(tensor) for name, tensor in outputs.items()}
        return arrays, {name: observed[name] for name in observed if name in set(probes)}


def assign_weights(
    module: nn.Module,
    weights: Mapping[str, np.ndarray],
    dtype: torch.dtype,
    device: str = "cpu",
) -> nn.Module:
    """Give a module built on the meta device its weights, strictly, one tensor at a time.

    Args:
        module: Network on the meta device (it may hold real buffers).
        weights: Canonical name to float32 array.
        dtype: Dtype of the parameters.
        device: Where they go.

    Returns:
        The module in eval mode, without gradients.

    Raises:
        PortError: Missing, unexpected or misshaped names.
    """
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in weights]
    unexpected = [name for name in weights if name not in wanted]
    if missing or unexpected:
        message = f"weights do not fit: missing {missing[:3]}, unexpected {unexpected[:3]}"
        raise PortError(message)
    state = {}
    for name, tensor in wanted.items():
        state[name] = torch.from_numpy(weights[name]).to(device, dtype)
        if state[name].shape != tensor.shape:
            message = (
                f"weight {name} has shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
            )
            raise PortError(message)
    module.load_state_dict(state, strict=True, assign=True)
    return module.to(device).eval().requires_grad_(requires_grad=False)


Build = Callable[["Variant"], nn.Module]
Call = Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]
Load = Callable[["Variant", "Weights", str, str], Component]


@dataclass(frozen=True)
class TorchPort:
    """A port made of modules whose attribute names are the canonical ones.

    Attributes:
        name: The port's name.
        version: The port's version.
        builders: By network: a function that builds it for a variant on the meta device, and one
            that calls it.
        tokenizer: Makes the tokenizer, where the port has one.
        others: By component, what loads it, given variant, weights, arithmetic and device:
            schedulers and pipelines (`torch_sampling` helps with both).
    """

    name: str
    version: str
    builders: Mapping[str, tuple[Build, Call]]
    tokenizer: Callable[[], Component] | None = None
    others: Mapping[str, Load] = field(default_factory=dict)

    def hello(self) -> Hello:
        """Say what is offered; CUDA is offered where torch sees it."""
        cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        devices = ("cpu", *(["cuda", *cuda] if cuda else []))
        own = [TOKENIZER] if self.tokenizer else []
        components = (*own, *self.builders, *self.others)
        return Hello(self.name, self.version, components, tuple(DTYPES), devices)

    def load(
        self, component: str, variant: Variant, weights: Weights, arithmetic: str, device: str
    ) -> Component:
        """Build the network and give it its weights; see `conformance.port.Port`."""
        if component == TOKENIZER and self.tokenizer:
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
        build, call = self.builders[component]
        dtype = DTYPES[arithmetic]
        module = assign_weights(build(variant), weights, dtype, device)
        return TorchComponent(module, call, dtype, device)
