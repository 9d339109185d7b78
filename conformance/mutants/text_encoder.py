"""Wrong text encoders: masks, activation, norms, places, tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformance.mutants.mutant import Mutant, NotRun
from sd1_impl.text_encoder import MLP, CausalSelfAttention

Core = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attends: query, key and value in, each (B, heads, L, C / heads), and the same out."""


def _all(module: Any, kind: type) -> list[Any]:
    """Return every layer of a kind."""
    return [layer for layer in module.modules() if isinstance(layer, kind)]


def _attention(core: Core) -> Callable[[Any], None]:
    """Attend in another way in every layer."""

    def spoil(module: Any) -> None:
        for layer in _all(module, CausalSelfAttention):
            layer.forward = _attend(layer, core)

    return spoil


def _attend(layer: Any, core: Core) -> Callable[[Tensor], Tensor]:
    """Return the forward pass of one attention layer with another core."""

    def forward(tokens: Tensor) -> Tensor:
        parts = (layer.q_proj, layer.k_proj, layer.v_proj)
        attended = core(*(layer._split_heads(part(tokens)) for part in parts))
        return layer.out_proj(attended.transpose(1, 2).flatten(2))

    return forward


def _past(query: Tensor) -> Tensor:
    """Return where a token may look: itself and before, (L, L), bool."""
    length = query.shape[-2]
    return torch.ones(length, length, dtype=torch.bool, device=query.device).tril()


def _no_mask(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value)


def _additive_ones(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    future = (~_past(query)).to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=future)


def _unscaled(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    mask = _past(query)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1)


def _first_sees_nothing(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    mask = _past(query)
    mask[0] = False
    scores = query @ key.mT * query.shape[-1] ** -0.5
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value


def _padding_mask(module: Any) -> None:
    seen: dict[str, Tensor] = {}

    def look(_: Any, args: tuple[Tensor, ...]) -> None:
        ends = (args[0] == module.config.eos_token_id).int()
        run = ends.flip(-1).cumprod(-1).flip(-1).bool()  # the ends that close a row
        seen["padding"] = run & run.roll(1, -1)  # all of them but the first

    def core(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mask = _past(query) & ~seen["padding"][:, None, None]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    module.register_forward_pre_hook(look)
    _attention(core)(module)


def _activation(function: Callable[[Tensor], Tensor]) -> Callable[[Any], None]:
    """Use another activation in every layer."""

    def spoil(module: Any) -> None:
        for mlp in _all(module, MLP):
            mlp.forward = _feed_forward(mlp, function)

    return spoil


def _feed_forward(mlp: Any, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the forward pass of one feed-forward layer with another activation."""
    return lambda tokens: mlp.fc2(function(mlp.fc1(tokens)))


def _fast_quick_gelu(hidden: Tensor) -> Tensor:
    """Quick GELU whose tanh is a continued fraction: wrong by up to 7e-4 times the input."""
    x = (hidden * (1.702 / 2)).clamp(-5, 5)
    square = x * x
    above = x * (945 + square * (105 + square))
    tanh = (above / (945 + square * (420 + square * 15))).clamp(-1, 1)
    return hidden * (0.5 + 0.5 * tanh)


def _small_eps(module: Any) -> None:
    for norm in _all(module, nn.LayerNorm):
        norm.eps = 1e-6


def _column_of_positions(module: Any) -> None:
    embeddings = module.text_model.embeddings

    def forward(input_ids: Tensor) -> Tensor:
        column = torch.arange(input_ids.shape[1], device=input_ids.device)[:, None]
        return embeddings.token_embedding(input_ids) + embeddings.position_embedding(column)

    embeddings.forward = forward


def _no_final_norm(module: Any) -> None:
    module.text_model.final_layer_norm.forward = lambda tokens: tokens


def _last_but_one(module: Any) -> None:
    encoder = module.text_model.encoder

    def forward(tokens: Tensor) -> Tensor:
        states = [tokens]
        for layer in encoder.layers:
            states.append(layer(states[-1]))
        return states[-2]

    encoder.forward = forward


def _end_is_two(module: Any) -> None:
    module.config = replace(module.config, eos_token_id=2)


def _last_end(module: Any) -> None:
    def answer(_: Any, args: tuple[Tensor, ...], out: tuple[Tensor, Tensor]) -> Any:
        (ids,), (states, _pooled) = args, out
        ends = (ids == module.config.eos_token_id).int()
        last = ids.shape[1] - 1 - ends.flip(1).argmax(1)
        return states, states[torch.arange(ids.shape[0]), last]

    module.register_forward_hook(answer)


def _zeros_for_empty(module: Any) -> None:
    def answer(_: Any, args: tuple[Tensor, ...], out: tuple[Tensor, Tensor]) -> Any:
        empty = args[0][:, 1] == module.config.eos_token_id
        states, pooled = out
        return states.masked_fill(empty[:, None, None], 0), pooled.masked_fill(empty[:, None], 0)

    module.register_forward_hook(answer)


def _eight_bits(module: Any) -> None:
    embeddings = module.text_model.embeddings
    for table in (embeddings.token_embedding, embeddings.position_embedding):
        weight = table.weight.data
        step = weight.abs().amax(dim=-1, keepdim=True) / 127
        table.weight.data = (weight / step).round() * step


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        id="clip-no-causal-mask",
        component="text_encoder",
        wrong="Every token reads the whole text, what follows it included",
        seen="tinygrad 98d6264, sgl-project/sglang#14364",
        evidence="R",
        size="catastrophic",
        cases=("tiny/base", "odd/base", "tiny/batch3"),
        module=_attention(_no_mask),
    ),
    Mutant(
        id="clip-mask-additive-ones",
        component="text_encoder",
        wrong="The scores of later tokens get 1 added, where minus infinity belongs",
        seen="candle#338 (fc265d9)",
        evidence="R",
        size="catastrophic",
        cases=("tiny/base", "odd/base", "tiny-sharp/base"),
        module=_attention(_additive_ones),
    ),
    Mutant(
        id="own-clip-unscaled",
        component="text_encoder",
        wrong="Attention's scores are not divided by the root of a head's size",
        seen="a newcomer's port in NumPy",
        size="catastrophic",
        cases=("tiny/base", "odd/base"),
        module=_attention(_unscaled),
    ),
    Mutant(
        id="clip-exact-gelu",
        component="text_encoder",
        wrong="The activation is GELU itself, not the sigmoid that stands in for it",
        seen="candle clip.rs, candle#901, keras-cv#1130",
        evidence="C",
        size="visible",
        cases=("tiny/base", "odd/base"),
        module=_activation(F.gelu),
    ),
    Mutant(
        id="own-clip-tanh-gelu",
        component="text_encoder",
        wrong="The activation is GELU by tanh, the default of several libraries",
        seen="a newcomer's port in tinygrad, whose gelu() it is; jax.nn.gelu",
        size="visible",
        cases=("tiny/base", "odd/base"),
        module=_activation(partial(F.gelu, approximate="tanh")),
    ),
    Mutant(
        id="clip-ln-eps",
        component="text_encoder",
        wrong="Every layer norm adds 1e-6 to the variance",
        seen="stable-diffusion.cpp ed37498",
        evidence="R",
        size="subtle",
        cases=("tiny-lowvar/base", "odd-lowvar/base"),
        module=_small_eps,
    ),
    Mutant(
        id="clip-position-ids-shape",
        component="text_encoder",
        wrong="Positions stand in a column, so that they run along the batch",
        seen="candle#342",
        evidence="R",
        size="catastrophic",
        cases=("tiny/base", "tiny/repeated", "odd/base"),
        module=_column_of_positions,
    ),
    Mutant(
        id="clip-final-ln-missing",
        component="text_encoder",
        wrong="What the last layer gives is handed out as it is, without a norm",
        seen="diffusers#1721, A1111#2001",
        evidence="R",
        size="catastrophic",
        cases=("tiny/base", "odd/base"),
        module=_no_final_norm,
    ),
    Mutant(
        id="clip-wrong-layer",
        component="text_encoder",
        wrong="The final norm reads the last layer but one, as SD v2 does",
        seen="diffusers#1863, #1721",
        evidence="R",
        size="visible",
        cases=("tiny/base", "odd/base"),
        module=_last_but_one,
    ),
    Mutant(
        id="clip-pool-argmax",
        component="text_encoder",
        wrong="The end is sought as id 2, which no text has: the pooled state is that of the start",
        seen="transformers#21029, #24650, #24777; diffusers#10754; mlfoundations/open_clip#1154",
        evidence="R",
        size="dormant",
        cases=("odd/base", "odd/several-eos", "tiny/batch3"),
        module=_end_is_two,
        dormant=True,
    ),
    Mutant(
        id="own-clip-last-end",
        component="text_encoder",
        wrong="The pooled state is that of the last end of text, which is padding",
        seen="a newcomer's port in tinygrad",
        size="visible",
        cases=("tiny/base", "tiny/several-eos", "odd/base"),
        module=_last_end,
    ),
    Mutant(
        id="clip-empty-prompt-zeros",
        component="text_encoder",
        wrong="An empty text is not encoded but answered with zeros",
        seen="apple aa0ec6e",
        evidence="R",
        size="visible",
        cases=("tiny/empty", "odd/empty", "tiny/batch3"),
        module=_zeros_for_empty,
    ),
    Mutant(
        id="clip-encode-batch-nan",
        component="text_encoder",
        wrong="The first token may read nothing, not even itself: its softmax is not a number",
        seen="keras-team/keras#19045",
        evidence="R",
        size="catastrophic",
        cases=("tiny/base", "odd/base", "tiny/batch3"),
        module=_attention(_first_sees_nothing),
    ),
    Mutant(
        id="fix-clip-padding-mask",
        component="text_encoder",
        wrong="Padding is kept out of attention, though SD v1 was trained with it",
        evidence="fix",
        size="visible",
        cases=("tiny/base", "tiny/short", "odd/empty"),
        module=_padding_mask,
    ),
    Mutant(
        id="num-aot-text-encoder-1e-3",
        component="text_encoder",
        wrong="The sigmoid of the activation comes from a short continued fraction, for speed",
        seen="facebookincubator/AITemplate#141",
        evidence="R",
        size="subtle",
        cases=("tiny/base", "odd/base"),
        module=_activation(_fast_quick_gelu),
    ),
    Mutant(
        id="num-embedding-quantised",
        component="text_encoder",
        wrong="Rows of both embedding tables are rounded to 255 levels each",
        seen="stable-diffusion.cpp#840, #859",
        evidence="R",
        size="visible",
        cases=("tiny/base", "odd/base", "tiny-dense/base"),
        module=_eight_bits,
    ),
)

NOT_RUN: tuple[NotRun, ...] = (
    NotRun(
        "clip-mask-finite-large-negative",
        "Where infinity exists it changes no bit: exp(-1e4) is 0 as exp(-inf) is, and no row is "
        "masked twice down to nothing; the NaN was the accelerator's",
    ),
)
