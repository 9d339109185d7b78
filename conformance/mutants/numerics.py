"""Wrong precisions: products, sums and casts in fewer bits than the arithmetic allows.

Each dies in the arithmetic that it declares: what is a fault in one may be the rule in another.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from conformance.mutants.mutant import Mutant, NotRun
from conformance.mutants.unet_tools import (
    convolution_in,
    half_sum,
    linear_in,
    other_attention,
    rounded,
    through,
)
from conformance.mutants.vae_attention import layers_of
from sd1_impl.resnet import Upsample
from sd1_impl.vae import AttentionBlock, ResnetBlock

TF32_BITS, FP8_BITS = 10, 3
"""Fraction bits of TF32 and of FP8 E4M3."""

AUTOCAST, FP16_NORM32, VAE_UPCAST = "policy:autocast", "policy:fp16-norm32", "policy:vae-upcast"
FEED_FORWARD = "{}_blocks.{}.attentions.{}.transformer_blocks.0.ff.net.2".format

TRAINED_STREAM = 2.0**12
"""How much larger the decoder's residual stream may be with trained weights than it is here."""

_to_tf32 = partial(rounded, bits=TF32_BITS)
_to_fp8 = partial(rounded, bits=FP8_BITS)


def _one(path: str, forward: Callable[..., Tensor]) -> Callable[[Any], None]:
    """Return what gives one layer another forward pass, a function of the layer and its input."""

    def spoil(module: Any) -> None:
        layer = module.get_submodule(path)
        layer.forward = partial(forward, layer)

    return spoil


def _attention_in_tf32(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Both products of attention round their operands to ten fraction bits."""
    scores = _to_tf32(query) @ _to_tf32(key).transpose(-1, -2) * query.shape[-1] ** -0.5
    return _to_tf32(scores.softmax(-1)) @ _to_tf32(value)


def _half_sums(layer: Any, tokens: Tensor) -> Tensor:
    """A linear layer that adds its products one after another in half precision."""
    terms = tokens.half().unsqueeze(-2) * layer.weight.half()
    return half_sum(terms).to(tokens.dtype) + layer.bias


def _half_statistics(norm: Any, hidden: Tensor) -> Tensor:
    """GroupNorm whose mean and mean of squares are kept in half precision."""
    groups = hidden.half().unflatten(1, (norm.num_groups, -1)).flatten(2)
    mean = groups.mean(dim=-1)
    variance = groups.square().mean(dim=-1) - mean.square()
    wide = hidden.float().unflatten(1, (norm.num_groups, -1)).flatten(2)
    scale = torch.rsqrt(variance.float().clamp(min=0) + norm.eps)
    normal = ((wide - mean.float()[..., None]) * scale[..., None]).view(hidden.shape)
    shape = (1, -1, *[1] * (hidden.dim() - 2))
    return (normal * norm.weight.view(shape) + norm.bias.view(shape)).to(hidden.dtype)


def _bfloat16_sum(terms: Tensor) -> Tensor:
    """Sum over the last dimension in bfloat16, one term after the other."""
    total = torch.zeros_like(terms[..., 0], dtype=torch.bfloat16)
    for term in terms.bfloat16().unbind(dim=-1):
        total = total + term
    return total


def _softmax_in_bfloat16(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention whose softmax adds its exponentials up in bfloat16."""
    scores = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    weights = torch.exp(scores - scores.amax(-1, keepdim=True)).bfloat16()
    return (weights / _bfloat16_sum(weights)[..., None]).to(value.dtype) @ value


def _embedding_in_bfloat16(module: Any) -> None:
    """The timestep embedding is cast with everything else, angles and all."""
    module.time_proj.register_forward_hook(lambda _, __, out: through(out, torch.bfloat16))


def _decode_in_half(module: Any) -> None:
    """The decoder's stream stays in half precision, as large as with trained weights."""

    def cast(_: Any, __: Any, hidden: Tensor) -> Tensor:
        return (hidden * TRAINED_STREAM).half().to(hidden.dtype) / TRAINED_STREAM

    for layer in layers_of(module["vae"].decoder, ResnetBlock, AttentionBlock, Upsample):
        layer.register_forward_hook(cast)


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        id="num-tf32-one-convolution",
        component="unet",
        wrong="one convolution multiplies in TF32",
        seen="pytorch#47287",
        evidence="R",
        cases=("tiny/base", "tiny-dense/base"),
        module=_one("down_blocks.1.resnets.0.conv1", convolution_in(_to_tf32)),
    ),
    Mutant(
        id="num-tf32-attention",
        component="unet",
        wrong="the two products of attention are computed in TF32",
        cases=("tiny/base", "odd/base"),
        module=other_attention(_attention_in_tf32),
    ),
    Mutant(
        id="num-bf16-one-linear",
        component="text_encoder",
        wrong="one linear layer rounds its operands to bfloat16",
        cases=("tiny/base", "tiny-dense/base"),
        module=_one(
            "text_model.encoder.layers.0.mlp.fc1",
            linear_in(lambda tensor: through(tensor, torch.bfloat16)),
        ),
    ),
    Mutant(
        id="num-fp8-linear",
        component="unet",
        wrong="one linear layer multiplies in FP8 where bfloat16 was agreed on",
        cases=("tiny/base", "odd/base"),
        module=_one(FEED_FORWARD("down", 1, 0), linear_in(_to_fp8)),
        dtype="bf16-matmul",
    ),
    Mutant(
        id="num-tf32-fp8-convolution",
        component="vae_decoder",
        wrong="one convolution multiplies in FP8 where TF32 was agreed on",
        cases=("tiny/base", "odd/base"),
        module=_one("decoder.up_blocks.1.resnets.0.conv2", convolution_in(_to_fp8)),
        dtype="tf32",
    ),
    Mutant(
        id="num-f16-accumulate-linear",
        component="unet",
        wrong="one linear layer adds its products up in half precision",
        seen="openvino#19782",
        evidence="R",
        cases=("odd/base", "tiny/base"),
        module=_one(FEED_FORWARD("up", 1, 0), _half_sums),
        dtype="float16",
    ),
    Mutant(
        id="num-norm32-half-statistics",
        component="unet",
        wrong="one GroupNorm squares its map in half precision, which overflows",
        evidence="I",
        size="catastrophic",
        cases=("tiny/brink",),
        module=_one("down_blocks.1.resnets.0.norm1", _half_statistics),
        dtype=FP16_NORM32,
    ),
    Mutant(
        id="num-autocast-softmax",
        component="unet",
        wrong="softmax adds its exponentials up in bfloat16",
        evidence="I",
        cases=("tiny/base", "odd/base"),
        module=other_attention(_softmax_in_bfloat16),
        dtype=AUTOCAST,
    ),
    Mutant(
        id="num-autocast-embedding",
        component="unet",
        wrong="the timestep embedding is bfloat16 under autocast",
        evidence="I",
        cases=("tiny/base", "odd/base"),
        module=_embedding_in_bfloat16,
        dtype=AUTOCAST,
    ),
    Mutant(
        id="num-vae-not-upcast",
        component="pipeline/txt2img",
        wrong="the VAE stays in half precision although its stream passes 65504",
        seen="diffusers#3999, #7188",
        evidence="R",
        size="catastrophic",
        cases=("tiny/base",),
        module=_decode_in_half,
        dtype=VAE_UPCAST,
    ),
    Mutant(
        id="num-f16-norm-overflow",
        component="unet",
        wrong="one norm squares its map in half precision, which overflows near its end",
        size="catastrophic",
        cases=("tiny/brink",),
        module=_one("up_blocks.3.resnets.2.norm1", _half_statistics),
        dtype="float16",
    ),
)
"""Rows of the catalogue about precision."""

NOT_RUN: tuple[NotRun, ...] = ()
