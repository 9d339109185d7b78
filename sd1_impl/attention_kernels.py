"""Three ways to compute attention, equal but for rounding: in one kernel, plainly, in slices.

Scaled dot-product attention (Vaswani et al., 2017, section 3.2). They differ in the memory that the
scores take, which is what the fused kernels were invented to save (Rabe and Staats, 2021, arXiv
2112.05682; FlashAttention, Dao et al., 2022).

Shapes: B batch, N queries, L keys and values, S size of a head.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kernel = Callable[..., Tensor]
"""Takes queries ``(B, heads, N, S)``, keys and values ``(B, heads, L, S)``, and ``is_causal``:
whether a query reads only the keys up to its own place. Returns ``(B, heads, N, S)``."""


def fused(query: Tensor, key: Tensor, value: Tensor, **mask: bool) -> Tensor:
    """Attend in one kernel of torch, which need not keep the scores: the default."""
    return F.scaled_dot_product_attention(query, key, value, **mask)


def plain(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool = False) -> Tensor:
    """Attend as the paper writes it: a product, a softmax, a product; all scores at once.

    Of half types scores and softmax are float32: their sums are long, and a score may overflow.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(wide) @ key.to(wide).transpose(-2, -1) * query.shape[-1] ** -0.5
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores.softmax(dim=-1).to(value.dtype) @ value


def sliced(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool = False) -> Tensor:
    """Attend plainly, one head of one sample after the other: one ``(N, L)`` of scores at once."""
    return torch.stack(
        [
            torch.stack([plain(*head, is_causal=is_causal) for head in zip(*sample, strict=True)])
            for sample in zip(query, key, value, strict=True)
        ]
    )


KERNELS: dict[str, Kernel] = {"fused": fused, "plain": plain, "sliced": sliced}
"""By name."""


def use_kernel(network: nn.Module, name: str) -> int:
    """Let every attention of a network be computed by a kernel.

    Args:
        network: Any of this package, or a block of one.
        name: One of `KERNELS`.

    Returns:
        How many attentions there are.
    """
    layers = [layer for layer in network.modules() if hasattr(layer, "attend")]
    for layer in layers:
        layer.attend = KERNELS[name]
    return len(layers)
