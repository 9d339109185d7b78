"""Wrong autoencoders: strides, norms, scale, posterior, half precision, baked sizes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import nn

from conformance.mutants.mutant import Mutant, NotRun
from conformance.mutants.vae_attention import ATTENTION_MUTANTS, attend, bring_back, layers_of
from sd1_impl.vae import AttentionBlock, Downsample, ResnetBlock, Upsample

TRACED = (2, 2, 3)
"""Batch, height and width of the latents that a graph was traced with: those of `base`."""

LOUD_OVERFLOW, ALL_OVERFLOW = 2.0**9, 2.0**12
"""How much larger the decoder's residual stream may be with trained weights than it is here: half
precision, which ends at 65504, then holds it but for loud latents, or never."""

# Winograd's F(2x2, 3x3) (Lavin and Gray, 2015, section 4.1): input, filter and output transforms.
_BT = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_AT = ((1, 1, 1, 0), (0, 1, -1, -1))


def _half(tensor: Any) -> Any:
    """Round to half precision; what lies beyond 65504 becomes infinite."""
    return tensor.half().to(tensor.dtype)


# Encoder: the stride


def _pad_in_the_convolution(module: Any) -> None:
    """Let the strided convolution pad every side, as the UNet's does."""

    def forward(layer: Any, hidden: Any) -> Any:
        return layer.conv(hidden)

    for layer in layers_of(module, Downsample):
        layer.conv.padding = (1, 1)
        layer.forward = partial(forward, layer)


def _pad_both_ends(module: Any) -> None:
    """Pad through a helper whose one number per axis has come to mean both ends of it."""

    def forward(layer: Any, hidden: Any) -> Any:
        height, width = 1, 1
        return layer.conv(F.pad(hidden, (width, width, height, height)))

    for layer in layers_of(module, Downsample):
        layer.forward = partial(forward, layer)


# Norms, scale, posterior


def _norm_eps(module: Any) -> None:
    """Give every norm the framework's default eps."""
    for norm in layers_of(module, nn.GroupNorm):
        norm.eps = 1e-5


def _no_scale(module: Any) -> None:
    """Hand the UNet's latents to the decoder as they are."""
    module.config = replace(module.config, scaling_factor=1.0)


def _mean_for_sample(module: Any) -> None:
    """Take the posterior's mean for a sample of it."""
    factor = module.config.scaling_factor
    module.sample_latents = lambda posterior, *_: posterior.mean * factor


def _no_clamp(module: Any) -> None:
    """Leave the log-variance as the encoder gives it."""
    module.config = replace(module.config, logvar_min=float("-inf"), logvar_max=float("inf"))


# Half precision


def _cast_stream(blocks: Any, size: float) -> None:
    """Keep the residual stream of these blocks in half precision, `size` times as large."""

    def cast(_: Any, __: Any, hidden: Any) -> Any:
        return _half(hidden * size) / size

    for layer in layers_of(blocks, ResnetBlock, AttentionBlock, Upsample):
        layer.register_forward_hook(cast)


def _overflow(module: Any) -> None:
    """Let loud latents overflow half precision on their way up."""
    _cast_stream(module.decoder.up_blocks, LOUD_OVERFLOW)


def _whole_graph_in_half(module: Any) -> None:
    """Cast every weight and activation of the decoder to half precision, which overflows."""
    for parameter in module.parameters():
        parameter.data = _half(parameter.data)
    for layer in (module.post_quant_conv, *module.decoder.modules()):
        if not isinstance(layer, nn.ModuleList):
            layer.register_forward_pre_hook(lambda _, args: (_half(args[0]), *args[1:]))
            layer.register_forward_hook(lambda _, __, output: _half(output))
    _cast_stream(module.decoder, ALL_OVERFLOW)


def _winograd(conv: Any, hidden: Any) -> Any:
    """Convolve 3x3 in tiles of 2x2, each of its steps rounded to half precision."""
    into, spread, back = (hidden.new_tensor(matrix) for matrix in (_BT, _G, _AT))
    height, width = hidden.shape[-2:]
    padded = F.pad(hidden, (1, 1 + width % 2, 1, 1 + height % 2))
    tiles = padded.unfold(2, 4, 2).unfold(3, 4, 2)  # (B, C, h, w, 4, 4)
    tiles = _half(into @ _half(tiles) @ into.mT).permute(4, 5, 0, 2, 3, 1)
    kernels = _half(spread @ _half(conv.weight) @ spread.mT).permute(2, 3, 1, 0)
    products = _half(tiles.flatten(2, 4) @ kernels)  # (4, 4, B h w, O)
    products = products.unflatten(2, tiles.shape[2:5]).permute(2, 5, 3, 4, 0, 1)
    pieces = _half(back @ products @ back.mT)  # (B, O, h, w, 2, 2)
    whole = pieces.permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)
    return whole[..., :height, :width] + conv.bias.view(-1, 1, 1)


def _winograd_in_half(module: Any) -> None:
    """Compute every 3x3 convolution of the decoder by Winograd's algorithm in half precision."""
    for conv in layers_of(module, nn.Conv2d):
        if conv.kernel_size == (3, 3):
            conv.forward = partial(_winograd, conv)


# Runtime


def _baked_sizes(module: Any) -> None:
    """Write the sizes of the traced latents into every reshape and every enlargement."""
    batch, height, width = TRACED

    def read(layer: Any, hidden: Any) -> Any:
        tokens = attend(layer, hidden)
        return bring_back(tokens, (batch, hidden.shape[1], height, width)) + hidden

    def enlarge(layer: Any, size: tuple[int, int], hidden: Any) -> Any:
        return layer.conv(F.interpolate(hidden, size=size, mode="nearest"))

    for layer in layers_of(module, AttentionBlock):
        layer.forward = partial(read, layer)
    for level, layer in enumerate(layers_of(module, Upsample), start=1):
        layer.forward = partial(enlarge, layer, (height << level, width << level))


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        id="vae-enc-symmetric-pad",
        component="vae_encoder",
        wrong="The halving convolutions of the encoder pad all four sides",
        seen="diffusers#156 (a209037), keras-cv#1655, #1582, #1592, #1693, divamgupta#42",
        evidence="R",
        size="visible",
        cases=("tiny/base", "tiny/border"),
        module=_pad_in_the_convolution,
    ),
    Mutant(
        id="vae-enc-pad-helper-regression",
        component="vae_encoder",
        wrong="A shared helper begins to pad both ends of an axis, and the encoder still calls it",
        seen="stable-diffusion.cpp#1133 (3e81246)",
        evidence="R",
        size="visible",
        cases=("tiny/base", "tiny/border"),
        module=_pad_both_ends,
    ),
    Mutant(
        id="vae-gn-eps",
        component="vae_decoder",
        wrong="Every GroupNorm has the framework's default eps, 1e-5",
        seen="kjsman, hkproj, keras-cv, divamgupta, mlx-examples vae.py, tinygrad",
        evidence="C",
        size="subtle",
        cases=("tiny-lowvar/base", "odd-lowvar/base"),
        module=_norm_eps,
    ),
    Mutant(
        id="fix-vae-one-eps",
        component="vae_encoder",
        wrong="The encoder's norms are given the 1e-5 of the UNet's residual blocks",
        evidence="fix",
        size="subtle",
        cases=("tiny-lowvar/base", "odd-lowvar/base"),
        module=_norm_eps,
    ),
    Mutant(
        id="vae-scale-missing",
        component="vae_decoder",
        wrong="The latents are decoded without being divided by 0.18215",
        seen="tinygrad 1043fa0, diffusers#5166, PyTorch-Adventures#4, apple ce8ee78, Open-Sora#493",
        evidence="R",
        size="catastrophic",
        cases=("tiny/base", "odd/base"),
        module=_no_scale,
    ),
    Mutant(
        id="vae-mean-vs-sample",
        component="vae_encoder",
        wrong="The latents are the posterior's mean: its noise is never added",
        seen="candle#3841, mindone#531, ComfyUI#8705",
        evidence="R",
        size="subtle",
        cases=("tiny/base", "odd/base"),
        module=_mean_for_sample,
    ),
    Mutant(
        id="vae-logvar-clamp",
        component="vae_encoder",
        wrong="The log-variance has no bounds",
        seen="candle vae.rs DiagonalGaussianDistribution",
        evidence="C",
        size="dormant",
        cases=("tiny-outlier/base", "odd-outlier/base"),
        module=_no_clamp,
    ),
    Mutant(
        id="vae-fp16-overflow",
        component="vae_decoder",
        wrong="The decoder stays in half precision although its activations pass 65504",
        seen="diffusers#3999, #7188, A1111#6723, onnxruntime#17536, optimum-intel#432, "
        "stable-diffusion.cpp#888",
        evidence="R",
        size="catastrophic",
        cases=("tiny/loud", "tiny-outlier/base"),
        module=_overflow,
        dtype="float16",
    ),
    Mutant(
        id="num-onnx-fp16-black",
        component="vae_decoder",
        wrong="Weights and activations of the exported decoder are half precision, and overflow",
        seen="diffusers#1083",
        evidence="R",
        size="catastrophic",
        cases=("tiny/base", "tiny-dense/base"),
        module=_whole_graph_in_half,
    ),
    Mutant(
        id="rt-winograd-dtype",
        component="vae_decoder",
        wrong="The 3x3 convolutions are computed by Winograd's algorithm in half precision",
        seen="tinygrad#7829 (69e3822)",
        evidence="R",
        size="subtle",
        cases=("tiny-dense/base", "tiny/oddsize"),
        module=_winograd_in_half,
    ),
    Mutant(
        id="rt-exported-static-shape",
        component="vae_decoder",
        wrong="The exported decoder knows one batch and one size of latents, those of its trace",
        seen="apple#165, diffusers#6562",
        evidence="R",
        size="catastrophic",
        cases=("tiny/nonsquare", "tiny/oddsize"),
        module=_baked_sizes,
        refuses=True,
    ),
    *ATTENTION_MUTANTS,
)
"""Rows of the catalogue that are wrong autoencoders."""

NOT_RUN: tuple[NotRun, ...] = (
    NotRun(
        "vae-attn-int16-sequence",
        "It needs an attention over more than 32768 tokens, an image of 1456 x 1456 pixels: no "
        "case is that large",
    ),
    NotRun(
        "vae-tile-blend-extent",
        "It is in the blending of tiles, and no golden is decoded in tiles",
    ),
    NotRun(
        "vae-tile-groupnorm",
        "It is in norms that see one tile at a time, and no golden is decoded in tiles",
    ),
)
"""Rows of the catalogue about the autoencoder that are no mutants here."""
