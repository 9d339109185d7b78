"""Wrong attention in the autoencoder: what is read, by which scale, out of which buffer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import nn

from conformance.mutants.mutant import Mutant
from sd1_impl.vae import AttentionBlock

Core = Callable[[Any, Any, Any], Any]
"""Attention itself: queries, keys and values, each `(B, N, C)`, to `(B, N, C)`."""


def layers_of(module: Any, *kinds: type[nn.Module]) -> Iterator[Any]:
    """Yield every layer of these kinds, in the order of the checkpoint."""
    return (layer for layer in module.modules() if isinstance(layer, kinds))


def fused(query: Any, key: Any, value: Any) -> Any:
    """Attend rightly, with one head."""
    one_head = (part.unsqueeze(1) for part in (query, key, value))
    return F.scaled_dot_product_attention(*one_head).squeeze(1)


def attend(layer: Any, hidden: Any, core: Core = fused) -> Any:
    """Return what the pixels read, ``(B, N, C)`` tokens.

    Args:
        layer: The attention block.
        hidden: A ``(B, C, H, W)`` map.
        core: What does the reading.
    """
    tokens = layer.group_norm(hidden.flatten(2)).transpose(1, 2)
    attended = core(layer.to_q(tokens), layer.to_k(tokens), layer.to_v(tokens))
    return layer.to_out[0](attended)


def bring_back(tokens: Any, shape: tuple[int, ...]) -> Any:
    """Make ``(B, N, C)`` tokens a map of the given shape again."""
    return tokens.transpose(1, 2).reshape(shape)


def _with_core(core: Core) -> Callable[[Any], None]:
    """Return a change of the attention itself, in every block that attends."""

    def forward(layer: Any, hidden: Any) -> Any:
        return bring_back(attend(layer, hidden, core), hidden.shape) + hidden

    def spoil(module: Any) -> None:
        for layer in layers_of(module, AttentionBlock):
            layer.forward = partial(forward, layer)

    return spoil


def _strides_ignored(query: Any, key: Any, value: Any) -> Any:
    """Read the values, a transposed map, in the order in which they lie in memory."""
    memory = value.transpose(1, 2).contiguous()
    return fused(query, key, memory.view(value.shape))


def _unscaled(query: Any, key: Any, value: Any) -> Any:
    """Attend by scores that are not divided by the root of the width."""
    return (query @ key.mT).softmax(-1) @ value


def _out_of_a_dirty_buffer(query: Any, key: Any, value: Any) -> Any:
    """Add the scores to nothing times a buffer that nobody has written."""
    dirty = query.new_full((*query.shape[:-1], key.shape[-2]), float("nan"))
    scores = 0.0 * dirty + query.shape[-1] ** -0.5 * (query @ key.mT)
    return scores.softmax(-1) @ value


ATTENTION_MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        id="vae-attn-noncontiguous-matmul",
        component="vae_decoder",
        wrong="The product with the values walks through their memory and ignores its strides",
        seen="candle#398, candle#1993",
        evidence="R",
        size="catastrophic",
        cases=("tiny/base", "tiny/nonsquare"),
        module=_with_core(_strides_ignored),
    ),
    Mutant(
        id="vae-attn-sdpa-misexport",
        component="vae_decoder",
        wrong="The fused attention loses its scale when it is exported",
        seen="apple#174 (449a16d, ef5aa89), coremltools#1823",
        evidence="R",
        size="catastrophic",
        cases=("tiny/base", "tiny-sharp/base"),
        module=_with_core(_unscaled),
    ),
    Mutant(
        id="rt-baddbmm-beta0",
        component="vae_decoder",
        wrong="The scores are added to an unwritten buffer times zero, and it holds NaN",
        seen="pytorch#187521, pytorch#194442, diffusers#2643, diffusers#13701, diffusers#14459",
        evidence="R",
        size="catastrophic",
        cases=("tiny/base", "tiny-sharp/base"),
        module=_with_core(_out_of_a_dirty_buffer),
    ),
)
"""Those of the catalogue's rows that are in the autoencoder's attention; see `vae.MUTANTS`."""
