"""Gradients that are not those of what was computed: what wrong backward passes are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Scaled(torch.autograd.Function):
    """The identity, whose gradient is multiplied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (factor,) = ctx.saved_tensors
        return grad * factor, None


def scaled_gradient(x: Tensor, factor: Tensor | float) -> Tensor:
    """Return a tensor whose gradient is multiplied by a factor, itself left as it is."""
    result: Tensor = _Scaled.apply(x, torch.as_tensor(factor, dtype=x.dtype))
    return result


class _PlainSoftmax(torch.autograd.Function):
    """Softmax whose backward pass leaves the sum of the row out."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        weights = scores.softmax(dim=-1)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (weights,) = ctx.saved_tensors
        return weights * grad


def without_row_sum(
    query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool = False
) -> Tensor:
    """Attend; on the way back each score is taken to be independent of the others in its row."""
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    weights: Tensor = _PlainSoftmax.apply(scores)
    return weights @ value


class _LastRow(torch.autograd.Function):
    """Looking rows up; of those with the same index only the last one's gradient arrives."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape = table.shape
        return F.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (ids,) = ctx.saved_tensors
        table = grad.new_zeros(ctx.shape)
        for index, row in zip(ids.reshape(-1), grad.reshape(-1, grad.shape[-1]), strict=True):
            table[index] = row
        return table, None


def last_row(layer: nn.Embedding, ids: Tensor) -> Tensor:
    """Look rows up in a table that writes gradients instead of adding them."""
    result: Tensor = _LastRow.apply(layer.weight, ids)
    return result


def grouped(norm: Any, hidden: Tensor) -> Tensor:
    """Return the values of each group of a GroupNorm in one row: (batch, groups, values)."""
    return hidden.unflatten(1, (norm.num_groups, -1)).flatten(2)


def normalised(norm: Any, hidden: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Normalise a map by the given statistics of its groups, (batch, groups) each."""
    rows = (grouped(norm, hidden) - mean[..., None]) * torch.rsqrt(variance + norm.eps)[..., None]
    shape = (1, -1, *([1] * (hidden.ndim - 2)))
    return rows.reshape(hidden.shape) * norm.weight.reshape(shape) + norm.bias.reshape(shape)


def constant_mean(norm: Any, hidden: Tensor) -> Tensor:
    """GroupNorm that takes its mean for a constant on the way back."""
    rows = grouped(norm, hidden)
    return normalised(norm, hidden, rows.mean(-1).detach(), rows.var(-1, correction=0))


def constant_variance(norm: Any, hidden: Tensor) -> Tensor:
    """GroupNorm that takes its variance for a constant on the way back."""
    rows = grouped(norm, hidden)
    return normalised(norm, hidden, rows.mean(-1), rows.var(-1, correction=0).detach())


def first_sample_bias(layer: Any, hidden: Tensor) -> Tensor:
    """Add a convolution's bias to every sample; its gradient is the first one's alone."""
    out = layer._conv_forward(hidden, layer.weight, None)
    bias = torch.stack([layer.bias, *[layer.bias.detach()] * (len(hidden) - 1)])
    result: Tensor = out + bias[:, :, None, None]
    return result


def each(module: nn.Module, kind: type[Any]) -> Iterator[Any]:
    """Yield the modules of a kind, in order."""
    return (layer for layer in module.modules() if isinstance(layer, kind))


def everywhere(kind: type[Any], forward: Callable[..., Any]) -> Callable[[nn.Module], None]:
    """Return what puts another forward pass, given the layer, in all layers of a kind."""

    def change(module: nn.Module) -> None:
        for layer in each(module, kind):
            layer.forward = partial(forward, layer)

    return change
