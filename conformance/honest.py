"""Honest evaluations: lawful ways to compute the same network in one arithmetic.

The worst of the *calibration* evaluations is the noise, the suite's unit of error. The *held-out*
evaluations never enter it; they show that the unit is fair to implementations it has not seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from conformance.oracle import plain_attention

aten = torch.ops.aten

MatMul = Callable[[Tensor, Tensor], Tensor]
Around = Callable[[nn.Module], AbstractContextManager[Any]]

FLOATS = ("float64", "float32")
HALVES = ("bfloat16", "float16")


@dataclass(frozen=True)
class Evaluation:
    """One way to evaluate the unmodified reference modules.

    Attributes:
        name: Short name, as in `docs/tolerance.md`.
        around: Makes the context in which the forward pass runs, given the network.
        arithmetics: Those for which it is honest.
        split: Evaluate the samples of a batch one by one.
        for_images: It moves the channels of images, which a text encoder has not.
        at_full_size: Those in which the 860M model is evaluated so too. A CPU without
            half-precision units takes minutes for what it does in seconds under `float32 sums`,
            and sequential float64 sums are stood for by float32's, scaled.
    """

    name: str
    around: Around
    arithmetics: tuple[str, ...] = (*FLOATS, *HALVES)
    split: bool = False
    for_images: bool = False
    at_full_size: tuple[str, ...] = (*FLOATS, *HALVES)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _channels_last(module: nn.Module) -> Iterator[None]:
    module.to(memory_format=torch.channels_last)

    def to_channels_last(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not args or args[0].dim() != _IMAGE_AXES:
            return args
        return (args[0].contiguous(memory_format=torch.channels_last), *args[1:])

    # The VAE's own forward is bypassed by encode and decode: its children see the images.
    watched = [module, *module.children()]
    handles = [part.register_forward_pre_hook(to_channels_last) for part in watched]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        module.to(memory_format=torch.contiguous_format)


_IMAGE_AXES = 4


class Summation(TorchDispatchMode):
    """Replace every long sum: convolution, matrix product, norm, softmax."""

    def __init__(self, matmul: MatMul, total: Callable[[Tensor], Tensor]) -> None:
        """Take the batched product (B,M,K)x(B,K,N) and the sum over the last axis."""
        super().__init__()
        self.matmul = matmul
        self.total = total

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Divert the long sums; run everything else as it is."""
        handler = _HANDLERS.get(func)
        if handler is None:
            return func(*args, **(kwargs or {}))
        return handler(self, *args, **(kwargs or {}))

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


def _sequential_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Sum the products one after another, in the tensors' own dtype."""
    out = a.new_zeros(a.shape[0], a.shape[1], b.shape[2])
    left, right = a.transpose(1, 2).contiguous(), b.contiguous()
    if a.shape[0] == 1:
        for k in range(a.shape[2]):
            out[0].addr_(left[0, k], right[0, k])
    else:
        for k in range(a.shape[2]):
            out.addcmul_(left[:, k, :, None], right[:, k, None, :])
    return out


def _sequential_total(x: Tensor) -> Tensor:
    array = x.contiguous().numpy()
    return torch.from_numpy(np.add.accumulate(array, axis=-1)[..., -1].copy())


def _blocked_matmul(generator: np.random.Generator) -> MatMul:
    def matmul(a: Tensor, b: Tensor) -> Tensor:
        out = a.new_zeros(a.shape[0], a.shape[1], b.shape[2])
        start = 0
        while start < a.shape[2]:
            end = min(a.shape[2], start + int(generator.integers(1, 257)))
            out += torch.matmul(a[:, :, start:end], b[:, start:end])
            start = end
        return out

    return matmul


def _blocked_total(generator: np.random.Generator) -> Callable[[Tensor], Tensor]:
    def total(x: Tensor) -> Tensor:
        out = x.new_zeros(x.shape[:-1])
        start = 0
        while start < x.shape[-1]:
            end = min(x.shape[-1], start + int(generator.integers(1, 257)))
            out = out + x[..., start:end].sum(-1)
            start = end
        return out

    return total


@contextmanager
def _summation(
    module: nn.Module, matmul: MatMul, total: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    with plain_attention(module), Summation(matmul, total):
        yield


@contextmanager
def _random_blocks(module: nn.Module, seed: int) -> Iterator[None]:
    generator = np.random.default_rng(seed)
    with _summation(module, _blocked_matmul(generator), _blocked_total(generator)):
        yield


class _Float32Sums(TorchDispatchMode):
    """Half operands, float32 products and sums, one rounding of the result: what GPUs do."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func not in _HANDLERS:
            return func(*args, **(kwargs or {}))
        half = args[0].dtype
        wide = [a.float() if isinstance(a, Tensor) and a.dtype is half else a for a in args]
        result = func(*wide, **(kwargs or {}))
        if isinstance(result, tuple):
            return (result[0].to(half), *result[1:])
        return result.to(half)


def _float32_sums(around: Around) -> Around:
    @contextmanager
    def both(module: nn.Module) -> Iterator[None]:
        with around(module), _Float32Sums():
            yield

    return both


class HalfUlp(TorchDispatchMode):
    """Move every result of the timestep embedding by up to half a unit in the last place.

    The embedding has one honest value a timestep, too few to measure a noise from; libraries differ
    in the last bit of exp, sin and cos and in the order of the exponent's operations.
    """

    def __init__(self, seed: int) -> None:
        """Seed the moves."""
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operation, then move its floating result."""
        result = func(*args, **(kwargs or {}))
        if func not in _ROUNDED or not result.is_floating_point():
            return result
        unit = torch.finfo(result.dtype).eps / 2
        move = torch.rand(result.shape, generator=self.generator, dtype=torch.float64) - 0.5
        return (result.double() * (1 + 2 * unit * move)).to(result.dtype)


_ROUNDED = {
    aten.exp.default,
    aten.sin.default,
    aten.cos.default,
    aten.mul.Tensor,
    aten.div.Tensor,
}


@contextmanager
def _half_ulp(module: nn.Module, seed: int) -> Iterator[None]:
    """Run `time_proj` under `HalfUlp`."""
    mode = HalfUlp(seed)
    plain = module.time_proj.forward

    def moved(timesteps: Tensor) -> Tensor:
        with mode:
            return plain(timesteps)

    module.time_proj.forward = moved
    try:
        yield
    finally:
        module.time_proj.forward = plain


HALF_ULP_RUNS = 16

CALIBRATION: tuple[Evaluation, ...] = (
    Evaluation("two threads", lambda _: _threads(2), at_full_size=FLOATS),
    Evaluation("one thread", lambda _: _threads(1), FLOATS, at_full_size=FLOATS),
    Evaluation("channels last", _channels_last, for_images=True, at_full_size=FLOATS),
    Evaluation("plain attention", plain_attention, at_full_size=FLOATS),
    Evaluation("batch split", lambda _: nullcontext(), split=True, at_full_size=FLOATS),
    Evaluation(
        "sequential sums",
        lambda m: _summation(m, _sequential_matmul, _sequential_total),
        FLOATS,
        at_full_size=("float32",),
    ),
    Evaluation("float32 sums", lambda _: _Float32Sums(), HALVES),
    Evaluation("float32 sums, plain attention", _float32_sums(plain_attention), HALVES),
    Evaluation(
        "float32 sums, channels last", _float32_sums(_channels_last), HALVES, for_images=True
    ),
    Evaluation("float32 sums, batch split", lambda _: _Float32Sums(), HALVES, split=True),
)


@contextmanager
def _without_onednn(_: nn.Module) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")  # of no GPU here
        with torch.backends.mkldnn.flags(enabled=False):
            yield


HELD_OUT: tuple[Evaluation, ...] = (
    Evaluation("oneDNN off", _without_onednn),
    Evaluation("random blocked sums 1", lambda m: _random_blocks(m, 1), FLOATS),
    Evaluation("random blocked sums 2", lambda m: _random_blocks(m, 2), FLOATS),
)


def half_ulp_evaluation(seed: int) -> Evaluation:
    """Return the evaluation whose timestep embedding is moved by half ulps, from that seed."""
    return Evaluation(
        f"embedding moved by half ulps ({seed})", lambda m: _half_ulp(m, seed), ("float32",)
    )
