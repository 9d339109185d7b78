"""The convolutional parts of the UNet: residual block, downsampling, upsampling.

Source: ``ResBlock``, ``Downsample`` and ``Upsample`` of
``ldm/modules/diffusionmodules/openaimodel.py``, after Ho et al., 2020, appendix B.

Shapes: B batch, C channels, H W height and width, T width of the time embedding.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from sd1_impl.config import UNetConfig


class ResnetBlock(nn.Module):
    """Two convolutions, each after GroupNorm and SiLU, around the time; added to the input.

    Args:
        config: The UNet's numbers.
        in_channels: Width of the input.
        out_channels: Width of the output; if it differs, a 1x1 convolution widens the shortcut.
    """

    def __init__(self, config: UNetConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        groups, eps = config.norm_num_groups, config.resnet_norm_eps
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.time_emb_proj = nn.Linear(config.time_embed_dim, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.conv_shortcut = (
            nn.Conv2d(in_channels, out_channels, kernel_size=1)
            if in_channels != out_channels
            else None
        )

    def forward(self, hidden: Tensor, temb: Tensor) -> Tensor:
        """Refine a feature map.

        Args:
            hidden: ``(B, in_channels, H, W)``.
            temb: ``(B, T)``, the output of ``time_embedding``, before its SiLU.

        Returns:
            ``(B, out_channels, H, W)``.
        """
        # Only SiLU reads what a norm returns: in place, it holds one map less at the peak.
        residual = F.silu(self.norm1(hidden), inplace=True)
        residual = self.conv1(residual)
        residual = residual + self.time_emb_proj(F.silu(temb))[:, :, None, None]
        residual = F.silu(self.norm2(residual), inplace=True)
        residual = self.conv2(residual)
        shortcut = hidden if self.conv_shortcut is None else self.conv_shortcut(hidden)
        return shortcut + residual


class Downsample(nn.Module):
    """A convolution with stride 2 and one pixel of padding on every side.

    Args:
        channels: Width of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C, ceil(H / 2), ceil(W / 2))``."""
        return self.conv(hidden)


class Upsample(nn.Module):
    """Nearest-neighbour enlargement, then a convolution.

    Args:
        channels: Width of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, hidden: Tensor, size: Sequence[int]) -> Tensor:
        """Enlarge ``(B, C, H, W)`` to ``(B, C, *size)``.

        ``size`` is that of the skip connection that comes next: ``(2 H, 2 W)``, or a pixel less
        where an odd map was halved. Only so do latents of any size pass through.
        """
        return self.conv(F.interpolate(hidden, size=tuple(size), mode="nearest"))
