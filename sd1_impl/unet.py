"""The UNet of Stable Diffusion v1: noisy latents, a time and a prompt in; the noise out.

Source: LDM (Rombach et al., 2022), figure 3 and section 3.3; ``UNetModel`` of
``ldm/modules/diffusionmodules/openaimodel.py``. Attribute names are the keys of the diffusers
checkpoint. Read `UNet.forward` first: it is that figure; the blocks above it are its columns.

Shapes: B batch, C channels, H W height and width of the latents (an eighth of the picture's),
T width of the time embedding, L tokens of the prompt (77), E their width (768).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd1_impl.attention import SpatialTransformer
from sd1_impl.config import UNetConfig
from sd1_impl.embeddings import TimestepEmbedding, Timesteps
from sd1_impl.network_inputs import check_context, check_kind, check_map
from sd1_impl.resnet import Downsample, ResnetBlock, Upsample


class DownBlock(nn.Module):
    """One level of the way down: residual blocks, each with its transformer, then half the size.

    Args:
        config: The UNet's numbers.
        level: Which entry of the config's tuples.
        in_channels: Width of the incoming map.
    """

    def __init__(self, config: UNetConfig, level: int, in_channels: int) -> None:
        super().__init__()
        width, heads = config.block_out_channels[level], config.num_heads[level]
        self.has_attention = config.has_attention[level]
        self.resnets = nn.ModuleList()
        self.attentions = nn.ModuleList()
        self.downsamplers = nn.ModuleList()
        for _ in range(config.layers_per_block):
            self.resnets.append(ResnetBlock(config, in_channels, width))
            if self.has_attention:
                self.attentions.append(SpatialTransformer(config, width, heads))
            in_channels = width
        if level < len(config.block_out_channels) - 1:
            self.downsamplers.append(Downsample(width))

    def forward(self, hidden: Tensor, temb: Tensor, context: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Go one level down.

        Args:
            hidden: ``(B, in_channels, H, W)``.
            temb: ``(B, T)``.
            context: ``(B, L, E)``.

        Returns:
            The map for the next level, and the maps that the way up will want back: the output
            of every layer and of the downsampler.
        """
        skips = []
        for i, resnet in enumerate(self.resnets):
            hidden = resnet(hidden, temb)
            if self.has_attention:
                hidden = self.attentions[i](hidden, context)
            skips.append(hidden)
        for downsample in self.downsamplers:
            hidden = downsample(hidden)
            skips.append(hidden)
        return hidden, skips


class MidBlock(nn.Module):
    """The bottom: residual block, transformer, residual block.

    Args:
        config: The UNet's numbers; width and heads are the last level's.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        width, heads = config.block_out_channels[-1], config.num_heads[-1]
        self.attentions = nn.ModuleList([SpatialTransformer(config, width, heads)])
        self.resnets = nn.ModuleList([ResnetBlock(config, width, width) for _ in range(2)])

    def forward(self, hidden: Tensor, temb: Tensor, context: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to the same shape, given ``(B, T)`` and ``(B, L, E)``."""
        hidden = self.resnets[0](hidden, temb)
        hidden = self.attentions[0](hidden, context)
        return self.resnets[1](hidden, temb)


class UpBlock(nn.Module):
    """One level of the way up: as on the way down, but each layer also reads a skip connection.

    Args:
        config: The UNet's numbers.
        level: Which entry of the config's tuples.
        in_channels: Width of the incoming map.
        skip_channels: Width of each skip connection, in the order in which they are read.
    """

    def __init__(
        self, config: UNetConfig, level: int, in_channels: int, skip_channels: Sequence[int]
    ) -> None:
        super().__init__()
        width, heads = config.block_out_channels[level], config.num_heads[level]
        self.has_attention = config.has_attention[level]
        self.resnets = nn.ModuleList()
        self.attentions = nn.ModuleList()
        self.upsamplers = nn.ModuleList()
        for skip_width in skip_channels:
            self.resnets.append(ResnetBlock(config, in_channels + skip_width, width))
            if self.has_attention:
                self.attentions.append(SpatialTransformer(config, width, heads))
            in_channels = width
        if level > 0:
            self.upsamplers.append(Upsample(width))

    def forward(
        self,
        hidden: Tensor,
        temb: Tensor,
        context: Tensor,
        skips: Sequence[Tensor],
        size: Sequence[int],
    ) -> Tensor:
        """Go one level up.

        Args:
            hidden: ``(B, in_channels, H, W)``.
            temb: ``(B, T)``.
            context: ``(B, L, E)``.
            skips: One ``(B, skip_channels[i], H, W)`` per layer.
            size: Height and width of the result, those of the next level's skips.

        Returns:
            ``(B, width of the level, *size)``.
        """
        for i, (resnet, skip) in enumerate(zip(self.resnets, skips, strict=True)):
            hidden = torch.cat([hidden, skip], dim=1)
            hidden = resnet(hidden, temb)
            if self.has_attention:
                hidden = self.attentions[i](hidden, context)
        for upsample in self.upsamplers:
            hidden = upsample(hidden, size)
        return hidden


class UNet(nn.Module):
    """The denoiser of Stable Diffusion v1.

    Args:
        config: Its shape.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.block_out_channels

        self.time_proj = Timesteps(
            widths[0],
            max_period=config.max_period,
            freq_shift=config.freq_shift,
            flip_sin_to_cos=config.flip_sin_to_cos,
        )
        self.time_embedding = TimestepEmbedding(widths[0], config.time_embed_dim)
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], kernel_size=3, padding=1)

        # Like the forward pass: the way down pushes the widths of its skips, the way up pops them.
        skips = [widths[0]]
        self.down_blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            block = DownBlock(config, level, in_channels=skips[-1])
            self.down_blocks.append(block)
            skips += [width] * (len(block.resnets) + len(block.downsamplers))

        self.mid_block = MidBlock(config)

        hidden = widths[-1]
        self.up_blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            popped = [skips.pop() for _ in range(config.layers_per_block + 1)]
            self.up_blocks.append(UpBlock(config, level, hidden, popped))
            hidden = widths[level]

        self.conv_norm_out = nn.GroupNorm(
            config.norm_num_groups, widths[0], eps=config.conv_norm_out_eps
        )
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, kernel_size=3, padding=1)

    def forward(
        self, sample: Tensor, timestep: float | Tensor, encoder_hidden_states: Tensor
    ) -> Tensor:
        """Predict the noise in the sample.

        Args:
            sample: ``(B, in_channels, H, W)``, latents (times 0.18215), any H and W, in the model's
                dtype and memory format.
            timestep: 0 to 999, an int, a float, or a tensor of shape ``()``, ``(1,)`` or ``(B,)``
                and of any real dtype.
            encoder_hidden_states: ``(B, L, E)``, the prompt's, in the model's dtype.

        Returns:
            ``(B, out_channels, H, W)`` in the model's dtype: the predicted noise.

        Raises:
            ValueError: If a shape, dtype or device does not fit the model or the others.
        """
        self._check(sample, encoder_hidden_states)
        temb = self.time_embedding(self.time_proj(_per_sample(timestep, sample)).to(sample.dtype))

        hidden = self.conv_in(sample)
        skips = [hidden]
        for block in self.down_blocks:
            hidden, block_skips = block(hidden, temb, encoder_hidden_states)
            skips += block_skips

        hidden = self.mid_block(hidden, temb, encoder_hidden_states)

        for block in self.up_blocks:
            block_skips = [skips.pop() for _ in range(self.config.layers_per_block + 1)]
            size = skips[-1].shape[-2:] if skips else sample.shape[-2:]
            hidden = block(hidden, temb, encoder_hidden_states, block_skips, size)

        return self.conv_out(F.silu(self.conv_norm_out(hidden)))

    def _check(self, sample: Tensor, context: Tensor) -> None:
        """Name what is wrong, instead of failing inside a convolution."""
        name, width = "encoder_hidden_states", self.config.cross_attention_dim
        check_map("sample", sample, self.config.in_channels)
        check_context(name, context, width, batch=sample.shape[0])
        check_kind("sample", sample, self)
        check_kind(name, context, self)


def _per_sample(timestep: float | Tensor, sample: Tensor) -> Tensor:
    """Give every sample its timestep, ``(B,)``, in float32 or in a float64 sample's float64."""
    dtype = torch.promote_types(sample.dtype, torch.float32)
    timesteps = torch.as_tensor(timestep, dtype=dtype, device=sample.device)
    batch = sample.shape[0]
    if timesteps.shape not in ((), (1,), (batch,)):
        raise ValueError(f"timestep has shape {tuple(timesteps.shape)}, expected () or ({batch},)")
    return timesteps.expand(batch)
