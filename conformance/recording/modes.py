"""Dispatch modes: the reference's own modules, computed in another lawful way."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from conformance.dispatch import Mode

aten = torch.ops.aten

MatMul = Callable[[Tensor, Tensor], Tensor]


class Summation(Mode):
    """Replace every long sum: convolution, matrix product, norm, softmax."""

    def __init__(self, matmul: MatMul, total: Callable[[Tensor], Tensor]) -> None:
        """Take the batched product (B,M,K)x(B,K,N) and the sum over the last axis."""
        super().__init__()
        self.matmul = matmul
        self.total = total

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Divert the long sums; run everything else as it is."""
        handler = _HANDLERS.get(func)
        if handler is None:
            return func(*args, **kwargs)
        return handler(self, *args, **kwargs)

    def convolution(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        *_: Any,
    ) -> Tensor:
        """Unfold, multiply, add the bias."""
        kernel = weight.shape[2:]
        columns = F.unfold(x.contiguous(), kernel, dilation, padding, stride)
        batch, depth, places = columns.shape
        columns = columns.permute(1, 0, 2).reshape(1, depth, batch * places)
        out = self.matmul(weight.reshape(1, weight.shape[0], depth), columns)
        out = out.reshape(weight.shape[0], batch, places).transpose(0, 1)
        height = (x.shape[2] + 2 * padding[0] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
        out = out.reshape(batch, weight.shape[0], height, places // height)
        return out.contiguous() if bias is None else out + bias[:, None, None]

    def mm(self, a: Tensor, b: Tensor) -> Tensor:
        """Multiply two matrices."""
        return self.matmul(a[None], b[None])[0]

    def addmm(
        self, bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1
    ) -> Tensor:
        """Multiply two matrices and add."""
        return beta * bias + alpha * self.mm(a, b)

    def bmm(self, a: Tensor, b: Tensor) -> Tensor:
        """Multiply two batches of matrices."""
        return self.matmul(a, b)

    def baddbmm(
        self, bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1
    ) -> Tensor:
        """Multiply two batches of matrices, scale and add."""
        product = alpha * self.matmul(a, b)
        return product if beta == 0 else beta * bias + product

    def group_norm(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        batch: int,
        channels: int,
        _places: int,
        groups: int,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise in two passes."""
        rows, mean, rstd = self._normalise(x.reshape(batch * groups, -1), eps)
        shape = (1, channels, *([1] * (x.dim() - 2)))
        out = rows.reshape(x.shape) * weight.reshape(shape) + bias.reshape(shape)
        return out, mean, rstd

    def layer_norm(
        self, x: Tensor, shape: list[int], weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise in two passes."""
        rows, mean, rstd = self._normalise(x.reshape(-1, shape[-1]), eps)
        return rows.reshape(x.shape) * weight + bias, mean, rstd

    def _normalise(self, rows: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean = self.total(rows)[:, None] / rows.shape[1]
        centred = rows - mean
        variance = self.total(centred * centred)[:, None] / rows.shape[1]
        rstd = 1 / torch.sqrt(variance + eps)
        return centred * rstd, mean, rstd

    def softmax(self, x: Tensor, dim: int, _half_to_float: bool) -> Tensor:  # noqa: FBT001
        """Shift by the maximum, exponentiate, divide by the sum."""
        if dim not in (-1, x.dim() - 1):
            message = f"softmax over axis {dim} is not handled"
            raise NotImplementedError(message)
        exponential = torch.exp(x - x.amax(-1, keepdim=True))
        return exponential / self.total(exponential)[..., None]


_HANDLERS: dict[Any, Callable[..., Any]] = {
    aten.convolution.default: Summation.convolution,
    aten.mm.default: Summation.mm,
    aten.addmm.default: Summation.addmm,
    aten.bmm.default: Summation.bmm,
    aten.baddbmm.default: Summation.baddbmm,
    aten.native_group_norm.default: Summation.group_norm,
    aten.native_layer_norm.default: Summation.layer_norm,
    aten._softmax.default: Summation.softmax,  # noqa: SLF001 - the op's name
}


def sequential_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Sum the products one after another, in the tensors' own dtype."""
    out = a.new_zeros(a.shape[0], a.shape[1], b.shape[2])
    left, right = a.transpose(1, 2).contiguous(), b.contiguous()
    # Sliced at once: under a dispatch mode each slice would cost as much as a product.
    if a.shape[0] == 1:
        total = out[0]
        for column, row in zip(left[0].unbind(), right[0].unbind(), strict=True):
            total.addr_(column, row)
    else:
        columns, rows = left[..., None].unbind(1), right[:, :, None].unbind(1)
        for column, row in zip(columns, rows, strict=True):
            out.addcmul_(column, row)
    return out


def sequential_total(x: Tensor) -> Tensor:
    """Sum the last axis element by element, in the tensor's own dtype."""
    array = x.contiguous().numpy()
    return torch.from_numpy(np.add.accumulate(array, axis=-1)[..., -1].copy())


def blocked_matmul(generator: np.random.Generator) -> MatMul:
    """Return a product that sums in blocks of random length."""

    def matmul(a: Tensor, b: Tensor) -> Tensor:
        out = a.new_zeros(a.shape[0], a.shape[1], b.shape[2])
        start = 0
        while start < a.shape[2]:
            end = min(a.shape[2], start + int(generator.integers(1, 257)))
            out += torch.matmul(a[:, :, start:end], b[:, start:end])
            start = end
        return out

    return matmul


def blocked_total(generator: np.random.Generator) -> Callable[[Tensor], Tensor]:
    """Return a sum over the last axis in blocks of random length."""

    def total(x: Tensor) -> Tensor:
        out = x.new_zeros(x.shape[:-1])
        start = 0
        while start < x.shape[-1]:
            end = min(x.shape[-1], start + int(generator.integers(1, 257)))
            out = out + x[..., start:end].sum(-1)
            start = end
        return out

    return total


class OnePass(Mode):
    """LayerNorm with its variance as E[x^2] - E[x]^2, as Flax computes it by default."""

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Divert LayerNorm; run everything else as it is."""
        if func is not aten.native_layer_norm.default:
            return func(*args, **kwargs)
        x, _, weight, bias, eps = args
        mean = x.mean(-1, keepdim=True)
        variance = ((x * x).mean(-1, keepdim=True) - mean * mean).clamp(min=0)
        rstd = torch.rsqrt(variance + eps)
        return (x - mean) * rstd * weight + bias, mean, rstd


class Float32Sums(Mode):
    """Half operands, float32 products and sums, one rounding of the result: what GPUs do."""

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Widen the operands of long sums; run everything else as it is."""
        if func not in _HANDLERS:
            return func(*args, **kwargs)
        half = args[0].dtype
        wide = [a.float() if isinstance(a, Tensor) and a.dtype is half else a for a in args]
        result = func(*wide, **kwargs)
        if isinstance(result, tuple):
            return (result[0].to(half), *result[1:])
        return result.to(half)


class Moves(Mode):
    """Move floating results of operations by up to half a unit in the last place, at random."""

    def __init__(self, seed: int, precision: torch.dtype | None = None) -> None:
        """Seed the moves; they are as large as in that precision, or in the result's own."""
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        self.precision = precision

    @abstractmethod
    def moves(self, func: Any, result: Any) -> bool:
        """Say whether this result is moved."""

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the operation, then move its floating result."""
        result = func(*args, **kwargs)
        return self.moved(result) if self.moves(func, result) else result

    def moved(self, result: Tensor) -> Tensor:
        """Move every element by up to half a unit in the last place."""
        unit = torch.finfo(self.precision or result.dtype).eps / 2
        move = torch.rand(result.shape, generator=self.generator, dtype=torch.float64) - 0.5
        return (result.double() * (1 + 2 * unit * move)).to(result.dtype)


class HalfUlp(Moves):
    """The timestep embedding, moved.

    It has one honest value a timestep, too few to measure a noise from; libraries differ in the
    last bit of exp, sin and cos and in the order of the exponent's operations.
    """

    def moves(self, func: Any, result: Any) -> bool:
        """Move what is rounded on the way to the embedding."""
        return func in _ROUNDED and bool(result.is_floating_point())


class MovedProducts(Moves):
    """The result of every convolution and matrix product, moved: sums in other orders.

    Backwards too, where products are made of the same operations.
    """

    def moves(self, func: Any, result: Any) -> bool:
        """Move what products make."""
        return func in _PRODUCTS and isinstance(result, Tensor)


_PRODUCTS = {
    aten.convolution.default,
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
}


class TableUlp(Moves):
    """A scheduler's tables, moved: everything that is computed while it is built."""

    def moves(self, func: Any, result: Any) -> bool:
        """Move what arithmetic makes.

        Constants (a final alpha of 1) and quotients of equal numbers are exact everywhere.
        """
        arithmetic = func.overloadpacket in _ARITHMETIC and bool(result.is_floating_point())
        return arithmetic and not (result.ndim == 0 and float(result) == 1)


class CoefficientUlp(TableUlp):
    """A scheduler's coefficients, moved: what is computed before it meets a sample."""

    def moves(self, func: Any, result: Any) -> bool:
        """Move results without an axis."""
        return super().moves(func, result) and result.ndim == 0


class RoundedCoefficients(Mode):
    """Coefficients rounded to a half type where they meet tensors of it, as JAX and MLX do."""

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Round the operands without an axis, then run the operation."""
        tensors = [a for a in args if isinstance(a, Tensor)]
        halves = [t.dtype for t in tensors if t.ndim and t.dtype in _HALF_TYPES]
        if halves:
            args = tuple(
                a.to(halves[0])
                if isinstance(a, Tensor) and a.ndim == 0 and a.is_floating_point()
                else a
                for a in args
            )
        return func(*args, **kwargs)


_HALF_TYPES = (torch.float16, torch.bfloat16)

_ROUNDED = {
    aten.exp.default,
    aten.sin.default,
    aten.cos.default,
    aten.mul.Tensor,
    aten.div.Tensor,
}

_ARITHMETIC = {
    aten.add,
    aten.cumprod,
    aten.div,
    aten.exp,
    aten.expm1,
    aten.linspace,
    aten.log,
    aten.mul,
    aten.pow,
    aten.rsub,
    aten.sqrt,
    aten.sub,
}
