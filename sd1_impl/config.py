"""Every number of Stable Diffusion v1's networks, named, with the place where it is written down.

Those of the schedulers are in `sd1_impl.scheduler_config`.

Sources, by the short names used below:

- *v1-inference.yaml*: ``configs/stable-diffusion/v1-inference.yaml`` of CompVis/stable-diffusion;
- *config.json*: ``config.json`` of the part in question (``unet``, ``vae``, ``text_encoder``) in
  the published diffusers checkpoint of SD v1-5;
- *ldm/...*: a module of the CompVis code;
- *clip/model.py*: that module of openai/CLIP, which wrote the text encoder.
"""

from dataclasses import dataclass, replace


def _check_groups(width: int, groups: int) -> None:
    """Refuse a width that GroupNorm cannot split."""
    if width % groups:
        raise ValueError(f"width {width} is not divisible by {groups} norm groups")


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a Stable Diffusion v1 UNet; the defaults are SD v1 itself.

    Tuples have one entry per resolution level, from the finest to the coarsest. The mid block takes
    the last entry, the up blocks read the tuples backwards.

    Attributes:
        in_channels: Channels of the sample: 4 latents; for inpainting 9, which are 4 latents,
            1 mask and 4 latents of the masked image (*v1-inpainting-inference.yaml*).
        out_channels: Channels of the prediction, those of the latents.
        block_out_channels: Width per level: ``model_channels`` 320 times ``channel_mult``
            (1, 2, 4, 4) (*v1-inference.yaml*).
        layers_per_block: Residual blocks per down block; an up block has one more, because it also
            reads the skip of the downsampler or of ``conv_in`` (``num_res_blocks``).
        has_attention: Whether a level has spatial transformers: at downsampling factors 1, 2 and 4,
            not at 8 (``attention_resolutions`` [4, 2, 1]). The mid block always has one.
        num_heads: Attention heads per level, of size ``width // num_heads`` (``num_heads: 8``;
            *config.json* calls this number ``attention_head_dim``, which it is not).
        cross_attention_dim: Width of ``encoder_hidden_states``, the CLIP ViT-L/14 text encoder's
            (``context_dim``).
        feed_forward_ratio: Hidden width of the GEGLU feed-forward over the token width
            (``FeedForward(mult=4)``, *ldm/modules/attention.py*).
        time_embed_ratio: Width of the time embedding over the finest level's width
            (``time_embed_dim = model_channels * 4``, *ldm/.../openaimodel.py*).
        max_period: Bound of the longest wavelength of the timestep embedding, over 2 pi
            (``timestep_embedding``, *ldm/.../diffusionmodules/util.py*).
        freq_shift: Frequency k of n is ``max_period ** (-k / (n - freq_shift))`` (*config.json*;
            the DDPM and Transformer code of the time used 1).
        flip_sin_to_cos: Whether the cosine half comes first (*config.json*).
        norm_num_groups: Groups of every GroupNorm (``GroupNorm32``, *ldm/.../util.py*).
        resnet_norm_eps: GroupNorm eps in the residual blocks (PyTorch's default in ``GroupNorm32``;
            ``norm_eps`` in *config.json*).
        transformer_norm_eps: GroupNorm eps at the entrance of the spatial transformers
            (``Normalize``, *ldm/modules/attention.py*): ten times smaller than the resnets'.
        layer_norm_eps: LayerNorm eps in the transformer blocks (PyTorch's default).
        conv_norm_out_eps: GroupNorm eps before ``conv_out`` (``GroupNorm32``; ``norm_eps``).

    Raises:
        ValueError: If the tuples differ in length, if a width is not divisible by
            ``norm_num_groups``, or if the finest width is odd.
    """

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    has_attention: tuple[bool, ...] = (True, True, True, False)
    num_heads: tuple[int, ...] = (8, 8, 8, 8)
    cross_attention_dim: int = 768
    feed_forward_ratio: int = 4
    time_embed_ratio: int = 4
    max_period: int = 10_000
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    norm_num_groups: int = 32
    resnet_norm_eps: float = 1e-5
    transformer_norm_eps: float = 1e-6
    layer_norm_eps: float = 1e-5
    conv_norm_out_eps: float = 1e-5

    def __post_init__(self) -> None:
        """Refuse what cannot be a UNet, before PyTorch fails somewhere deep inside."""
        levels = len(self.block_out_channels)
        for name in ("has_attention", "num_heads"):
            entries = len(getattr(self, name))
            if entries != levels:
                raise ValueError(f"{name} has {entries} entries for {levels} levels")
        for width in self.block_out_channels:
            _check_groups(width, self.norm_num_groups)
        if self.block_out_channels[0] % 2:
            raise ValueError(
                f"width {self.block_out_channels[0]} has no equal sine and cosine halves"
            )

    @property
    def time_embed_dim(self) -> int:
        """Width of the time embedding that every residual block reads."""
        return self.block_out_channels[0] * self.time_embed_ratio


SD_V1_UNET = UNetConfig()
"""Stable Diffusion v1-1 to v1-5: 859,520,964 parameters."""

SD_V1_INPAINT_UNET = replace(SD_V1_UNET, in_channels=9)
"""Stable Diffusion v1-5 inpainting: the same UNet with a wider ``conv_in``."""


@dataclass(frozen=True)
class TextEncoderConfig:
    """The shape of CLIP's text encoder; the defaults are ViT-L/14's, which SD v1 uses.

    *v1-inference.yaml* only names it (``FrozenCLIPEmbedder``); the numbers are those of the
    published CLIP ViT-L/14 and of *config.json*.

    Attributes:
        vocab_size: Rows of the token table: 256 bytes, alone and ending a word, 48,894 merges, and
            the start and the end of a text (openai/CLIP, *clip/simple_tokenizer.py*).
        hidden_size: Width of the residual stream; the UNet's ``cross_attention_dim``.
        intermediate_size: Hidden width of the feed-forward, 4 times ``hidden_size``
            (``ResidualAttentionBlock``, *clip/model.py*).
        num_layers: Transformer layers. SD v1 reads the last; "clip skip" would read an earlier one.
        num_heads: Attention heads, of size 64 (``transformer_heads = transformer_width // 64``,
            *clip/model.py*).
        max_position_embeddings: Rows of the position table, the longest text (``context_length``).
        layer_norm_eps: LayerNorm eps everywhere (PyTorch's default; *config.json*).
        quick_gelu_coefficient: Steepness of the sigmoid that stands in for GELU's normal
            distribution (``QuickGELU``, *clip/model.py*; Hendrycks and Gimpel, 2016, section 2).
        eos_token_id: Id of the end of a text, whose last hidden state is the pooled output.
            *config.json* says 2, which transformers reads as "the largest id in the text": this.

    Raises:
        ValueError: If the heads do not divide the width, or if ``eos_token_id`` has no row.
    """

    vocab_size: int = 49_408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    max_position_embeddings: int = 77
    layer_norm_eps: float = 1e-5
    quick_gelu_coefficient: float = 1.702
    eos_token_id: int = 49_407

    def __post_init__(self) -> None:
        """Refuse what cannot be a text encoder."""
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by {self.num_heads} heads"
            )
        if not 0 <= self.eos_token_id < self.vocab_size:
            raise ValueError(
                f"eos_token_id {self.eos_token_id} is outside the vocabulary of {self.vocab_size}"
            )


SD_V1_TEXT_ENCODER = TextEncoderConfig()
"""CLIP ViT-L/14's text encoder, frozen in all of Stable Diffusion v1: 123,060,480 parameters."""


@dataclass(frozen=True)
class VAEConfig:
    """The shape of Stable Diffusion v1's autoencoder; the defaults are SD v1 itself.

    Attributes:
        in_channels: Channels of the image.
        out_channels: Channels of the decoded image (``out_ch``, *v1-inference.yaml*).
        latent_channels: Channels of the latents (``z_channels`` and ``embed_dim``).
        block_out_channels: Width per resolution level, from the finest to the coarsest: ``ch`` 128
            times ``ch_mult`` (1, 2, 4, 4). Each level but the last halves the size.
        layers_per_block: Residual blocks per level of the encoder; the decoder has one more
            (``num_res_blocks``).
        norm_num_groups: Groups of every GroupNorm (``Normalize``,
            *ldm/modules/diffusionmodules/model.py*).
        norm_eps: GroupNorm eps everywhere, residual blocks included (``Normalize``): ten times
            smaller than in the UNet's residual blocks.
        scaling_factor: What the UNet's latents are multiplied by: one over the standard deviation
            of latents, estimated once (``scale_factor``; LDM, appendix G).
        logvar_min: Lower bound of the posterior's log-variance (``DiagonalGaussianDistribution``,
            *ldm/modules/distributions/distributions.py*).
        logvar_max: Upper bound, from the same place.

    Raises:
        ValueError: If there is no level, or if a width is not divisible by ``norm_num_groups``.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-6
    scaling_factor: float = 0.18215
    logvar_min: float = -30.0
    logvar_max: float = 20.0

    def __post_init__(self) -> None:
        """Refuse what cannot be an autoencoder."""
        if not self.block_out_channels:
            raise ValueError("block_out_channels is empty: there is no level")
        for width in self.block_out_channels:
            _check_groups(width, self.norm_num_groups)

    @property
    def downsampling_factor(self) -> int:
        """How many times smaller than the image the latents are, per side: 8."""
        return 2 ** (len(self.block_out_channels) - 1)


SD_V1_VAE = VAEConfig()
"""The autoencoder of Stable Diffusion v1-1 to v1-5 ("kl-f8"): 83,653,863 parameters."""
