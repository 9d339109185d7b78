"""What the mutants of the UNet share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd1_impl.attention import CrossAttention

Core = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From query, key and value, each `(B, heads, N, head size)`, what is attended, like the query."""


def each(kind: type[nn.Module], change: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return a function that changes every layer of one type in a network."""

    def spoil(module: Any) -> None:
        for layer in module.modules():
            if isinstance(layer, kind):
                change(layer)

    return spoil


def replaced(kind: type[nn.Module], forward: Callable[..., Tensor]) -> Callable[[Any], None]:
    """Return a function that gives every layer of one type another forward pass.

    Args:
        kind: The type.
        forward: Gets the layer, then what the layer is called with.
    """

    def change(layer: Any) -> None:
        layer.forward = partial(forward, layer)

    return each(kind, change)


def other_attention(core: Core) -> Callable[[Any], None]:
    """Return a function that gives every attention of a network another core."""

    def forward(layer: Any, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        context = tokens if context is None else context
        query = split_heads(layer.to_q(tokens), layer.num_heads)
        key = split_heads(layer.to_k(context), layer.num_heads)
        value = split_heads(layer.to_v(context), layer.num_heads)
        attended: Tensor = layer.to_out[0](core(query, key, value).transpose(1, 2).flatten(2))
        return attended

    return replaced(CrossAttention, forward)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """View `(B, N, D)` as `(B, heads, N, D / heads)`."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def through(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Round a tensor to a dtype and return it in its own."""
    return tensor.to(dtype).to(tensor.dtype)


def rounded(tensor: Tensor, bits: int) -> Tensor:
    """Round a tensor to so many fraction bits, in its own dtype."""
    mantissa, exponent = torch.frexp(tensor)
    return torch.ldexp((mantissa * 2 ** (bits + 1)).round(), exponent - (bits + 1))


def half_sum(terms: Tensor) -> Tensor:
    """Sum over the last dimension in half precision, one term after the other."""
    total = torch.zeros_like(terms[..., 0], dtype=torch.float16)
    for term in terms.half().unbind(dim=-1):
        total = total + term
    return total


def normalised(norm: Any, hidden: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Finish a GroupNorm whose statistics, `(B, groups)`, were computed elsewhere.

    Args:
        norm: The GroupNorm.
        hidden: `(B, C, H, W)`.
        mean: Of each group.
        variance: Of each group.
    """
    grouped = hidden.unflatten(1, (norm.num_groups, -1))
    mean, variance = (s.to(hidden.dtype)[:, :, None, None, None] for s in (mean, variance))
    scaled = ((grouped - mean) * torch.rsqrt(variance + norm.eps)).flatten(1, 2)
    return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]


def linear_in(cast: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """Return the forward pass of a linear layer whose operands are rounded."""
    return lambda layer, tokens: F.linear(cast(tokens), cast(layer.weight), layer.bias)


def convolution_in(cast: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """Return the forward pass of a convolution whose operands are rounded."""
    return lambda layer, hidden: F.conv2d(
        cast(hidden), cast(layer.weight), layer.bias, layer.stride, layer.padding
    )
