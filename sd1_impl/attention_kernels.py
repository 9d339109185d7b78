"""Three ways to compute attention, equal but for rounding: in one kernel, plainly, in slices.

Scaled dot-product attention (Vaswani et al., 2017, section 3.2). They differ in the memory that the
scores take, which is what the fused kernels were invented to save (Rabe and Staats, 2021, arXiv
2112.05682; FlashAttention, Dao et al., 2022).

Shapes: B batch, N queries, L keys and values, S size of a head.
"""

from collections.abc import Callable
from itertools import product

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

    Two tensors of scores are held, before and after the softmax. In half types each score is
    rounded once it is scaled, where it seldom overflows; the softmax's own sums are float32.
    """
    return _scores(query, key, is_causal=is_causal).softmax(dim=-1) @ value


def sliced(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool = False) -> Tensor:
    """Attend plainly, one head of one sample after the other: one ``(N, L)`` of scores at once."""
    attended = torch.empty_like(query)
    for sample, head in product(*map(range, query.shape[:2])):
        one = slice(sample, sample + 1), slice(head, head + 1)
        attended[one] = plain(query[one], key[one], value[one], is_causal=is_causal)
    return attended


def _scores(query: Tensor, key: Tensor, *, is_causal: bool) -> Tensor:
    """Return ``(B, heads, N, L)``: products over the root of S; -inf where a key is not read."""
    added = query.new_zeros(())
    if is_causal:
        added = query.new_full((query.shape[-2], key.shape[-2]), -torch.inf).triu(1)
    queries, keys = query.flatten(0, 1), key.flatten(0, 1).mT
    scale = query.shape[-1] ** -0.5
    scores = torch.baddbmm(added, queries, keys, beta=int(is_causal), alpha=scale)
    return scores.unflatten(0, query.shape[:2])


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
