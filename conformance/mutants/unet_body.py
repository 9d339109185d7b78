"""Wrong bodies of the UNet: time, residual blocks, GroupNorm, samplers, skips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformance.mutants.mutant import Mutant, NotRun
from conformance.mutants.unet_tools import (
    convolution_in,
    each,
    half_sum,
    normalised,
    replaced,
    rounded,
    through,
)
from sd1_impl.resnet import ResnetBlock, Upsample

TF32_BITS = 10
KEPT = 0.75
"""Share of the upsampled batch that lies below the index limit, standing for 2**31 elements."""


def resnet_eps(layer: Any) -> None:
    """GroupNorm eps of the VAE in the residual blocks."""
    layer.norm1.eps = layer.norm2.eps = 1e-6


def half_statistics(norm: Any, hidden: Tensor) -> Tensor:
    """Running sums of a group in half precision."""
    values = hidden.half().unflatten(1, (norm.num_groups, -1)).flatten(2)
    count = values.shape[-1]
    mean = half_sum(values) / count
    variance = half_sum((values - mean[..., None]).square()) / count
    return normalised(norm, hidden, mean, variance)


def padded_statistics(norm: Any, hidden: Tensor) -> Tensor:
    """The zeros that fill a group up to a power of two of channels count as its values."""
    grouped = hidden.unflatten(1, (norm.num_groups, -1)).flatten(3)
    channels = grouped.shape[2]
    padding = 2 ** math.ceil(math.log2(channels)) - channels
    block = F.pad(grouped, (0, 0, 0, padding)).flatten(2)
    return normalised(norm, hidden, block.mean(dim=-1), block.var(dim=-1, correction=0))


def sines_first(module: Any) -> None:
    """Sines before cosines."""
    module.time_proj.flip_sin_to_cos = False


def frequency_shift(module: Any) -> None:
    """Frequencies over half - 1."""
    module.time_proj.freq_shift = 1


def half_angles(module: Any) -> None:
    """Frequencies and angles in half precision."""
    layer = module.time_proj

    def forward(timesteps: Tensor) -> Tensor:
        half = layer.dim // 2
        exponents = torch.arange(half, device=timesteps.device) / half
        frequencies = torch.exp(-math.log(layer.max_period) * exponents).half()
        angles = (timesteps.half()[:, None] * frequencies).to(timesteps.dtype)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    layer.forward = forward


def first_timestep(module: Any) -> None:
    """The first sample's timestep for all."""
    module.time_proj.register_forward_pre_hook(lambda _, args: (args[0][:1].expand_as(args[0]),))


def upsample_with_stride(layer: Any) -> None:
    """The stride of the downsampler in the convolution after the enlargement."""
    layer.conv.stride = (2, 2)


def upsample_then_crop(layer: Any, hidden: Tensor, size: Sequence[int]) -> Tensor:
    """Twice the size always, cut to the skip's after the convolution."""
    enlarged: Tensor = layer.conv(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))
    return enlarged[..., : size[0], : size[1]]


def skip_first(module: Any) -> None:
    """Skips before the features in every concatenation."""
    width = module.config.block_out_channels[-1]
    for block in module.up_blocks:
        for resnet in block.resnets:
            resnet.register_forward_pre_hook(
                lambda _, args, width=width: (args[0].roll(-width, dims=1), *args[1:])
            )
            width = resnet.conv1.out_channels


def sum_in_place(layer: Any, hidden: Tensor, temb: Tensor) -> Tensor:
    """The residual is added into the input, which may be a stored skip."""
    residual = layer.conv1(F.silu(layer.norm1(hidden)))
    residual = residual + layer.time_emb_proj(F.silu(temb))[:, :, None, None]
    residual = layer.conv2(F.silu(layer.norm2(residual)))
    shortcut = hidden if layer.conv_shortcut is None else layer.conv_shortcut(hidden)
    shortcut += residual
    result: Tensor = shortcut
    return result


def half_accumulation(module: Any) -> None:
    """The products of the first convolution are summed in half precision."""
    conv = module.conv_in

    def forward(sample: Tensor) -> Tensor:
        patches = F.unfold(sample, conv.kernel_size, padding=conv.padding).half()  # (B, K, H W)
        kernels = conv.weight.flatten(1).half()
        sums = half_sum(kernels[None, :, None] * patches.transpose(1, 2)[:, None])
        return sums.to(sample.dtype).unflatten(-1, sample.shape[-2:]) + conv.bias[:, None, None]

    conv.forward = forward


def bf16_enlargement(layer: Any) -> None:
    """The enlarged map passes through bfloat16."""
    layer.conv.register_forward_pre_hook(lambda _, args: (through(args[0], torch.bfloat16),))


def empty_tail(layer: Any) -> None:
    """What lies past the index limit, channels last, stays zero in the enlarged batch."""

    def cut(_: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        enlarged = args[0].movedim(1, -1)
        values = enlarged.flatten()
        values = values * (torch.arange(len(values), device=values.device) < KEPT * len(values))
        return (values.view(enlarged.shape).movedim(-1, 1),)

    layer.conv.register_forward_pre_hook(cut)


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        id="unet-resnet-gn-eps",
        component="unet",
        wrong="the GroupNorms of the residual blocks have the eps of the VAE, 1e-6, not 1e-5",
        seen="MegDiffusion#5",
        evidence="I",
        size="subtle",
        cases=("tiny-lowvar/base", "tiny/quiet"),
        module=each(ResnetBlock, resnet_eps),
    ),
    Mutant(
        id="unet-gn-fp16-stats",
        component="unet",
        wrong="GroupNorm sums its mean and variance in half precision",
        seen="diffusers#182 (051b346), PR#371",
        evidence="R",
        size="visible",
        cases=("tiny/base", "tiny-offset/base"),
        module=replaced(nn.GroupNorm, half_statistics),
        dtype="float16",
    ),
    Mutant(
        id="unet-time-flip-sin-cos",
        component="unet",
        wrong="the timestep embedding has its sines before its cosines",
        seen="diffusers#1149, #1369 (Flax)",
        evidence="R",
        size="catastrophic",
        cases=("tiny/t0", "tiny/base"),
        module=sines_first,
    ),
    Mutant(
        id="unet-time-freq-shift",
        component="unet",
        wrong="the frequencies of the timestep embedding are spaced by one less than their number",
        seen="diffusers#594 (Flax)",
        evidence="R",
        size="visible",
        cases=("tiny/t999", "tiny/base"),
        module=frequency_shift,
    ),
    Mutant(
        id="unet-time-low-precision",
        component="unet",
        wrong="the angles of the timestep embedding are computed in half precision",
        seen="tinygrad#2772 (9afa800)",
        evidence="R",
        size="visible",
        cases=("tiny/t999", "tiny/t500", "tiny/base"),
        module=half_angles,
    ),
    Mutant(
        id="unet-time-not-broadcast",
        component="unet",
        wrong="the first timestep of a batch is used for all its samples",
        seen="diffusers#182",
        evidence="R",
        size="visible",
        cases=("tiny/tsamples",),
        module=first_timestep,
    ),
    Mutant(
        id="unet-upsample-stride",
        component="unet",
        wrong="the convolution after the enlargement has stride 2",
        seen="stable-diffusion-burn ce91c88",
        evidence="R",
        size="catastrophic",
        cases=("tiny/base",),
        module=each(Upsample, upsample_with_stride),
        refuses=True,
    ),
    Mutant(
        id="unet-upsample-odd-size",
        component="unet",
        wrong="maps are always doubled and afterwards cut to the size of the skip",
        seen="diffusers#505, #1571; InvokeAI#210",
        evidence="R",
        size="catastrophic",
        cases=("tiny/oddsize",),
        module=replaced(Upsample, upsample_then_crop),
    ),
    Mutant(
        id="unet-skip-concat-order",
        component="unet",
        wrong="skips are concatenated before the features",
        evidence="I",
        size="catastrophic",
        cases=("tiny/base",),
        module=skip_first,
    ),
    Mutant(
        id="unet-skip-alias-inplace",
        component="unet",
        wrong="residual sums are made in place and so change the skips that were stored",
        seen="diffusers#2586 (e2d9a9b), diffusers-rs c165b8a",
        evidence="R",
        size="visible",
        cases=("tiny/base",),
        module=replaced(ResnetBlock, sum_in_place),
    ),
    Mutant(
        id="rt-groupnorm-nonpow2",
        component="unet",
        wrong="GroupNorm counts the zeros that fill its channels up to a power of two",
        seen="flagos-ai/FlagGems#4984",
        evidence="R",
        size="catastrophic",
        cases=("odd/base", "tiny/base"),
        module=replaced(nn.GroupNorm, padded_statistics),
    ),
    Mutant(
        id="rt-upsample-nhwc-int32",
        component="unet",
        wrong="the last images of an enlarged batch stay zero past an index limit, scaled down",
        seen="pytorch#141831, #81665, #129118; diffusers#984, #1006, #10067",
        evidence="R",
        size="catastrophic",
        cases=("tiny/base", "tiny/batch3"),
        module=each(Upsample, empty_tail),
    ),
    Mutant(
        id="num-conv-f16-accumulate",
        component="unet",
        wrong="the first convolution sums its products in half precision",
        seen="openvino#19782",
        evidence="R",
        size="visible",
        cases=("tiny-dense/base", "tiny/base"),
        module=half_accumulation,
    ),
    Mutant(
        id="num-tf32-default",
        component="unet",
        wrong="convolutions round their operands to the ten fraction bits of TF32",
        seen="pytorch#47287; diffusers#3485",
        evidence="R",
        size="subtle",
        cases=("tiny-dense/base",),
        module=replaced(nn.Conv2d, convolution_in(lambda tensor: rounded(tensor, TF32_BITS))),
    ),
    Mutant(
        id="num-bf16-interpolate",
        component="unet",
        wrong="the enlarged map passes through bfloat16",
        seen="pytorch#170682; diffusers Upsample2D (ab079f2)",
        evidence="R",
        size="subtle",
        cases=("tiny-dense/base", "tiny/base"),
        module=each(Upsample, bf16_enlargement),
    ),
)

NOT_RUN: tuple[NotRun, ...] = (
    NotRun(
        "unet-downsample-channels",
        "dormant on SD v1 only if the width is read after the block's first layer, where input "
        "and output agree: it then shows with one layer per block, and every size has two",
    ),
)
