"""The toy's networks: the topology of Stable Diffusion v1, block for block, at small width.

The widths are those of the size "toy" in ``golden/spec/variants.json``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sd1_impl.config import TextEncoderConfig, UNetConfig, VAEConfig
from sd1_impl.synthetic import architecture
from sd1_impl.text_encoder import CLIPTextEncoder
from sd1_impl.unet import UNet
from sd1_impl.vae import AutoencoderKL

SIZE = "toy"

_TOKEN_SCALE, _POSITION_SCALE = 0.02, 0.01
"""Standard deviations of untrained embeddings (``initialize_parameters``, *clip/model.py*)."""


@dataclass(frozen=True, eq=False)
class Networks:
    """The three networks.

    Attributes:
        text_encoder: Untrained; rows of words that no caption has are zero.
        unet: Predicts no noise yet: what a block adds to its input begins with zero.
        vae: Untrained.
    """

    text_encoder: CLIPTextEncoder
    unet: UNet
    vae: AutoencoderKL


def untrained(token_ids: Tensor, seed: int) -> Networks:
    """Make the networks that training begins with.

    Args:
        token_ids: Ids of the tokens that occur in captions.
        seed: Of the weights.
    """
    torch.manual_seed(seed)
    text_encoder = CLIPTextEncoder(TextEncoderConfig(**architecture("text_encoder", SIZE)))
    unet = UNet(UNetConfig(**architecture("unet", SIZE)))
    with torch.no_grad():
        embeddings = text_encoder.text_model.embeddings
        embeddings.position_embedding.weight.normal_(std=_POSITION_SCALE)
        table = embeddings.token_embedding.weight
        table.zero_()
        table[token_ids] = torch.randn(len(token_ids), table.shape[1]) * _TOKEN_SCALE
        for name, parameter in unet.named_parameters():
            # ``zero_module``, *ldm/modules/diffusionmodules/util.py*
            if name.startswith("conv_out") or ".conv2." in name or ".proj_out." in name:
                parameter.zero_()
    return Networks(text_encoder, unet, AutoencoderKL(VAEConfig(**architecture("vae", SIZE))))


def standardise_latents(vae: AutoencoderKL, latents: Tensor) -> None:
    """Give latents the mean 0 and the standard deviation 1 that a UNet is trained on.

    SD v1 multiplies by 0.18215, one over the standard deviation that its autoencoder happened to
    have. Another has another: here it is put into the 1x1 convolutions on either side of the
    latents, channel by channel, which leaves every decoded picture as it was.

    Args:
        vae: The autoencoder; changed.
        latents: ``(B, 4, h, w)``, not scaled, of many pictures.
    """
    channels = latents.shape[1]
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))  # (4,)
    gain = 1 / (std * vae.config.scaling_factor)
    encode, decode = vae.quant_conv, vae.post_quant_conv
    with torch.no_grad():
        decode.bias += decode.weight[:, :, 0, 0] @ mean
        decode.weight /= gain[None, :, None, None]
        encode.weight[:channels] *= gain[:, None, None, None]
        encode.bias[:channels] = (encode.bias[:channels] - mean) * gain
        encode.bias[channels:] += 2 * gain.log()  # the logarithm of the variance


def parameter_count(*networks: nn.Module) -> int:
    """Return the number of weights, without the table of tokens."""
    return sum(
        weight.numel()
        for network in networks
        for name, weight in network.named_parameters()
        if "token_embedding" not in name
    )
