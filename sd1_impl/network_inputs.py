"""What the networks accept: everything else is refused by name, not somewhere inside a kernel.

Shapes: B batch, C channels, H W height and width, L tokens of a text.
"""

import torch
from torch import Tensor, nn


def check_map(name: str, tensor: Tensor, channels: int, smallest: int = 1) -> None:
    """Refuse what is no ``(B, channels, H, W)`` with H and W of a least size."""
    shape = tuple(tensor.shape)
    if shape[1:-2] != (channels,) or 0 in shape or min(shape[-2:]) < smallest:
        raise ValueError(
            f"{name} has shape {shape}, expected (B, {channels}, H, W), H and W at least {smallest}"
        )


def check_context(name: str, tensor: Tensor, width: int, batch: int) -> None:
    """Refuse what is no ``(batch, L, width)``."""
    shape = tuple(tensor.shape)
    if shape[2:] != (width,) or 0 in shape:
        raise ValueError(f"{name} has shape {shape}, expected (B, L, {width})")
    if shape[0] != batch:
        raise ValueError(f"{name} has batch size {shape[0]}, sample has {batch}")


def check_kind(name: str, tensor: Tensor, module: nn.Module) -> None:
    """Refuse numbers that no layer of the module could read: of another dtype or device.

    A dtype is one of the weights', which need not all have the same; under autocast any floating
    one is. While a graph is compiled nothing is checked.
    """
    if torch.compiler.is_compiling():
        return
    weight = next(module.parameters())
    if tensor.device != weight.device:
        raise ValueError(f"{name} is on {tensor.device}, the weights are on {weight.device}")
    fits = any(tensor.dtype == parameter.dtype for parameter in module.parameters())
    if not (fits or _is_cast(tensor)):
        raise ValueError(f"{name} has dtype {tensor.dtype}, expected the weights' {weight.dtype}")


def check_like(name: str, tensor: Tensor, other: Tensor) -> None:
    """Refuse what cannot be added to another tensor element by element, and leave it as it is."""
    if tensor.shape != other.shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(other.shape)}")
    if tensor.device != other.device:
        raise ValueError(f"{name} is on {tensor.device}, expected {other.device}")
    if tensor.dtype != other.dtype and not _is_cast(tensor):
        raise ValueError(f"{name} has dtype {tensor.dtype}, expected {other.dtype}")


def check_ids(name: str, ids: Tensor, table: Tensor, positions: int) -> None:
    """Refuse what is no ``(B, L)`` of rows of a table, L at most the number of positions."""
    shape, rows = tuple(ids.shape), len(table)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name} has shape {shape}, expected (B, L)")
    if shape[1] > positions:
        raise ValueError(
            f"{name} has {shape[1]} tokens per text, the position table has {positions} rows"
        )
    if ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name} has dtype {ids.dtype}, expected {torch.int64}")
    if ids.device != table.device:
        raise ValueError(f"{name} is on {ids.device}, the weights are on {table.device}")
    if ids.is_meta or torch.compiler.is_compiling():
        return  # there are no numbers to look at
    lowest, highest = (int(end) for end in ids.aminmax())
    if lowest < 0 or highest >= rows:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"{name} has id {wrong}, the token table has rows 0 to {rows - 1}")


def _is_cast(tensor: Tensor) -> bool:
    """Say whether autocast sees to the tensor's dtype."""
    casts = tensor.is_floating_point() and not tensor.is_meta
    return casts and torch.is_autocast_enabled(tensor.device.type)
