"""Arithmetics that are more than one dtype: TF32, bfloat16 products, mixtures in use.

A component is built in float32 and then made to compute in one of them. On a CPU `tf32` and
`bf16-matmul` are imitated: the operands of convolutions and matrix products are rounded to 10 and 7
fraction bits. On CUDA they are torch's own switches, `allow_tf32` and
`set_float32_matmul_precision("medium")`; what the hardware makes of the second is its own affair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformance.errors import UnsupportedError
from conformance.operands import RoundedOperands
from conformance.tolerance import OTHER_ARITHMETICS, POLICIES

TF32, BF16_MATMUL = OTHER_ARITHMETICS
AUTOCAST, FP16_NORM32, VAE_UPCAST = POLICIES

MIXED = (*OTHER_ARITHMETICS, *POLICIES)
"""Those that are made of a float32 component."""

FRACTION_BITS = {TF32: 10, BF16_MATMUL: 7}

Norm = nn.GroupNorm | nn.LayerNorm


def built_in(arithmetic: str) -> str:
    """Return the dtype in which a component is built before `computing_in` makes it mixed."""
    return "float32" if arithmetic in MIXED else arithmetic


def computing_in(arithmetic: str, component: Any) -> Any:
    """Make a component compute in an arithmetic.

    Args:
        arithmetic: Any that a torch module offers.
        component: A `TorchComponent` or `PipelineComponent`, built in `built_in(arithmetic)`.

    Returns:
        The component itself, changed.

    Raises:
        UnsupportedError: It has no parts of which one could be kept in float32.
    """
    if arithmetic not in MIXED:
        return component
    module = component.module
    if arithmetic == FP16_NORM32:
        _halve_but_norms(module)
        component.dtype = torch.float16
    elif arithmetic == VAE_UPCAST:
        _halve_but_vae(module)
        component.dtype = torch.float16
    elif arithmetic == AUTOCAST:
        component.own_dtypes = True
    run = "draw" if hasattr(component, "draw") else "call"
    setattr(component, run, _under(arithmetic, component.device, getattr(component, run)))
    return component


def _under(arithmetic: str, device: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs in an arithmetic."""

    @wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with _in_arithmetic(arithmetic, device):
            return function(*args, **kwargs)

    return inside


@contextmanager
def _in_arithmetic(arithmetic: str, device: str) -> Iterator[None]:
    kind = device.partition(":")[0]
    if arithmetic == AUTOCAST:
        with torch.autocast(kind, torch.bfloat16):
            yield
    elif arithmetic not in FRACTION_BITS:
        yield
    elif kind == "cpu":
        with RoundedOperands(FRACTION_BITS[arithmetic]):
            yield
    else:
        with _switched_on(arithmetic):
            yield


@contextmanager
def _switched_on(arithmetic: str) -> Iterator[None]:
    """Turn torch's own switches on, and back."""
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if arithmetic == TF32 else "medium")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn


def _halve_but_norms(module: Any) -> None:
    """Turn a network to float16, its norms apart: they keep float32 weights and sums."""
    norms = [layer for layer in module.modules() if isinstance(layer, Norm)]
    weights = [{n: p.data for n, p in norm.named_parameters()} for norm in norms]
    module.half()
    for norm, kept in zip(norms, weights, strict=True):
        for name, values in kept.items():
            getattr(norm, name).data = values
        norm.forward = _norm_in_float32(norm)


def _norm_in_float32(norm: Any) -> Callable[[Tensor], Tensor]:
    """Return the forward pass of a norm that reads and returns half precision."""

    def forward(hidden: Tensor) -> Tensor:
        wide = hidden.float()
        if isinstance(norm, nn.GroupNorm):
            out = F.group_norm(wide, norm.num_groups, norm.weight, norm.bias, norm.eps)
        else:
            out = F.layer_norm(wide, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        return out.to(hidden.dtype)

    return forward


def _halve_but_vae(module: Any) -> None:
    """Turn a pipeline's text encoder and UNet to float16; what enters the VAE is widened."""
    parts = dict(module.named_children()) if isinstance(module, nn.Module) else {}
    if not {"text_encoder", "unet", "vae"} <= set(parts):
        message = f"{VAE_UPCAST} needs a pipeline's text_encoder, unet and vae as modules"
        raise UnsupportedError(message)
    for name in ("text_encoder", "unet"):
        parts[name].half()
    for entrance in ("post_quant_conv", "encoder"):
        parts["vae"].get_submodule(entrance).register_forward_pre_hook(_widened)


def _widened(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0].float(), *args[1:])
