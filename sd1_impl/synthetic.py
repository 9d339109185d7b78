"""Stable Diffusion v1 with random weights, for those who have no trained ones.

Everything runs, and every step can be watched, but the picture means nothing: it is coloured noise.
The sizes are those of ``golden/spec/variants.json``: "tiny" takes seconds, "sd1" is as large, and
as slow, as the trained model.
"""

from typing import Any

import torch
from torch import nn

from sd1_impl.config import TextEncoderConfig, UNetConfig, VAEConfig
from sd1_impl.pipeline import Text2Image
from sd1_impl.scheduler_config import SD_V1_PNDM
from sd1_impl.schedulers import PNDMScheduler
from sd1_impl.text_encoder import CLIPTextEncoder
from sd1_impl.tokenizer import CLIPTokenizer
from sd1_impl.unet import UNet
from sd1_impl.vae import AutoencoderKL
from sd1_weights.sizes import sizes


def synthetic_pipeline(
    size: str = "tiny",
    *,
    pipeline: type[Text2Image] = Text2Image,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Text2Image:
    """Build a pipeline with random weights, and SD v1's tokenizer and scheduler.

    Args:
        size: "tiny" (17 million parameters), "odd" (widths that divide badly) or "sd1" (SD v1's
            1,066 million); "tiny-inpaint" and "sd1-inpaint" have a UNet made for inpainting.
        pipeline: What to build: `Text2Image`, `Image2Image` or `Inpaint`.
        seed: Of the weights; the same seed gives the same weights in every dtype.
        dtype: Of the weights, any floating one.
        device: Where they end.

    Returns:
        The pipeline.

    Raises:
        ValueError: If there is no such size, or if the pipeline has no use for its UNet.
    """
    with torch.device("meta"):
        networks = {
            "text_encoder": CLIPTextEncoder(
                TextEncoderConfig(**architecture("text_encoder", size))
            ),
            "unet": UNet(UNetConfig(**architecture("unet", size))),
            "vae": AutoencoderKL(VAEConfig(**architecture("vae", size))),
        }
    pipe = pipeline(CLIPTokenizer(), **networks, scheduler=PNDMScheduler(SD_V1_PNDM))
    generator = torch.Generator().manual_seed(seed)
    for network in networks.values():
        randomise(network.to_empty(device="cpu"), generator)
        network.to(device, dtype)
    return pipe


@torch.no_grad()
def randomise(network: nn.Module, generator: torch.Generator) -> None:
    """Draw weights that keep activations at about unit variance, whatever the depth.

    A weight of n inputs has variance 1 / n (LeCun et al., "Efficient BackProp", 1998, section 4.6);
    biases are 0 and norms change nothing.

    Args:
        network: One of this package's, on the CPU; all of its parameters are overwritten.
        generator: Where the draws come from, in the order of the modules.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            inputs = module.weight[0].numel()
            module.weight.normal_(std=inputs**-0.5, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(generator=generator)
        elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.reset_parameters()


def architecture(component: str, size: str) -> dict[str, Any]:
    """Return a component's widths and depths, as arguments of its config."""
    if size not in sizes("unet"):
        raise ValueError(f"size is {size!r}, expected one of {', '.join(sizes('unet'))}")
    # Only the UNet is another one for inpainting.
    own = sizes(component).get(size) or sizes(component)[size.removesuffix("-inpaint")]
    return {k: tuple(v) if isinstance(v, list) else v for k, v in own.items()}
