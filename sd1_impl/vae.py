"""The autoencoder of Stable Diffusion v1: images to latents an eighth their size, and back.

Source: LDM (Rombach et al., 2022), section 3.1 and appendix G; ``Encoder`` and ``Decoder`` of
``ldm/modules/diffusionmodules/model.py``, ``AutoencoderKL`` of ``ldm/models/autoencoder.py``.
Attribute names are the keys of diffusers; the published file of SD v1-5 still calls the attention's
``to_q``, ``to_k``, ``to_v``, ``to_out.0`` by older names: ``query``, ``key``, ``value``,
``proj_attn``.

Shapes: B batch, C channels, H W height and width of a feature map, N = H W pixels as tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd1_impl.attention_kernels import Kernel, fused
from sd1_impl.config import VAEConfig
from sd1_impl.network_inputs import check_kind, check_like, check_map
from sd1_impl.tiling import Tiling, by_sample, by_tile


class ResnetBlock(nn.Module):
    """The UNet's residual block without the time: norm, SiLU, convolution, twice; then the input.

    Args:
        config: The autoencoder's numbers.
        in_channels: Width of the input.
        out_channels: Width of the output; if it differs, a 1x1 convolution adapts the shortcut.
    """

    def __init__(self, config: VAEConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = _group_norm(config, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm2 = _group_norm(config, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.conv_shortcut = (
            nn.Conv2d(in_channels, out_channels, kernel_size=1)
            if in_channels != out_channels
            else None
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``."""
        # Only SiLU reads what a norm returns: in place, it holds one map less at the peak.
        residual = F.silu(self.norm1(hidden), inplace=True)
        residual = self.conv1(residual)
        residual = F.silu(self.norm2(residual), inplace=True)
        residual = self.conv2(residual)
        shortcut = hidden if self.conv_shortcut is None else self.conv_shortcut(hidden)
        return shortcut + residual


class AttentionBlock(nn.Module):
    """Every pixel reads every other, with a single head as wide as the map; added to the map.

    ``AttnBlock`` of the CompVis code, whose 1x1 convolutions are linear layers here.

    Args:
        config: The autoencoder's numbers.
        channels: Width C of the feature map.
    """

    def __init__(self, config: VAEConfig, channels: int) -> None:
        super().__init__()
        self.group_norm = _group_norm(config, channels)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])
        self.attend: Kernel = fused

    def forward(self, hidden: Tensor) -> Tensor:
        """Transform a ``(B, C, H, W)`` map; same shape out."""
        tokens = self.group_norm(hidden.flatten(2)).transpose(1, 2)  # (B, N, C)
        query, key, value = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        one_head = (part.unsqueeze(1) for part in (query, key, value))  # (B, 1, N, C) each
        attended = self.attend(*one_head).squeeze(1)
        tokens = self.to_out[0](attended)
        residual = tokens.transpose(1, 2).unflatten(2, hidden.shape[-2:])
        # A sum has its first term's memory format: the map's, where the tokens' is channels-last.
        return hidden + residual


class Downsample(nn.Module):
    """A convolution with stride 2 and a row and a column of zeros, at the bottom and the right.

    The UNet pads every side instead: either choice shifts everything by a pixel from the other.

    Args:
        channels: Width of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C, H // 2, W // 2)``."""
        return self.conv(F.pad(hidden, (0, 1, 0, 1)))  # left, right, top, bottom


class Upsample(nn.Module):
    """Nearest-neighbour enlargement to twice the size, then a convolution.

    Args:
        channels: Width of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C, 2 H, 2 W)``."""
        return self.conv(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))


class DownBlock(nn.Module):
    """One level of the encoder: residual blocks, then half the size.

    Args:
        config: The autoencoder's numbers.
        level: Which entry of ``config.block_out_channels``.
        in_channels: Width of the incoming map.
    """

    def __init__(self, config: VAEConfig, level: int, in_channels: int) -> None:
        super().__init__()
        width = config.block_out_channels[level]
        self.resnets = _resnets(config, config.layers_per_block, in_channels, width)
        is_last = level == len(config.block_out_channels) - 1
        self.downsamplers = nn.ModuleList([] if is_last else [Downsample(width)])

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to the level's width, and to half of H and W."""
        for layer in (*self.resnets, *self.downsamplers):
            hidden = layer(hidden)
        return hidden


class MidBlock(nn.Module):
    """The bottom of both halves: residual block, attention, residual block.

    Args:
        config: The autoencoder's numbers; the width is the last level's.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        width = config.block_out_channels[-1]
        self.attentions = nn.ModuleList([AttentionBlock(config, width)])
        self.resnets = _resnets(config, 2, width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        hidden = self.resnets[0](hidden)
        hidden = self.attentions[0](hidden)
        return self.resnets[1](hidden)


class UpBlock(nn.Module):
    """One level of the decoder: residual blocks, one more than in the encoder, then twice the size.

    Args:
        config: The autoencoder's numbers.
        level: Which entry of ``config.block_out_channels``.
        in_channels: Width of the incoming map.
    """

    def __init__(self, config: VAEConfig, level: int, in_channels: int) -> None:
        super().__init__()
        width = config.block_out_channels[level]
        self.resnets = _resnets(config, config.layers_per_block + 1, in_channels, width)
        self.upsamplers = nn.ModuleList([Upsample(width)] if level > 0 else [])

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to the level's width, and to twice H and W."""
        for layer in (*self.resnets, *self.upsamplers):
            hidden = layer(hidden)
        return hidden


class Encoder(nn.Module):
    """From the image to the moments of its latents, before ``quant_conv``.

    Args:
        config: The autoencoder's numbers.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], kernel_size=3, padding=1)
        self.down_blocks = nn.ModuleList()
        hidden = widths[0]
        for level, width in enumerate(widths):
            self.down_blocks.append(DownBlock(config, level, hidden))
            hidden = width
        self.mid_block = MidBlock(config)
        self.conv_norm_out = _group_norm(config, hidden)
        self.conv_out = nn.Conv2d(hidden, 2 * config.latent_channels, kernel_size=3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, 2 latent_channels, H // 8, W // 8)``."""
        hidden = self.conv_in(image)
        for block in (*self.down_blocks, self.mid_block):
            hidden = block(hidden)
        return self.conv_out(F.silu(self.conv_norm_out(hidden), inplace=True))


class Decoder(nn.Module):
    """From the latents, after ``post_quant_conv``, to the image.

    Args:
        config: The autoencoder's numbers.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        hidden = widths[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, hidden, kernel_size=3, padding=1)
        self.up_blocks = nn.ModuleList()  # before mid_block, as in the checkpoint
        for level in reversed(range(len(widths))):
            self.up_blocks.append(UpBlock(config, level, hidden))
            hidden = widths[level]
        self.mid_block = MidBlock(config)
        self.conv_norm_out = _group_norm(config, hidden)
        self.conv_out = nn.Conv2d(hidden, config.out_channels, kernel_size=3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Map ``(B, latent_channels, H, W)`` to ``(B, out_channels, 8 H, 8 W)``."""
        hidden = self.conv_in(latents)
        for block in (self.mid_block, *self.up_blocks):
            hidden = block(hidden)
        return self.conv_out(F.silu(self.conv_norm_out(hidden), inplace=True))


@dataclass(frozen=True, eq=False)
class DiagonalGaussian:
    """What the encoder knows of an image's latents: independent normal distributions.

    Attributes:
        mean: ``(B, latent_channels, H, W)``; also the mode.
        logvar: Logarithm of the variance, of the same shape.
    """

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Draw latents (Kingma and Welling, 2013, section 2.4).

        Args:
            noise: Standard normal, of the mean's shape and dtype.

        Returns:
            ``mean + std * noise``, of the same shape: latents not yet scaled.

        Raises:
            ValueError: If the noise has another shape, device or dtype; under autocast, which
                leaves some tensors wider than others, any floating dtype is read.
        """
        check_like("noise", noise, self.mean)
        return self.mean + torch.exp(0.5 * self.logvar) * noise


class AutoencoderKL(nn.Module):
    """The autoencoder of Stable Diffusion v1.

    The halves do not know each other: deleting ``decoder`` and ``post_quant_conv``, or ``encoder``
    and ``quant_conv``, leaves the other half working.

    Args:
        config: Its shape.

    Attributes:
        by_sample: Whether the samples of a batch are computed one after the other.
        tiling: How pictures larger than a tile are cut; None for not at all. `sd1_impl.tiling`
            says what both save and cost.
    """

    by_sample = False
    tiling: Tiling | None = None

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        moments, latents = 2 * config.latent_channels, config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(moments, moments, kernel_size=1)
        self.post_quant_conv = nn.Conv2d(latents, latents, kernel_size=1)

    def encode(self, image: Tensor) -> DiagonalGaussian:
        """Encode images.

        Args:
            image: ``(B, in_channels, H, W)`` in [-1, 1], H and W at least 8; what is beyond a
                multiple of 8 is seen, but gets no latent of its own.

        Returns:
            The posterior of the latents, ``(B, latent_channels, H // 8, W // 8)``, not yet scaled.

        Raises:
            ValueError: If the shape, the dtype or the device does not fit.
        """
        check_map("image", image, self.config.in_channels, self.config.downsampling_factor)
        check_kind("image", image, self.encoder)
        factor = self.config.downsampling_factor
        moments = self._in_parts(self._encode, image, reads=factor, writes=1)
        mean, logvar = moments.chunk(2, dim=1)
        logvar = logvar.clamp(self.config.logvar_min, self.config.logvar_max)
        return DiagonalGaussian(mean, logvar)

    def sample_latents(self, posterior: DiagonalGaussian, noise: Tensor) -> Tensor:
        """Draw latents at the UNet's scale, of about unit variance.

        Args:
            posterior: From `encode`.
            noise: Standard normal, of the posterior's shape and dtype.

        Returns:
            ``(B, latent_channels, H // 8, W // 8)``, times ``scaling_factor``.
        """
        return posterior.sample(noise) * self.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents.

        Args:
            latents: ``(B, latent_channels, H, W)`` at the UNet's scale, any H and W.

        Returns:
            ``(B, out_channels, 8 H, 8 W)``, about in [-1, 1], not clipped.

        Raises:
            ValueError: If the shape, the dtype or the device does not fit.
        """
        check_map("latents", latents, self.config.latent_channels)
        check_kind("latents", latents, self.decoder)
        factor = self.config.downsampling_factor
        return self._in_parts(self._decode, latents, reads=1, writes=factor)

    def _encode(self, image: Tensor) -> Tensor:
        """Return the mean and the logarithm of the variance of an image's latents, as channels."""
        return self.quant_conv(self.encoder(image))

    def _decode(self, latents: Tensor) -> Tensor:
        """Return the image of latents at the UNet's scale."""
        return self.decoder(self.post_quant_conv(latents / self.config.scaling_factor))

    def _in_parts(
        self, compute: Callable[[Tensor], Tensor], whole: Tensor, *, reads: int, writes: int
    ) -> Tensor:
        """Compute all at once, unless memory is to be saved."""
        if self.tiling is not None:
            compute = partial(by_tile, compute, tiling=self.tiling, reads=reads, writes=writes)
        return by_sample(compute, whole) if self.by_sample else compute(whole)


def _group_norm(config: VAEConfig, channels: int) -> nn.GroupNorm:
    """Return the one kind of norm there is in the autoencoder."""
    return nn.GroupNorm(config.norm_num_groups, channels, eps=config.norm_eps)


def _resnets(config: VAEConfig, count: int, in_channels: int, out_channels: int) -> nn.ModuleList:
    """Return residual blocks in a row, of which the first changes the width."""
    widths = [in_channels] + [out_channels] * (count - 1)
    return nn.ModuleList([ResnetBlock(config, width, out_channels) for width in widths])
