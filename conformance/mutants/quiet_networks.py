"""Quiet mutants of the networks: the project's own, fixed before the first of them was judged.

Each is one small wrong choice in one layer, often in one channel, row, head or number of it, or
one that only one input can show: chosen to pass under tolerances of 1e-3 or 1e-4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from conformance.mutants.mutant import Mutant, NotRun

Spoil = Callable[[Any], None]
Fun = Callable[..., Any]

UNET, TEXT, ENCODER, DECODER = "unet", "text_encoder", "vae_encoder", "vae_decoder"
UNIT, LOWVAR, DENSE, SHARP = (f"tiny{r}/base" for r in ("", "-lowvar", "-dense", "-sharp"))
OUTLIER = "tiny-outlier/base"

BLOCK = "{}_blocks.{}.attentions.{}.transformer_blocks.0".format
MID = "mid_block.attentions.0.transformer_blocks.0"
LAYER = "text_model.encoder.layers.{}".format


def _at(path: str, change: Fun) -> Spoil:
    """Return what hands one layer to a function."""
    return lambda module: change(module.get_submodule(path))


def _set(path: str, **values: Any) -> Spoil:
    """Return what gives attributes of one layer other values."""

    def spoil(module: Any) -> None:
        for name, value in values.items():
            setattr(module.get_submodule(path), name, value)

    return spoil


def _forward(path: str, forward: Fun) -> Spoil:
    """Return what gives one layer another forward pass, a function of the layer and its inputs."""
    return lambda module: setattr(
        module.get_submodule(path), "forward", partial(forward, module.get_submodule(path))
    )


def _leaving(path: str, change: Fun) -> Spoil:
    """Return what changes the output of one layer."""
    return _at(path, lambda layer: layer.register_forward_hook(lambda _, __, out: change(out)))


def _entering(path: str, change: Fun) -> Spoil:
    """Return what changes the first input of one layer."""
    return _at(
        path,
        lambda layer: layer.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:])),
    )


def _config(**values: Any) -> Spoil:
    """Return what changes numbers that are read while a network runs."""
    return lambda module: setattr(module, "config", replace(module.config, **values))


def _weight(path: str, name: str, place: Any, change: Fun) -> Spoil:
    """Return what changes a part of a parameter."""

    def spoil(module: Any) -> None:
        parameter = getattr(module.get_submodule(path), name)
        parameter[place] = change(parameter[place])

    return spoil


def _channel(x: Tensor, channel: int, *, factor: float = 1.0, shift: float = 0.0) -> Tensor:
    """Change one channel of a map."""
    x = x.clone()
    x[:, channel] = x[:, channel] * factor + shift
    return x


def _norm(path: str, root: Fun) -> Spoil:
    """Return GroupNorm by hand; `root` makes the divisor of variance, elements and eps."""

    def forward(norm: Any, x: Tensor) -> Tensor:
        rows = x.unflatten(1, (norm.num_groups, -1)).flatten(2)
        variance, mean = torch.var_mean(rows, dim=-1, keepdim=True, correction=0)
        normed = ((rows - mean) / root(variance, rows.shape[-1], norm.eps)).reshape(x.shape)
        shape = (1, -1, *[1] * (x.dim() - 2))
        return normed * norm.weight.view(shape) + norm.bias.view(shape)

    return _forward(path, forward)


def _float32_norm(norm: Any, x: Tensor) -> Tensor:
    weight, bias = norm.weight.float(), norm.bias.float()
    return F.group_norm(x.float(), norm.num_groups, weight, bias, norm.eps).to(x.dtype)


def _unbiased(variance: Tensor, count: int, eps: float) -> Tensor:
    return (variance * count / (count - 1) + eps).sqrt()


def _attention(path: str, core: Fun) -> Spoil:
    """Return another core of one attention of the UNet, a function of the split q, k and v."""

    def forward(layer: Any, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        context = tokens if context is None else context
        parts = (layer.to_q(tokens), layer.to_k(context), layer.to_v(context))
        attended = core(*(layer._split_heads(part) for part in parts))
        return layer.to_out[0](attended.transpose(1, 2).flatten(2))

    return _forward(path, forward)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _last_head_steeper(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return _attend(torch.cat([query[:, :-1], query[:, -1:] * 1.001], dim=1), key, value)


def _last_heads_swapped(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return _swap_last_channels(_attend(query, key, value))


def _last_key_masked(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    seen = torch.ones(key.shape[-2], dtype=torch.bool, device=key.device)
    seen[-1] = False
    return _attend(query, key, value, seen.expand(query.shape[-2], -1))


def _keys_to_512(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return _attend(query, key[..., :512, :], value[..., :512, :])


def _scores_to_64(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = query @ key.mT * query.shape[-1] ** -0.5
    return scores.clamp(max=64).softmax(-1) @ value


def _text_attention(path: str, mask: Fun) -> Spoil:
    """Return an attention of the text encoder with a mask made of the number of places."""

    def forward(layer: Any, tokens: Tensor) -> Tensor:
        parts = (layer.q_proj(tokens), layer.k_proj(tokens), layer.v_proj(tokens))
        query, key, value = (layer._split_heads(part) for part in parts)
        seen = mask(tokens.shape[1]).to(tokens.device)
        added = seen.to(tokens.dtype) if seen.is_floating_point() else seen
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=added)
        return layer.out_proj(attended.transpose(1, 2).flatten(2))

    return _forward(path, forward)


def _last_but_one_sees_last(places: int) -> Tensor:
    mask = torch.ones(places, places, dtype=torch.bool).tril()
    mask[-2, -1] = True
    return mask


def _later_at_minus_12(places: int) -> Tensor:
    return torch.full((places, places), -12.0).triu(1)


def _vae_attention(path: str, scale: Fun) -> Spoil:
    """Return an attention of the VAE whose scale is a function of the channels."""

    def forward(layer: Any, hidden: Tensor) -> Tensor:
        tokens = layer.group_norm(hidden.flatten(2)).transpose(1, 2)
        parts = (layer.to_q(tokens), layer.to_k(tokens), layer.to_v(tokens))
        query, key, value = (part.unsqueeze(1) for part in parts)
        factor = scale(tokens.shape[-1])
        attended = F.scaled_dot_product_attention(query, key, value, scale=factor).squeeze(1)
        return layer.to_out[0](attended).transpose(1, 2).unflatten(2, hidden.shape[-2:]) + hidden

    return _forward(path, forward)


def _bottom_row_repeated(conv: Any, x: Tensor) -> Tensor:
    """Convolve a map padded with zeros, but below with its last row."""
    padded = F.pad(x, (1, 1, 1, 1))
    padded[..., -1, 1:-1] = x[..., -1, :]
    return F.conv2d(padded, conv.weight, conv.bias)


def _right_column_repeated(layer: Any, hidden: Tensor) -> Tensor:
    """Halve a map padded at the right with its last column, below with zeros."""
    return layer.conv(F.pad(F.pad(hidden, (0, 1, 0, 0), mode="replicate"), (0, 0, 0, 1)))


def _residual_louder(layer: Any, hidden: Tensor, temb: Tensor) -> Tensor:
    residual = layer.conv1(F.silu(layer.norm1(hidden)))
    residual = residual + layer.time_emb_proj(F.silu(temb))[:, :, None, None]
    return hidden + 1.0001 * layer.conv2(F.silu(layer.norm2(residual)))


def _tanh_gate(layer: Any, tokens: Tensor) -> Tensor:
    value, gate = layer.proj(tokens).chunk(2, dim=-1)
    return value * F.gelu(gate, approximate="tanh")


def _polynomial_gate(layer: Any, tokens: Tensor) -> Tensor:
    """Gate by a polynomial for erf: Abramowitz and Stegun, 7.1.26, off by up to 1.5e-7."""
    value, gate = layer.proj(tokens).chunk(2, dim=-1)
    x = gate.abs() / math.sqrt(2)
    t = 1 / (1 + 0.3275911 * x)
    tail = torch.zeros_like(t)
    for coefficient in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail = (tail + coefficient) * t
    erf = (1 - tail * torch.exp(-x * x)) * gate.sign()
    return value * 0.5 * gate * (1 + erf)


def _tf32(x: Tensor) -> Tensor:
    """Round to 10 fraction bits."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2048).round() / 2048, exponent)


def _tf32_linear(layer: Any, tokens: Tensor) -> Tensor:
    return F.linear(_tf32(tokens), _tf32(layer.weight), layer.bias)


def _swap_last_channels(x: Tensor) -> Tensor:
    """Exchange the last two channels of a map, or heads of an attention."""
    return torch.cat([x[:, :-2], x[:, -2:].flip(1)], dim=1)


def _time_at_999(module: Any) -> None:
    module.time_proj.register_forward_hook(
        lambda _, args, out: torch.where(args[0][:, None] == 999, out * 1.0001, out)
    )


def _third_as_second(timesteps: Tensor) -> Tensor:
    return (
        torch.cat([timesteps[:2], timesteps[1:2], timesteps[3:]])
        if len(timesteps) > 2
        else timesteps
    )


def _place_76(embeddings: Any) -> None:
    table = embeddings.position_embedding.weight
    table[76] = table[75]


def _half_noise(module: Any) -> None:
    plain = module.sample_latents
    module.sample_latents = lambda posterior, noise: plain(posterior, noise.half().to(noise.dtype))


def _own(
    name: str, component: str, case: str, wrong: str, module: Spoil, dtype: str = "float32"
) -> Mutant:
    return Mutant(
        id=f"own-{name}", component=component, cases=(case,), wrong=wrong, module=module,
        dtype=dtype,
    )  # fmt: skip


MUTANTS: tuple[Mutant, ...] = (
    _own("unet-eps-resnet", UNET, LOWVAR, "Eps of one resnet norm is 1.1e-5",
         _set("up_blocks.1.resnets.2.norm2", eps=1.1e-5)),
    _own("unet-eps-transformer", UNET, LOWVAR, "Eps of one transformer's GroupNorm is 1.1e-6",
         _set("mid_block.attentions.0.norm", eps=1.1e-6)),
    _own("unet-eps-layer-norm", UNET, LOWVAR, "Eps of one LayerNorm is 1.1e-5",
         _set(f"{BLOCK('down', 2, 1)}.norm3", eps=1.1e-5)),
    _own("unet-eps-last-norm", UNET, LOWVAR, "Eps of the last norm is 1.1e-5",
         _set("conv_norm_out", eps=1.1e-5)),
    _own("unet-eps-outside", UNET, LOWVAR, "Eps of one norm is added to the root",
         _norm("up_blocks.3.resnets.1.norm1", lambda variance, _, eps: variance.sqrt() + eps)),
    _own("unet-eps-clamp", UNET, UNIT, "Eps of one norm is the least variance and is not added",
         _norm("down_blocks.1.resnets.0.norm2", lambda variance, _, eps: (
             variance.clamp(min=eps).sqrt()))),
    _own("unet-unbiased-variance", UNET, UNIT, "One norm divides its variance by n - 1",
         _norm("conv_norm_out", _unbiased)),
    _own("unet-float32-norm", UNET, UNIT, "One norm of a float64 network computes in float32",
         _forward("up_blocks.3.resnets.2.norm1", _float32_norm), "float64"),
    _own("unet-head-scale", UNET, SHARP, "One head of one attention has scores 0.1 % too large",
         _attention(f"{BLOCK('down', 1, 0)}.attn1", _last_head_steeper)),
    _own("unet-heads-swapped", UNET, UNIT, "Two heads of one attention are exchanged",
         _attention(f"{BLOCK('up', 3, 2)}.attn2", _last_heads_swapped)),
    _own("unet-last-token", UNET, UNIT, "One cross-attention does not read the last token",
         _attention(f"{MID}.attn2", _last_key_masked)),
    _own("unet-scores-clamped", UNET, SHARP, "The scores of one attention end at 64",
         _attention(f"{BLOCK('down', 0, 0)}.attn1", _scores_to_64)),
    _own("unet-keys-to-512", UNET, "tiny/nonsquare", "One attention reads its first 512 keys only",
         _attention(f"{BLOCK('down', 0, 1)}.attn1", _keys_to_512)),
    _own("unet-channel", UNET, UNIT, "One channel of one convolution is 0.1 % too large",
         _leaving("mid_block.resnets.1.conv2", lambda out: _channel(out, -1, factor=1.001))),
    _own("unet-tap", UNET, UNIT, "One number of one kernel is zero",
         _weight("up_blocks.1.resnets.0.conv1", "weight", (-1, -1, -1, -1), lambda tap: 0 * tap)),
    _own("unet-bias", UNET, UNIT, "One channel of one layer lacks its bias",
         _weight(f"{MID}.attn2.to_out.0", "bias", -1, lambda bias: 0 * bias)),
    _own("unet-bottom-row", UNET, UNIT, "One convolution repeats the last row below the map",
         _forward("up_blocks.3.resnets.2.conv1", _bottom_row_repeated)),
    _own("unet-residual", UNET, UNIT, "One resnet adds 1.0001 times its residual",
         _forward("down_blocks.1.resnets.1", _residual_louder)),
    _own("unet-skip-channels", UNET, UNIT, "Two channels of one skip are exchanged",
         _entering("up_blocks.2.resnets.1", _swap_last_channels)),
    _own("unet-geglu-tanh", UNET, UNIT, "One gate is the tanh approximation of GELU",
         _forward(f"{BLOCK('up', 2, 1)}.ff.net.0", _tanh_gate)),
    _own("unet-geglu-polynomial", UNET, UNIT, "One gate of a float64 network has erf to 1e-7",
         _forward(f"{BLOCK('up', 1, 0)}.ff.net.0", _polynomial_gate), "float64"),
    _own("unet-period", UNET, UNIT, "The longest period of the embedding is 10001",
         _set("time_proj", max_period=10_001)),
    _own("unet-time-999", UNET, "tiny/t999", "The embedding of 999 alone is 0.01 % too large",
         _time_at_999),
    _own("unet-time-998", UNET, "tiny/t999", "Times end at 998",
         _entering("time_proj", lambda t: t.clamp(max=998))),
    _own("unet-third-time", UNET, "tiny/tsamples", "The third sample gets the second one's time",
         _entering("time_proj", _third_as_second)),
    _own("unet-half-bias", UNET, DENSE, "The bias of one layer is stored in float16",
         _weight("conv_in", "bias", ..., lambda bias: bias.half().to(bias.dtype))),
    _own("unet-bfloat16-row", UNET, DENSE, "One row of one matrix is stored in bfloat16",
         _weight(f"{BLOCK('up', 3, 1)}.attn2.to_v", "weight", 0, lambda row: (
             row.bfloat16().to(row.dtype)))),
    _own("unet-tf32", UNET, DENSE, "One linear layer multiplies in TF32",
         _forward(f"{BLOCK('down', 0, 1)}.ff.net.2", _tf32_linear)),
    _own("clip-eps", TEXT, LOWVAR, "Eps of one norm is 1.1e-5",
         _set(f"{LAYER(1)}.layer_norm2", eps=1.1e-5)),
    _own("clip-gelu", TEXT, UNIT, "The quick GELU of one layer has 1.7021",
         _set(f"{LAYER(1)}.mlp", coefficient=1.7021)),
    _own("clip-place-76", TEXT, UNIT, "The last place has the position of the one before",
         _at("text_model.embeddings", _place_76)),
    _own("clip-one-ahead", TEXT, UNIT, "In one layer the last place but one sees the last",
         _text_attention(f"{LAYER(0)}.self_attn", _last_but_one_sees_last)),
    _own("clip-mask-12", TEXT, UNIT, "In one layer the mask adds -12 and not minus infinity",
         _text_attention(f"{LAYER(1)}.self_attn", _later_at_minus_12)),
    _own("encoder-eps", ENCODER, LOWVAR, "Eps of one norm is 1.1e-6",
         _set("encoder.down_blocks.2.resnets.1.norm2", eps=1.1e-6)),
    _own("encoder-unbiased", ENCODER, UNIT, "The norm of most numbers has the variance of n - 1",
         _norm("encoder.down_blocks.0.resnets.0.norm1", _unbiased)),
    _own("encoder-right-column", ENCODER, UNIT, "One halving repeats the last column at the right",
         _forward("encoder.down_blocks.2.downsamplers.0", _right_column_repeated)),
    _own("encoder-logvar-20.5", ENCODER, OUTLIER, "The log-variance ends at 20.5",
         _config(logvar_max=20.5)),
    _own("encoder-logvar-29", ENCODER, OUTLIER, "The log-variance begins at -29",
         _config(logvar_min=-29.0)),
    _own("encoder-scale", ENCODER, UNIT, "Latents are scaled by 0.18216",
         _config(scaling_factor=0.18216)),
    _own("encoder-half-noise", ENCODER, DENSE, "The noise passes through float16", _half_noise),
    _own("decoder-eps", DECODER, LOWVAR, "Eps of one norm is 1.1e-6",
         _set("decoder.up_blocks.3.resnets.2.norm1", eps=1.1e-6)),
    _own("decoder-attention-scale", DECODER, SHARP, "The scale counts one channel too many",
         _vae_attention("decoder.mid_block.attentions.0", lambda count: (count + 1) ** -0.5)),
    _own("decoder-scale", DECODER, UNIT, "Latents are divided by 0.18216",
         _config(scaling_factor=0.18216)),
    _own("decoder-bottom-row", DECODER, UNIT, "The last convolution repeats the last row below",
         _forward("decoder.conv_out", _bottom_row_repeated)),
    _own("decoder-green", DECODER, UNIT, "One colour is 0.0001 too bright",
         _leaving("decoder.conv_out", lambda out: _channel(out, 1, shift=1e-4))),
)  # fmt: skip

NOT_RUN: tuple[NotRun, ...] = ()
