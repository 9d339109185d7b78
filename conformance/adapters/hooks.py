"""Hooks: seeing what the modules of a network compute, and putting other values in its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from conformance.adapters.rename import Place
from conformance.errors import PortError

INPUT_SUFFIX = ".input"

Callback = Callable[[str, Tensor], Tensor | None]


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Copy a tensor to an array; bfloat16 is widened to float32, exactly."""
    tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.float()
    return tensor.to("cpu", copy=True, memory_format=torch.contiguous_format).numpy()


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
    module: nn.Module,
    names: Collection[str],
    callback: Callback,
    places: Mapping[str, Place] | None = None,
) -> Iterator[Counter[str]]:
    """Call back for every probe that fires inside the block.

    Args:
        module: The network.
        names: Canonical probe names: a module path, or a path with `.input` for what enters it.
            Names that the module does not have are left out.
        callback: Gets name and tensor (not a copy); a returned tensor takes its place. It is only
            read: what the network goes on with is its own.
        places: Where the network has the canonical modules; None where it names them so.

    Yields:
        How often each probe fired.
    """
    hooks = _Hooks(callback, module)
    modules = dict(module.named_modules())
    if places is not None:
        modules = {canonical: modules[place.path] for canonical, place in places.items()}
    try:
        for name in names:
            path = name.removesuffix(INPUT_SUFFIX)
            if path in modules:
                hooks.attach(modules[path], name)
        yield hooks.fired
    finally:
        for handle in hooks.handles:
            handle.remove()


class _Hooks:
    """The hooks of one observation."""

    def __init__(self, callback: Callback, network: nn.Module) -> None:
        self.callback = callback
        self.network = network
        self.fired: Counter[str] = Counter()
        self.handles: list[RemovableHandle] = []

    @cached_property
    def weights(self) -> frozenset[int]:
        """Where the weights lie: a module may hand out a view of them, which is not written."""
        tensors = [*self.network.parameters(), *self.network.buffers()]
        return frozenset(t.untyped_storage().data_ptr() for t in tensors if t.device.type != "meta")

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
        return self._handed_on(output, replacement.clone())

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
