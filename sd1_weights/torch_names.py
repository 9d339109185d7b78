"""What the names in torch's pickles mean: tensors and storages, and what is no weight.

Source: what `torch.save` writes, of torch 1.6 to 2.13; `torch._utils`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sd1_weights.errors import CheckpointError
from sd1_weights.pickles import Global, Names, described, of_kind, size
from sd1_weights.stored import DTYPES

STORAGES = {
    "F64": "torch.DoubleStorage",
    "F32": "torch.FloatStorage",
    "F16": "torch.HalfStorage",
    "BF16": "torch.BFloat16Storage",
    "I64": "torch.LongStorage",
    "I32": "torch.IntStorage",
    "I16": "torch.ShortStorage",
    "I8": "torch.CharStorage",
    "U8": "torch.ByteStorage",
    "BOOL": "torch.BoolStorage",
}
"""The storage's class by the dtype, a name of `stored.DTYPES`."""

UNTYPED = {"U64": "torch.uint64", "U32": "torch.uint32", "U16": "torch.uint16"}
"""Dtypes that have no such class: their tensors name them."""

UNTYPED_STORAGE = "torch.storage.UntypedStorage"
TENSOR = "torch._utils._rebuild_tensor_v2"
TENSOR_OF_DTYPE = "torch._utils._rebuild_tensor_v3"
ORDERED_DICT = "collections.OrderedDict"

_INERT = (
    # A key of `callbacks` in SD v1's published training checkpoints.
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    # The best score below that key, and its bytes; arrays among the hyperparameters.
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.dtype",
    "numpy.ndarray",
    "_codecs.encode",
    # `hparams_type` of Lightning, and hyperparameters saved as they are.
    "pytorch_lightning.utilities.parsing.AttributeDict",
    # Sets, in protocol 2 and in later ones.
    "__builtin__.set",
    "builtins.set",
    # Embeddings trained by textual inversion.
    "torch.nn.modules.container.ParameterDict",
    # Dtypes and shapes among the hyperparameters.
    *("torch.float64", "torch.float32", "torch.float16", "torch.bfloat16", "torch.Size"),
)

_DTYPE_OF_STORAGE = {name: dtype for dtype, name in STORAGES.items()} | {UNTYPED_STORAGE: ""}
_DTYPE_OF_NAME = {name: dtype for dtype, name in UNTYPED.items()}
_FIELDS = 6


@dataclass(frozen=True)
class Storage:
    """Where the bytes of tensors are.

    Attributes:
        key: The name of its entry in the archive.
        dtype: A name of `stored.DTYPES`; empty where each tensor names its own.
        nbytes: Its length in bytes.
    """

    key: str
    dtype: str
    nbytes: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; not yet checked to lie within it.

    Attributes:
        storage: Where its bytes are.
        dtype: A name of `stored.DTYPES`.
        offset: Its first element, counted in elements.
        shape: Its shape.
        stride: Steps between neighbours along each axis, in elements.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _storage(fields: Any) -> Storage:
    """Read a persistent id: kind, class, key, device, number of elements."""
    values = of_kind(fields, tuple, "a persistent id")
    if len(values) != len(("kind", "class", "key", "device", "numel")) or values[0] != "storage":
        raise CheckpointError("has a persistent id that is no storage's")
    _, of, key, device, numel = values
    of_kind(device, str, "a storage's device")
    name = of_kind(of, Global, "a storage's class").name
    if name not in _DTYPE_OF_STORAGE:
        raise CheckpointError(f"gives {described(of)} for a storage's class")
    dtype = _DTYPE_OF_STORAGE[name]
    itemsize = np.dtype(DTYPES[dtype]).itemsize if dtype else 1
    return Storage(
        of_kind(key, str, "a storage's key"), dtype, size(numel, "a storage's length") * itemsize
    )


def _tensor(arguments: tuple[Any, ...], dtype: str = "") -> Tensor:
    """Read the arguments of `_rebuild_tensor_v2`.

    Args:
        arguments: Storage, offset, shape, stride, whether gradients are wanted, hooks; then, if
            the values are not the storage's own, how they follow from them.
        dtype: A name of `stored.DTYPES`, for a storage that says none.
    """
    if len(arguments) not in (_FIELDS, _FIELDS + 1):
        raise CheckpointError(f"has a tensor of {len(arguments)} fields, expected {_FIELDS}")
    if len(arguments) > _FIELDS and of_kind(arguments[-1], dict, "a tensor's metadata"):
        raise CheckpointError("has a tensor to be negated or conjugated: save its resolve_neg()")
    storage, offset, shape, stride, wants_grad, hooks = arguments[:_FIELDS]
    of_kind(wants_grad, bool, "a tensor's requires_grad")
    of_kind(hooks, dict, "a tensor's hooks")
    where = of_kind(storage, Storage, "a tensor's storage")
    if bool(where.dtype) == bool(dtype):
        raise CheckpointError(f"has a tensor of {'two dtypes' if dtype else 'no dtype'}")
    axes = tuple(size(n, "a tensor's shape") for n in of_kind(shape, tuple, "a tensor's shape"))
    steps = tuple(size(n, "a tensor's stride") for n in of_kind(stride, tuple, "a tensor's stride"))
    if len(axes) != len(steps):
        raise CheckpointError(f"has a tensor of {len(axes)} axes and {len(steps)} strides")
    return Tensor(where, dtype or where.dtype, size(offset, "a tensor's offset"), axes, steps)


def _tensor_of_dtype(arguments: tuple[Any, ...]) -> Tensor:
    """Read the arguments of `_rebuild_tensor_v3`: the seventh is the dtype."""
    if len(arguments) <= _FIELDS:
        raise CheckpointError(f"has a tensor of {len(arguments)} fields, expected {_FIELDS + 1}")
    name = of_kind(arguments[_FIELDS], Global, "a tensor's dtype").name
    if name not in _DTYPE_OF_NAME:
        raise CheckpointError(f"gives {name} for the dtype of a tensor without one")
    return _tensor(arguments[:_FIELDS] + arguments[_FIELDS + 1 :], _DTYPE_OF_NAME[name])


def _parameter(arguments: tuple[Any, ...]) -> Tensor:
    """Return the tensor that a parameter is."""
    return of_kind(next(iter(arguments), None), Tensor, "a parameter's tensor")


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """Return a dict, which its entries follow."""
    if arguments:
        raise CheckpointError("fills an OrderedDict by its arguments, which torch.save does not")
    return {}


NAMES = Names(
    makers={
        TENSOR: _tensor,
        TENSOR_OF_DTYPE: _tensor_of_dtype,
        "torch._utils._rebuild_parameter": _parameter,
        ORDERED_DICT: _ordered_dict,
    },
    values=frozenset(_DTYPE_OF_STORAGE.keys() | _DTYPE_OF_NAME.keys()),
    inert=frozenset(_INERT),
    persistent=_storage,
)
"""All that a file of weights may name."""
