"""torch's attention seen, or replaced, from outside: for modules that have no switch of their own.

What stands in for the fused kernel is the textbook's two products and a softmax.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from conformance.errors import UnsupportedError

Attention = Callable[..., Tensor]
"""Takes (query, key, value, added to the scores or None, scale)."""


def attend(
    attention: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002 - torch's own signature
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: FBT001, FBT002
) -> Tensor:
    """Stand in for `F.scaled_dot_product_attention`, whose arguments these are but the first.

    Raises:
        UnsupportedError: Dropout, or heads that share keys, neither of which SD v1 has.
    """
    if dropout_p or enable_gqa:
        message = "its attention has dropout or shared keys: nothing stands in for that"
        raise UnsupportedError(message)
    added = attn_mask
    if is_causal:
        places = (query.shape[-2], key.shape[-2])
        added = torch.ones(places, dtype=torch.bool, device=query.device).tril()
    if added is not None and added.dtype is torch.bool:
        added = torch.zeros_like(added, dtype=query.dtype).masked_fill(~added, -torch.inf)
    return attention(query, key, value, added, query.shape[-1] ** -0.5 if scale is None else scale)


def plain(query: Tensor, key: Tensor, value: Tensor, added: Tensor | None, scale: float) -> Tensor:
    """Attend by a product, a softmax and a product; of half types the softmax's sums are float32.

    Two tensors of scores are held and no more: what a port holds is judged with this in it.
    """
    return _scores(query, key, added, scale).softmax(-1) @ value


def upcast(query: Tensor, key: Tensor, value: Tensor, added: Tensor | None, scale: float) -> Tensor:
    """Attend plainly; scores and softmax of half types are float32, and so take twice as much."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = _scores(query.to(wide), key.to(wide), added, scale)
    return scores.softmax(-1).to(value.dtype) @ value


def _scores(query: Tensor, key: Tensor, added: Tensor | None, scale: float) -> Tensor:
    scores = (query * scale) @ key.transpose(-2, -1)
    return scores if added is None else scores.add_(added)


def sliced(query: Tensor, key: Tensor, value: Tensor, added: Tensor | None, scale: float) -> Tensor:
    """Attend plainly, one sample and head after the other."""
    if query.dim() == len(("tokens", "size")):
        return plain(query, key, value, added, scale)
    masks = [added] * len(query)
    if added is not None and added.dim() == query.dim():
        masks = list(added.expand(len(query), *added.shape[1:]))
    parts = zip(query, key, value, masks, strict=True)
    return torch.stack([sliced(*part, scale) for part in parts])


class AttentionCalls(TorchFunctionMode):
    """Watch for torch's attention, which may be replaced; a run that never comes to it declines."""

    def __init__(self, attention: Attention | None = None) -> None:
        """Take what stands in for it; None to leave it."""
        super().__init__()
        self.stand_in = None if attention is None else partial(attend, attention)
        self.calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count the calls of torch's attention; run everything else as it is."""
        if func is F.scaled_dot_product_attention:
            self.calls += 1
            func = self.stand_in or func
        return func(*args, **(kwargs or {}))

    def __exit__(self, *error: object) -> None:
        """Look at what came.

        Raises:
            UnsupportedError: Nothing did.
        """
        super().__exit__(*error)
        if not self.calls and error[0] is None:
            message = "it never calls torch's scaled_dot_product_attention"
            raise UnsupportedError(message)
