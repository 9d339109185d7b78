"""TF32 and its like on any machine: products whose operands keep only a few fraction bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from conformance.dispatch import Mode

aten = torch.ops.aten

_FRACTION = 23
"""Fraction bits of float32."""


def rounded_to(tensor: Tensor, bits: int) -> Tensor:
    """Round float32 values to fewer fraction bits, ties to even.

    Args:
        tensor: float32; any other dtype is returned as it is.
        bits: Fraction bits that stay: 10 of TF32, 7 of bfloat16.

    Returns:
        float32, same shape; what is not finite stays what it is.
    """
    if tensor.dtype is not torch.float32:
        return tensor
    dropped = _FRACTION - bits
    word = tensor.contiguous().view(torch.int32)
    half = (1 << (dropped - 1)) - 1 + ((word >> dropped) & 1)
    kept = ((word + half) & ~((1 << dropped) - 1)).view(torch.float32)
    return torch.where(tensor.isfinite(), kept, tensor).view_as(tensor)


class RoundedOperands(Mode):
    """Round both operands of every convolution and matrix product; sums stay float32.

    Fused attention is taken apart into its two products, since the second one reads weights that
    are made inside: rounding query, key and value alone would leave those exact. As in a fused
    kernel they are rounded before they are divided by their sum.
    """

    def __init__(self, bits: int) -> None:
        """Keep so many fraction bits of each operand."""
        super().__init__()
        self.bits = bits

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Round the operands of products; run everything else as it is."""
        if func in _ATTENTION:
            return self._attend(*args, **kwargs)
        places = _OPERANDS.get(func)
        if places is None:
            return func(*args, **kwargs)
        operands = [self.rounded(a) if i in places else a for i, a in enumerate(args)]
        return func(*operands, **kwargs)

    def rounded(self, tensor: Tensor) -> Tensor:
        """Round one operand."""
        return rounded_to(tensor, self.bits)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        _dropout: float = 0.0,
        is_causal: bool = False,  # noqa: FBT001, FBT002 - the op's own signature
        *,
        attn_mask: Tensor | None = None,
        scale: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend, (B, heads, N, size) each; return what is attended and the log of the sums."""
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        scores = factor * (self.rounded(query) @ self.rounded(key).transpose(-1, -2))
        if is_causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        if attn_mask is not None:
            seen = attn_mask.dtype is torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if seen else scores + attn_mask
        highest = scores.amax(-1, keepdim=True)
        weights = torch.exp(scores - highest)
        total = weights.sum(-1, keepdim=True)
        attended = (self.rounded(weights) @ self.rounded(value)) / total
        tokens_first = attended.transpose(1, 2).contiguous()  # as fused kernels lay it out
        return tokens_first.transpose(1, 2), (highest + total.log()).squeeze(-1)


_ATTENTION: tuple[Callable[..., Any], ...] = (
    aten._scaled_dot_product_flash_attention_for_cpu.default,  # noqa: SLF001 - the op's name
)

_OPERANDS: dict[Any, tuple[int, int]] = {
    aten.convolution.default: (0, 1),
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.baddbmm.default: (1, 2),
}
"""By operation, the places of the two operands."""
