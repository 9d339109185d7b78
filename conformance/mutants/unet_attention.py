"""Wrong spatial transformers: attention, GEGLU, LayerNorm, projections."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformance.mutants.mutant import Mutant, NotRun, Patch
from conformance.mutants.unet_tools import (
    each,
    linear_in,
    other_attention,
    replaced,
    through,
)
from sd1_impl.attention import (
    GEGLU,
    BasicTransformerBlock,
    CrossAttention,
    SpatialTransformer,
)
from sd1_impl.config import UNetConfig

KERNEL_HEAD_SIZE = 64
"""The one head size that the kernel of `rt-attn-head-dim-hardcoded` knows."""


def transformer_eps(layer: Any) -> None:
    """GroupNorm eps 1e-5 for 1e-6 at the entrance."""
    layer.norm.eps = 1e-5


def one_eps(module: Any) -> None:
    """The eps of the residual blocks in every norm."""
    for layer in module.modules():
        if isinstance(layer, (nn.GroupNorm, nn.LayerNorm)):
            layer.eps = module.config.resnet_norm_eps


def count_as_size(layer: Any) -> None:
    """The number of heads taken for the size of a head."""
    layer.num_heads = layer.to_q.out_features // layer.num_heads


def single_head(layer: Any) -> None:
    """One head as wide as the tokens, and scores scaled for it."""
    layer.num_heads = 1


def norm_over_tokens(layer: Any, tokens: Tensor) -> Tensor:
    """GroupNorm with one group for LayerNorm."""
    channels_first = tokens.transpose(1, 2)
    return F.group_norm(channels_first, 1, layer.weight, layer.bias, layer.eps).transpose(1, 2)


def tanh_geglu(layer: Any, tokens: Tensor) -> Tensor:
    """The tanh approximation in the gate."""
    value, gate = layer.proj(tokens).chunk(2, dim=-1)
    gated: Tensor = value * F.gelu(gate, approximate="tanh")
    return gated


def swapped_geglu(layer: Any, tokens: Tensor) -> Tensor:
    """The gate before the value."""
    gate, value = layer.proj(tokens).chunk(2, dim=-1)
    gated: Tensor = value * F.gelu(gate)
    return gated


def text_width_in_self_attention(patch: Patch) -> None:
    """Keys and values of self-attention as wide as the text."""

    def make(build: Any) -> Any:
        def init(self: Any, config: UNetConfig, dim: int, num_heads: int) -> None:
            build(self, config, dim, num_heads)
            self.attn1 = CrossAttention(dim, config.cross_attention_dim, num_heads)

        return init

    patch.wrap(BasicTransformerBlock, "__init__", make)


def swapped_projection_widths(patch: Patch) -> None:
    """Input and output width of both 1x1 projections exchanged."""

    def make(build: Any) -> Any:
        def init(self: Any, config: UNetConfig, channels: int, num_heads: int) -> None:
            build(self, config, channels, num_heads)
            dim = self.proj_in.out_channels
            self.proj_in = nn.Conv2d(dim, channels, kernel_size=1)
            self.proj_out = nn.Conv2d(channels, dim, kernel_size=1)

        return init

    patch.wrap(SpatialTransformer, "__init__", make)


def read_as_contiguous(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Views with heads and tokens exchanged, read in the order in which they lie in memory."""
    in_memory = (view.transpose(1, 2).reshape(view.shape) for view in (query, key, value))
    return F.scaled_dot_product_attention(*in_memory)


def first_dimensions(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Nothing is read or written past the kernel's head size."""
    size = query.shape[-1]
    query, key, value = (heads[..., :KERNEL_HEAD_SIZE] for heads in (query, key, value))
    attended = F.scaled_dot_product_attention(query, key, value, scale=size**-0.5)
    return F.pad(attended, (0, size - attended.shape[-1]))


def unscaled(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scores as the product gives them."""
    return F.scaled_dot_product_attention(query, key, value, scale=1)


def half_scores(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scores in half precision, scaled after the product."""
    scores = query.half() @ key.half().transpose(-1, -2)
    weights = (scores.to(query.dtype) * query.shape[-1] ** -0.5).softmax(dim=-1)
    return weights @ value


def half_layer_norm(layer: Any, tokens: Tensor) -> Tensor:
    """A sum that is normalised in half precision from the residual sum on."""
    half = tokens.half()
    centred = half - half.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    scaled = (centred * torch.rsqrt(variance + layer.eps)).to(tokens.dtype)
    result: Tensor = scaled * layer.weight + layer.bias
    return result


def fuse_layer_norms(block: Any) -> None:
    """Half precision in the norms that follow a residual sum."""
    for norm in (block.norm2, block.norm3):
        norm.forward = partial(half_layer_norm, norm)


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        id="unet-transformer-gn-eps",
        component="unet",
        wrong="the GroupNorm of the spatial transformers has eps 1e-5, not 1e-6",
        seen="mlx-examples#1434, #1435, PR#1448; keras-cv, divamgupta, diffusers Flax",
        evidence="R",
        size="subtle",
        cases=("tiny-lowvar/base", "tiny/quiet"),
        module=each(SpatialTransformer, transformer_eps),
    ),
    Mutant(
        id="fix-unet-one-eps",
        component="unet",
        wrong="every norm of the UNet has the eps of the residual blocks",
        evidence="fix",
        size="subtle",
        cases=("tiny-lowvar/base", "tiny/quiet"),
        module=one_eps,
    ),
    Mutant(
        id="unet-heads-vs-headdim",
        component="unet",
        wrong="the number of heads is read as the size of a head",
        seen="diffusers#2011, PR#3797 (88d2694), #6980, #6983; mlx-examples#85",
        evidence="R",
        size="catastrophic",
        cases=("tiny/base", "tiny-sharp/base"),
        module=each(CrossAttention, count_as_size),
    ),
    Mutant(
        id="unet-single-head",
        component="unet",
        wrong="attention has one head, and its scores are scaled by the width of all",
        seen="tinygrad 3df67aa",
        evidence="R",
        size="catastrophic",
        cases=("tiny/base", "tiny-sharp/base"),
        module=each(CrossAttention, single_head),
    ),
    Mutant(
        id="own-unet-unscaled",
        component="unet",
        wrong="attention's scores are not divided by the root of a head's size",
        size="catastrophic",
        cases=("tiny/base", "tiny-sharp/base"),
        module=other_attention(unscaled),
    ),
    Mutant(
        id="unet-attn1-context-dim",
        component="unet",
        wrong="self-attention is built to read keys and values as wide as the text",
        seen="stable-diffusion-burn ce91c88",
        evidence="R",
        size="catastrophic",
        cases=("tiny/base",),
        patch=text_width_in_self_attention,
        refuses=True,
    ),
    Mutant(
        id="unet-ln-as-groupnorm",
        component="unet",
        wrong="the LayerNorms of the transformer blocks normalise all tokens of a sample together",
        seen="tinygrad 3df67aa",
        evidence="R",
        size="catastrophic",
        cases=("tiny/base", "tiny-offset/base"),
        module=replaced(nn.LayerNorm, norm_over_tokens),
    ),
    Mutant(
        id="unet-geglu-tanh",
        component="unet",
        wrong="the gate of the feed-forward is the tanh approximation of GELU",
        seen="candle attention.rs (#900), keras-cv, divamgupta, diffusers Flax, tinygrad (#16162)",
        evidence="C",
        size="subtle",
        cases=("tiny/base", "tiny-outlier/base"),
        module=replaced(GEGLU, tanh_geglu),
    ),
    Mutant(
        id="unet-geglu-swap",
        component="unet",
        wrong="the feed-forward gates with the first half and passes the second",
        evidence="I",
        size="catastrophic",
        cases=("tiny/base",),
        module=replaced(GEGLU, swapped_geglu),
    ),
    Mutant(
        id="unet-proj-linear-conv",
        component="unet",
        wrong="the projections around the transformer block are built with their widths exchanged",
        seen="diffusers#2144, diffusers-rs 0490eed, mlx-examples#85",
        evidence="R",
        size="dormant",
        cases=("odd/base",),
        patch=swapped_projection_widths,
        refuses=True,
        dormant=True,
    ),
    Mutant(
        id="rt-sdpa-noncontiguous",
        component="unet",
        wrong="fused attention ignores the strides of its permuted queries, keys and values",
        seen="pytorch#181133, #163597, #78511",
        evidence="R",
        size="catastrophic",
        cases=("tiny/base", "tiny-sharp/base"),
        module=other_attention(read_as_contiguous),
    ),
    Mutant(
        id="rt-attn-head-dim-hardcoded",
        component="unet",
        wrong="the attention kernel reads and writes the first 64 numbers of a head",
        seen="triton-lang/triton#621, mlx#3585",
        evidence="R",
        size="catastrophic",
        cases=("odd/base", "odd-sharp/base"),
        module=other_attention(first_dimensions),
    ),
    Mutant(
        id="num-attn-fp16-overflow",
        component="unet",
        wrong="attention scores are half precision and are scaled after the product",
        seen="diffusers#1590, #1591; ailia-models#1030",
        evidence="R",
        size="catastrophic",
        cases=("tiny-sharp/base", "tiny/loud"),
        module=other_attention(half_scores),
    ),
    Mutant(
        id="num-tpu-bf16-matmul",
        component="unet",
        wrong="linear layers round their operands to bfloat16",
        seen="jax#7010, #1856, #16349",
        evidence="R",
        size="subtle",
        cases=("tiny-dense/base", "tiny/base"),
        module=replaced(nn.Linear, linear_in(lambda tensor: through(tensor, torch.bfloat16))),
    ),
    Mutant(
        id="num-fused-layernorm",
        component="unet",
        wrong="LayerNorm is fused with the residual sum before it and computed in half precision",
        seen="onnxruntime#17689, #4293, #18273",
        evidence="R",
        size="visible",
        cases=("tiny-dense/base", "tiny-offset/base"),
        module=each(BasicTransformerBlock, fuse_layer_norms),
    ),
)

NOT_RUN: tuple[NotRun, ...] = (
    NotRun(
        "unet-attn-inner-dim",
        "the tokens that enter an attention are heads x head size wide in every size, `odd` too: "
        "the spatial transformer projects the map to that width, so both readings agree",
    ),
    NotRun(
        "unet-attn-mask-argument-order",
        "the UNet of SD v1 passes no attention mask and sd1_impl's attention takes none: there "
        "is no second optional argument to confuse",
    ),
)
