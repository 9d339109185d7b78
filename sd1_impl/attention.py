"""The spatial transformer: every pixel of a feature map reads every other, then the prompt.

Source: LDM (Rombach et al., 2022), section 3.3 and appendix E.2.1; ``ldm/modules/attention.py``.

Shapes: B batch, C channels of the feature map, H W its height and width, N = H W tokens,
D = heads x head size the token width, L tokens of the context, E their width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from sd1_impl.attention_kernels import Kernel, fused
from sd1_impl.config import UNetConfig


class CrossAttention(nn.Module):
    """Multi-head attention of tokens over a context, or over themselves if there is none.

    Scaled dot-product attention (Vaswani et al., 2017, section 3.2) without a mask: Stable
    Diffusion v1 attends to all 77 text tokens, padding included.

    Args:
        dim: Token width D, divisible by ``num_heads``.
        context_dim: Context width E; D for self-attention.
        num_heads: Number of heads, each of size ``dim // num_heads``.
    """

    def __init__(self, dim: int, context_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.attend: Kernel = fused

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            tokens: ``(B, N, D)``, in the module's dtype.
            context: ``(B, L, E)``, or None to attend to ``tokens``.

        Returns:
            ``(B, N, D)``, to be added to the residual stream.
        """
        context = tokens if context is None else context
        query = self._split_heads(self.to_q(tokens))
        key = self._split_heads(self.to_k(context))
        value = self._split_heads(self.to_v(context))
        attended = self.attend(query, key, value)
        return self.to_out[0](attended.transpose(1, 2).flatten(2))  # heads back into D

    def _split_heads(self, tokens: Tensor) -> Tensor:
        """View ``(B, N, D)`` as ``(B, heads, N, D / heads)``."""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class GEGLU(nn.Module):
    """A linear layer gated by the exact (erf) GELU of another (Shazeer, 2020, arXiv 2002.05202).

    Args:
        dim_in: Input width.
        dim_out: Output width; one matrix computes value and gate, in this order.
    """

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, 2 * dim_out)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``(B, N, dim_in)`` to ``(B, N, dim_out)``."""
        value, gate = self.proj(tokens).chunk(2, dim=-1)
        # Here a UNet holds most memory: a product in place is one of its widest tensors less.
        return F.gelu(gate).mul_(value)


class FeedForward(nn.Module):
    """GEGLU, then a linear layer back to the token width.

    Args:
        dim: Token width D.
        hidden_dim: Width between the two layers.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        dropout = nn.Identity()  # zero in SD v1, but counted by the checkpoint's indices
        self.net = nn.ModuleList([GEGLU(dim, hidden_dim), dropout, nn.Linear(hidden_dim, dim)])

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``(B, N, D)`` to ``(B, N, D)``, to be added to the residual stream."""
        for layer in self.net:
            tokens = layer(tokens)
        return tokens


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward: each normalised before, added after.

    Args:
        config: The UNet's numbers.
        dim: Token width D.
        num_heads: Heads of both attentions.
    """

    def __init__(self, config: UNetConfig, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.attn1 = CrossAttention(dim, dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.attn2 = CrossAttention(dim, config.cross_attention_dim, num_heads)
        self.norm3 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.ff = FeedForward(dim, dim * config.feed_forward_ratio)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Transform ``(B, N, D)`` tokens, reading a ``(B, L, E)`` context; same shape out."""
        tokens = tokens + self.attn1(self.norm1(tokens))
        tokens = tokens + self.attn2(self.norm2(tokens), context)
        return tokens + self.ff(self.norm3(tokens))


class SpatialTransformer(nn.Module):
    """A transformer block on the pixels of a feature map, added to the map.

    Args:
        config: The UNet's numbers.
        channels: Width C of the feature map.
        num_heads: Heads; the token width is D = ``num_heads * (channels // num_heads)``, which is C
            unless the heads do not divide it.
    """

    def __init__(self, config: UNetConfig, channels: int, num_heads: int) -> None:
        super().__init__()
        dim = num_heads * (channels // num_heads)
        self.norm = nn.GroupNorm(config.norm_num_groups, channels, eps=config.transformer_norm_eps)
        self.proj_in = nn.Conv2d(channels, dim, kernel_size=1)
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock(config, dim, num_heads)])
        self.proj_out = nn.Conv2d(dim, channels, kernel_size=1)

    def forward(self, hidden: Tensor, context: Tensor) -> Tensor:
        """Transform a ``(B, C, H, W)`` map, reading a ``(B, L, E)`` context; same shape out."""
        size = hidden.shape[-2:]
        # Pixels become tokens and tokens pixels by views: the map keeps its memory format.
        tokens = self.proj_in(self.norm(hidden)).flatten(2).transpose(1, 2)  # (B, N, D)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return hidden + self.proj_out(tokens.transpose(1, 2).unflatten(2, size))
