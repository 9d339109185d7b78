"""The VAE: pictures to latents of an eighth of their size, and back.

Source: the networks of "Taming Transformers for High-Resolution Image Synthesis" (Esser et al.,
2021), which LDM (Rombach et al., 2022, appendix G) took; the posterior is that of "Auto-Encoding
Variational Bayes" (Kingma and Welling, 2014), section 3.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sd1_numpy.layers import Array, attention, enlarge, silu
from sd1_numpy.module import Module
from sd1_numpy.resnet import resnet

EPS = 1e-6
SCALE = 0.18215
"""Latents are multiplied by this, so that their deviation is about 1, like that of noise."""


def vae_encoder(
    module: Module, sizes: Mapping[str, Any], image: Array, noise: Array
) -> dict[str, Array]:
    """Encode pictures.

    Args:
        module: The network.
        sizes: `block_out_channels` by level, `layers_per_block`.
        image: In -1..1, (B, 3, H, W).
        noise: Of a standard normal, (B, 4, H // 8, W // 8).

    Returns:
        `mean` and `logvar` of the posterior, and `latents`, a scaled sample of it; shaped as noise.
    """
    encoder = module["encoder"]
    x = encoder.conv("conv_in", image)
    for level in range(len(sizes["block_out_channels"])):
        x = down_block(encoder[f"down_blocks.{level}"], x, sizes["layers_per_block"])
    x = mid_block(encoder["mid_block"], x)
    x = encoder.conv("conv_out", silu(encoder.group_norm("conv_norm_out", x, EPS)))
    mean, logvar = np.split(module.conv("quant_conv", x), 2, axis=1)
    logvar = np.clip(logvar, -30, 20)
    sample = mean + np.exp(logvar / 2) * noise
    return {"mean": mean, "logvar": logvar, "latents": sample * SCALE}


def vae_decoder(module: Module, sizes: Mapping[str, Any], latents: Array) -> dict[str, Array]:
    """Decode latents.

    Args:
        module: The network.
        sizes: `block_out_channels` by level, `layers_per_block`.
        latents: Scaled, (B, 4, h, w).

    Returns:
        `image`: about -1..1, not clamped, (B, 3, 8 h, 8 w).
    """
    decoder = module["decoder"]
    x = decoder.conv("conv_in", module.conv("post_quant_conv", latents / SCALE))
    x = mid_block(decoder["mid_block"], x)
    for i in range(len(sizes["block_out_channels"])):
        x = up_block(decoder[f"up_blocks.{i}"], x, sizes["layers_per_block"] + 1)
    x = silu(decoder.group_norm("conv_norm_out", x, EPS))
    return {"image": decoder.conv("conv_out", x)}


def down_block(module: Module, x: Array, resnets: int) -> Array:
    """Go through a level; then, but at the lowest, halve the map.

    Zeros are put below and to the right only: the kernel's first row and column lie on the map.
    """
    for i in range(resnets):
        x = resnet(module[f"resnets.{i}"], x, None, EPS)
    if "downsamplers.0.conv" in module:
        sampler = module["downsamplers.0"]
        x = sampler.leave(sampler.conv("conv", x, stride=2, pad=(0, 1)))
    return module.leave(x)


def mid_block(module: Module, x: Array) -> Array:
    """Let every place look at every other, between two resnets."""
    x = resnet(module["resnets.0"], x, None, EPS)
    x = self_attention(module["attentions.0"], x)
    return module.leave(resnet(module["resnets.1"], x, None, EPS))


def up_block(module: Module, x: Array, resnets: int) -> Array:
    """Go through a level; then, but at the highest, double the map."""
    for i in range(resnets):
        x = resnet(module[f"resnets.{i}"], x, None, EPS)
    if "upsamplers.0.conv" in module:
        sampler = module["upsamplers.0"]
        height, width = x.shape[2:]
        x = sampler.leave(sampler.conv("conv", enlarge(x, 2 * height, 2 * width)))
    return module.leave(x)


def self_attention(module: Module, x: Array) -> Array:
    """Attend with a single head, as wide as the map has channels."""
    places = x.reshape(*x.shape[:2], -1)
    tokens = module.group_norm("group_norm", places, EPS).swapaxes(1, 2)  # (B, H W, C)
    q, k, v = (module.linear(name, tokens) for name in ("to_q", "to_k", "to_v"))
    h = module.linear("to_out.0", attention(q, k, v, heads=1))
    return module.leave(x + h.swapaxes(1, 2).reshape(x.shape))
