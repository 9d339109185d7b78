"""Null mutants of mode `memory`: other ways to hold exactly the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from conformance.mutants.memory import DECODER, LATENTS, PICTURES, TEXT, UNET, heavy
from conformance.mutants.mutant import Mutant, NotRun
from conformance.mutants.unet_tools import replaced
from sd1_impl.attention import CrossAttention


def _another_order(layer: Any, tokens: Tensor, context: Tensor | None = None) -> Tensor:
    """Compute values first, then keys, then queries."""
    context = tokens if context is None else context
    value, key, query = layer.to_v(context), layer.to_k(context), layer.to_q(tokens)
    heads = (
        part.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for part in (query, key, value)
    )
    attended = layer.attend(*heads)
    result: Tensor = layer.to_out[0](attended.transpose(1, 2).flatten(2))
    return result


def _through_views(layer: nn.Conv2d, hidden: Tensor) -> Tensor:
    """Convolve a view of a view."""
    return nn.Conv2d.forward(layer, hidden.unsqueeze(0).squeeze(0).view(hidden.shape))


def _dead_local_deleted(layer: nn.LayerNorm, tokens: Tensor) -> Tensor:
    """Read a result from a local that is deleted as soon as it is dead."""
    result = nn.LayerNorm.forward(layer, tokens)
    answer = result[...]
    del result
    return answer


def _null(name: str, component: str, way: str, module: Callable[[Any], None], case: str) -> Mutant:
    return heavy(
        f"null-mem-{name}",
        component,
        f"Nothing: {way}",
        cases=(case,),
        module=module,
        evidence="null",
    )


MUTANTS: tuple[Mutant, ...] = (
    _null(
        "another-order",
        UNET,
        "values, keys and queries are computed in this order",
        replaced(CrossAttention, _another_order),
        *LATENTS,
    ),
    _null(
        "dead-local-deleted",
        TEXT,
        "a result is handed on as a view, and the local that held it is deleted",
        replaced(nn.LayerNorm, _dead_local_deleted),
        "tiny/batch2",
    ),
    _null(
        "views-of-views",
        DECODER,
        "convolutions read their map through three views",
        replaced(nn.Conv2d, _through_views),
        *PICTURES,
    ),
)
"""Nothing more is held at any time, nor less."""

NOT_RUN: tuple[NotRun, ...] = ()
