"""The UNet: what of noisy latents is noise, given the timestep and the encoded prompt.

Source: "High-Resolution Image Synthesis with Latent Diffusion Models" (Rombach et al., 2022),
section 3.3 and appendix E.2.1; the U is that of "Denoising Diffusion Probabilistic Models" (Ho et
al., 2020), appendix B. A block does what it has weights for: the lowest level does not attend, and
the last one on the way down, as on the way up, does not change the size.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sd1_numpy.layers import Array, attention, enlarge, gelu, silu
from sd1_numpy.module import Module
from sd1_numpy.resnet import resnet

RESNET_EPS = 1e-5
TRANSFORMER_EPS = 1e-6
LAYER_NORM_EPS = 1e-5


def unet(
    module: Module,
    sizes: Mapping[str, Any],
    sample: Array,
    timestep: Array,
    encoder_hidden_states: Array,
) -> dict[str, Array]:
    """Predict the noise in latents.

    Args:
        module: The network.
        sizes: `block_out_channels` and `num_heads` by level, `layers_per_block`.
        sample: Latents, (B, 4 or 9, H, W).
        timestep: Any real number, shape () or (B,).
        encoder_hidden_states: The encoded prompts, (B, N, width).

    Returns:
        `sample`: the noise, (B, 4, H, W).
    """
    heads, resnets = sizes["num_heads"], sizes["layers_per_block"]
    waves = sinusoids(np.broadcast_to(timestep, len(sample)), sizes["block_out_channels"][0])
    waves = module.see("time_proj", waves.astype(sample.dtype))
    embedding, context = time_embedding(module["time_embedding"], waves), encoder_hidden_states

    skips = [module.conv("conv_in", sample)]
    for i, own in enumerate(heads):
        block = module[f"down_blocks.{i}"]
        skips += down_block(block, skips[-1], embedding, context, own, resnets)
    x = mid_block(module["mid_block"], skips[-1], embedding, context, heads[-1])
    for i, own in enumerate(reversed(heads)):
        block = module[f"up_blocks.{i}"]
        x = up_block(block, x, skips, embedding, context, own, resnets + 1)
    x = silu(module.group_norm("conv_norm_out", x, RESNET_EPS))
    return {"sample": module.conv("conv_out", x)}


def sinusoids(times: Array, width: int) -> Array:
    """Spell numbers as cosines, then sines, of falling frequencies: from 1 towards 1 / 10000.

    Source: Vaswani et al., 2017, section 3.5, where the two alternate. In float64, whatever the
    network computes in: at t = 999 an angle of float32 has four decimals left.

    Args:
        times: Any real numbers, (B,).
        width: Of the result; even.

    Returns:
        float64, (B, width).
    """
    half = width // 2
    frequencies = 10000.0 ** (-np.arange(half) / half)
    angles = times[:, None] * frequencies
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def time_embedding(module: Module, waves: Array) -> Array:
    """Learn what a timestep means, by two linear layers: (B, width) to (B, 4 width)."""
    return module.leave(module.linear("linear_2", silu(module.linear("linear_1", waves))))


def down_block(
    module: Module, x: Array, embedding: Array, context: Array, heads: int, resnets: int
) -> list[Array]:
    """Go through a level downwards; return every map made on the way, the last one goes on."""
    maps = []
    for i in range(resnets):
        x = resnet_and_transformer(module, i, x, embedding, context, heads)
        maps.append(x)
    if "downsamplers.0.conv" in module:
        sampler = module["downsamplers.0"]
        maps.append(sampler.leave(sampler.conv("conv", x, stride=2)))
    maps[-1] = module.leave(maps[-1])
    return maps


def mid_block(module: Module, x: Array, embedding: Array, context: Array, heads: int) -> Array:
    """Turn at the lowest level."""
    x = resnet_and_transformer(module, 0, x, embedding, context, heads)
    return module.leave(resnet(module["resnets.1"], x, embedding, RESNET_EPS))


def up_block(
    module: Module,
    x: Array,
    skips: list[Array],
    embedding: Array,
    context: Array,
    heads: int,
    resnets: int,
) -> Array:
    """Go through a level upwards; every resnet also reads a map of the way down, the latest first.

    Those maps are taken off the end of `skips`. The last map of a level is enlarged to the size of
    the next one there, which is not twice its own where the way down halved an odd number.
    """
    for i in range(resnets):
        x = np.concatenate([x, skips.pop()], axis=1)
        x = resnet_and_transformer(module, i, x, embedding, context, heads)
    if "upsamplers.0.conv" in module:
        sampler = module["upsamplers.0"]
        x = sampler.leave(sampler.conv("conv", enlarge(x, *skips[-1].shape[2:])))
    return module.leave(x)


def resnet_and_transformer(
    module: Module, i: int, x: Array, embedding: Array, context: Array, heads: int
) -> Array:
    """Apply the i-th resnet of a block, and the i-th transformer where the block attends."""
    x = resnet(module[f"resnets.{i}"], x, embedding, RESNET_EPS)
    if f"attentions.{i}.norm" in module:
        x = spatial_transformer(module[f"attentions.{i}"], x, context, heads)
    return x


def spatial_transformer(module: Module, x: Array, context: Array, heads: int) -> Array:
    """Let the places of a map look at each other and at the prompt; add it to what they were."""
    h = module.conv("proj_in", module.group_norm("norm", x, TRANSFORMER_EPS))
    tokens = h.reshape(*h.shape[:2], -1).swapaxes(1, 2)  # (B, C, H, W) to (B, H W, C)
    tokens = transformer_block(module["transformer_blocks.0"], tokens, context, heads)
    h = tokens.swapaxes(1, 2).reshape(h.shape)
    return module.leave(x + module.conv("proj_out", h))


def transformer_block(module: Module, x: Array, context: Array, heads: int) -> Array:
    """Attend to each other, then to the prompt, then let each place think for itself."""
    normed = module.layer_norm("norm1", x, LAYER_NORM_EPS)
    x = x + cross_attention(module["attn1"], normed, normed, heads)
    x = module["norm2"].enter(x)
    normed = module.layer_norm("norm2", x, LAYER_NORM_EPS)
    x = x + cross_attention(module["attn2"], normed, context, heads)
    x = module["norm3"].enter(x)
    x = x + feed_forward(module["ff"], module.layer_norm("norm3", x, LAYER_NORM_EPS))
    return module.leave(x)


def cross_attention(module: Module, x: Array, context: Array, heads: int) -> Array:
    """Attend from x to context; what is compared and mixed has no bias."""
    q = module.linear("to_q", x, bias=False)
    k = module.linear("to_k", context, bias=False)
    v = module.linear("to_v", context, bias=False)
    return module.leave(module.linear("to_out.0", attention(q, k, v, heads)))


def feed_forward(module: Module, x: Array) -> Array:
    """Widen, gate, narrow: GEGLU of "GLU Variants Improve Transformer" (Shazeer, 2020)."""
    gated = module["net.0"]
    value, gate = np.split(gated.linear("proj", x), 2, axis=-1)
    return module.leave(module.linear("net.2", gated.leave(value * gelu(gate))))
