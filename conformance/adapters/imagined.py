"""Networks that are only imagined: shapes without values, weights without memory.

A port is loaded as ever, from weights that hold nothing, and called as ever; torch's fake tensors
stand for what would be computed, on the CPU: on the meta device torch would choose other attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from conformance.adapters.storages import tensors_in
from conformance.recipe import SEED
from conformance.variants import Weights

SMALL = 2**16
"""Bytes up to which a tensor that depends on nothing imagined is real: ids, timesteps, tables."""

_DEVICE, _MEAN_SQUARE = torch.ops.prim.device.default, torch.ops.aten.mse_loss.default
_LIFT, _CAST = torch.ops.aten.lift_fresh.default, torch.ops.aten._to_copy.default  # noqa: SLF001


@dataclass(frozen=True)
class _Nothing:
    """Stands for the recipe of a tensor: zeros, which take no memory while nobody touches them.

    Attributes:
        shape: Of the tensor.
    """

    shape: tuple[int, ...]

    def draw(self, dtype: type[np.floating[Any]], seed: int = SEED) -> np.ndarray:  # noqa: ARG002
        """Return zeros that the system has promised and not yet given."""
        return np.zeros(self.shape, dtype)


def hollow(weights: Weights) -> Weights:
    """Return weights of the same names and shapes that hold nothing; none of them is read."""
    recipes = {name: _Nothing(shape) for name, shape in weights.shapes.items()}
    return Weights(weights.component, weights.variant, recipes, weights.seed)


class _Sparing(TorchDispatchMode):
    """Computes what is small, and only the shapes of what is large."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def imagine(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation on shapes alone."""
        with self.fake:
            return func(*args, **kwargs)

    def sizes_of(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the imagined result of an operation that would be large; else None."""
        try:
            result = self.imagine(func, args, kwargs)
        except Exception:  # noqa: BLE001 - values decide about the shape: they are there
            return None
        return result if any(map(_is_large, tensors_in(result))) else None


def _is_large(tensor: Tensor) -> bool:
    return not tensor.is_meta and tensor.numel() * tensor.itemsize > SMALL


class Hollow(_Sparing):
    """While it is loaded, a network's large tensors are one number each, repeated."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation; what would be large is hollow instead."""
        kwargs = kwargs or {}
        if func in {_LIFT, _CAST}:  # how weights come, and nearly all that is done to them
            large = _is_large(args[0])
            return _hollow(args[0], **kwargs) if large else func(*args, **kwargs)
        given = list(tensors_in((args, kwargs)))
        if func.is_view or any(tensor.is_meta for tensor in given) or _asks_for_meta(kwargs):
            return func(*args, **kwargs)
        result = self.sizes_of(func, args, kwargs)
        if result is None:
            return func(*args, **kwargs)
        if func._schema.is_mutable:  # noqa: SLF001 - there is no public name
            return given[0]
        return tree_map_only(Tensor, _hollow, result)


def _asks_for_meta(options: Mapping[str, Any]) -> bool:
    return str(options.get("device")) == "meta"


def _hollow(tensor: Tensor, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """Return a tensor of that shape and dtype which holds a single number."""
    return torch.zeros((), dtype=dtype or tensor.dtype).expand(tensor.shape)


class Imagined(_Sparing):
    """While it is called, whatever depends on weights or is large has a shape and no values."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation on shapes; on values where all that it reads is real and small."""
        kwargs = kwargs or {}
        if func is _DEVICE:
            return func(*args)
        if any(isinstance(tensor, FakeTensor) for tensor in tensors_in((args, kwargs))):
            result = self.imagine(func, args, kwargs)
            if func is _MEAN_SQUARE:  # its mean is written where the squares were
                result.untyped_storage().resize_(args[0].numel() * args[0].itemsize)
            return result
        if func is _LIFT or func.is_view:
            return func(*args, **kwargs)
        result = self.sizes_of(func, args, kwargs)
        return func(*args, **kwargs) if result is None else result

    def fill(self, module: nn.Module) -> None:
        """Put an imagined tensor, dense, in the place of every parameter."""
        done: dict[int, nn.Parameter] = {}
        with self.fake:
            for part in module.modules():
                for name, old in part._parameters.items():  # noqa: SLF001 - it may be shared
                    if old is not None:
                        new = done.setdefault(id(old), _dense(old))
                        part._parameters[name] = new  # noqa: SLF001
                for name, buffer in part._buffers.items():  # noqa: SLF001
                    if buffer is not None and _is_large(buffer) and 0 in buffer.stride():
                        part._buffers[name] = _dense(buffer).data  # noqa: SLF001


def _dense(tensor: Tensor) -> nn.Parameter:
    dense = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return nn.Parameter(dense, requires_grad=tensor.requires_grad)
