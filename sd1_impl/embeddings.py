"""The timestep, as a vector: sinusoids (fixed), then a two-layer perceptron (learned).

Source: Ho et al., "Denoising Diffusion Probabilistic Models", 2020, appendix B, after the
positional encoding of Vaswani et al., 2017, section 3.5.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Timesteps(nn.Module):
    """Sinusoids of the timestep at ``dim // 2`` geometrically spaced frequencies.

    Computed in float32 even in a half-precision model, whose eight to eleven bits cannot tell the
    angles of neighbouring timesteps apart; in float64 if the timesteps are float64.

    Args:
        dim: Width of the embedding, even.
        max_period: Frequencies run from 1 down to about ``1 / max_period``.
        freq_shift: Taken from the number of frequencies in the exponent's denominator.
        flip_sin_to_cos: Put the cosines before the sines.
    """

    def __init__(
        self, dim: int, *, max_period: int, freq_shift: int, flip_sin_to_cos: bool
    ) -> None:
        super().__init__()
        self.dim = dim
        self.max_period = max_period
        self.freq_shift = freq_shift
        self.flip_sin_to_cos = flip_sin_to_cos

    def forward(self, timesteps: Tensor) -> Tensor:
        """Embed timesteps.

        Args:
            timesteps: ``(batch,)``, any real dtype, 0 to 999, possibly fractional.

        Returns:
            ``(batch, dim)`` in [-1, 1]; float64 for float64 timesteps, otherwise float32.
        """
        timesteps = timesteps.to(torch.promote_types(timesteps.dtype, torch.float32))
        half = self.dim // 2
        k = torch.arange(half, dtype=timesteps.dtype, device=timesteps.device)
        frequencies = torch.exp(-math.log(self.max_period) * k / (half - self.freq_shift))
        angles = timesteps[:, None] * frequencies
        halves = [angles.sin(), angles.cos()]
        return torch.cat(halves[::-1] if self.flip_sin_to_cos else halves, dim=-1)


class TimestepEmbedding(nn.Module):
    """Linear, SiLU, linear: what every residual block is told about the time.

    Args:
        in_channels: Width of the sinusoidal embedding.
        time_embed_dim: Width of the result and of the hidden layer.
    """

    def __init__(self, in_channels: int, time_embed_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, time_embed_dim)
        self.linear_2 = nn.Linear(time_embed_dim, time_embed_dim)

    def forward(self, embedding: Tensor) -> Tensor:
        """Map ``(batch, in_channels)`` to ``(batch, time_embed_dim)``, in the module's dtype."""
        return self.linear_2(F.silu(self.linear_1(embedding)))
