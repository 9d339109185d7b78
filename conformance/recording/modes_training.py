"""Dispatch modes of training: the long sums of the backward pass, in another lawful order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from conformance.recording.modes import Summation, aten

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of input, weight and bias."""


class TrainingSummation(Summation):
    """Replace every long sum of the forward pass, of the loss and of the backward pass."""

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Divert the long sums; run everything else as it is."""
        handler = _BACKWARD.get(func)
        if handler is None:
            return super().operation(func, args, kwargs)
        return handler(self, *args, **kwargs)

    def convolution_backward(
        self,
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        _bias_sizes: list[int],
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        _transposed: bool,  # noqa: FBT001
        _output_padding: list[int],
        _groups: int,
        wanted: list[bool],
    ) -> Gradients:
        """Multiply with the unfolded input, and fold what the kernels hand back."""
        kernel, (batch, channels) = weight.shape[2:], grad.shape[:2]
        rows = grad.permute(1, 0, 2, 3).reshape(1, channels, -1)
        of_input = of_weight = None
        if wanted[0]:
            spread = self.matmul(weight.reshape(1, channels, -1).transpose(1, 2), rows)
            spread = spread.reshape(-1, batch, grad.shape[2] * grad.shape[3]).transpose(0, 1)
            of_input = F.fold(spread, x.shape[2:], kernel, dilation, padding, stride)
        if wanted[1]:
            columns = F.unfold(x.contiguous(), kernel, dilation, padding, stride)
            columns = columns.permute(0, 2, 1).reshape(1, rows.shape[2], -1)
            of_weight = self.matmul(rows, columns).reshape(weight.shape)
        return of_input, of_weight, self.total(rows[0]) if wanted[2] else None

    def group_norm_backward(
        self,
        grad: Tensor,
        x: Tensor,
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor,
        batch: int,
        channels: int,
        _places: int,
        groups: int,
        wanted: list[bool],
    ) -> Gradients:
        """Take from each gradient the group's mean, and its share of the variance."""
        rows = x.reshape(batch * groups, -1)
        normal = (rows - mean.reshape(-1, 1)) * rstd.reshape(-1, 1)
        shape = (1, channels, *([1] * (x.dim() - 2)))
        scaled = (grad * weight.reshape(shape)).reshape(batch * groups, -1)
        of_input = self._normalise_backward(scaled, normal, rstd).reshape(x.shape)
        by_channel = grad.transpose(0, 1).reshape(channels, -1)
        products = (grad * normal.reshape(x.shape)).transpose(0, 1).reshape(channels, -1)
        of_weight, of_bias = self.total(products), self.total(by_channel)
        return _only(wanted, of_input, of_weight, of_bias)

    def layer_norm_backward(
        self,
        grad: Tensor,
        x: Tensor,
        shape: list[int],
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor,
        _bias: Tensor,
        wanted: list[bool],
    ) -> Gradients:
        """Do the same for rows."""
        rows = x.reshape(-1, shape[-1])
        normal = (rows - mean.reshape(-1, 1)) * rstd.reshape(-1, 1)
        grads = grad.reshape(-1, shape[-1])
        of_input = self._normalise_backward(grads * weight, normal, rstd).reshape(x.shape)
        of_weight = self.total((grads * normal).transpose(0, 1))
        return _only(wanted, of_input, of_weight, self.total(grads.transpose(0, 1)))

    def _normalise_backward(self, grads: Tensor, normal: Tensor, rstd: Tensor) -> Tensor:
        count = grads.shape[1]
        mean = self.total(grads)[:, None] / count
        share = self.total(grads * normal)[:, None] / count
        return rstd.reshape(-1, 1) * (grads - mean - normal * share)

    def softmax_backward(
        self, grad: Tensor, output: Tensor, dim: int, _dtype: torch.dtype
    ) -> Tensor:
        """Weigh each gradient by what it stands above the row's."""
        if dim not in (-1, output.dim() - 1):
            message = f"softmax over axis {dim} is not handled"
            raise NotImplementedError(message)
        return output * (grad - self.total(grad * output)[..., None])

    def sum_dims(
        self,
        x: Tensor,
        dims: list[int],
        keepdim: bool = False,  # noqa: FBT001, FBT002 - as in the operation
        **_: Any,
    ) -> Tensor:
        """Sum over axes: what a bias gets from all that it was added to."""
        summed = [dim % x.dim() for dim in dims] or list(range(x.dim()))
        kept = [dim for dim in range(x.dim()) if dim not in summed]
        shape = [x.shape[dim] for dim in kept]
        total = self.total(x.permute(*kept, *summed).reshape(*shape, -1))
        if not keepdim:
            return total
        return total.reshape([1 if dim in summed else x.shape[dim] for dim in range(x.dim())])

    def mse_loss(self, prediction: Tensor, target: Tensor, _reduction: int = 1) -> Tensor:
        """Average the squared errors."""
        errors = (prediction - target).reshape(1, -1)
        return self.total(errors * errors)[0] / errors.shape[1]


def _only(wanted: list[bool], *gradients: Tensor) -> Gradients:
    first, second, third = (g if w else None for g, w in zip(gradients, wanted, strict=True))
    return first, second, third


_BACKWARD: dict[Any, Callable[..., Any]] = {
    aten.convolution_backward.default: TrainingSummation.convolution_backward,
    aten.native_group_norm_backward.default: TrainingSummation.group_norm_backward,
    aten.native_layer_norm_backward.default: TrainingSummation.layer_norm_backward,
    aten._softmax_backward_data.default: TrainingSummation.softmax_backward,  # noqa: SLF001
    aten.sum.dim_IntList: TrainingSummation.sum_dims,
    aten.mse_loss.default: TrainingSummation.mse_loss,
}
