"""The networks, their blocks and the tokenizer of `sd1_impl`, behind the port contract."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from conformance.errors import UnsupportedError
from conformance.port import Arrays
from conformance.spec import BLOCKS
from sd1_impl.attention_kernels import use_kernel
from sd1_impl.config import TextEncoderConfig, UNetConfig, VAEConfig
from sd1_impl.packed import can_pack, pack
from sd1_impl.savings import use_saving
from sd1_impl.text_encoder import CLIPTextEncoder
from sd1_impl.tokenizer import CLIPTokenizer
from sd1_impl.unet import UNet
from sd1_impl.vae import AutoencoderKL

if TYPE_CHECKING:
    from conformance.adapters.torch_module import Build, Call
    from conformance.variants import Variant

Tensors = dict[str, Tensor]


def _fields(variant: Variant, component: str) -> dict[str, Any]:
    """Return an architecture as keyword arguments of a config."""
    architecture = variant.architecture(component)
    return {k: tuple(v) if isinstance(v, list) else v for k, v in architecture.items()}


def build_unet(variant: Variant) -> nn.Module:
    """Build the UNet of a variant on the meta device."""
    with torch.device("meta"):
        return UNet(UNetConfig(**_fields(variant, "unet")))


def _call_unet(module: nn.Module, tensors: Tensors) -> Tensors:
    sample = module(tensors["sample"], tensors["timestep"], tensors["encoder_hidden_states"])
    return {"sample": sample}


def build_text_encoder(variant: Variant) -> nn.Module:
    """Build the text encoder of a variant on the meta device."""
    with torch.device("meta"):
        return CLIPTextEncoder(TextEncoderConfig(**_fields(variant, "text_encoder")))


def _call_text_encoder(module: nn.Module, tensors: Tensors) -> Tensors:
    last_hidden_state, pooler_output = module(tensors["input_ids"])
    return {"last_hidden_state": last_hidden_state, "pooler_output": pooler_output}


def _build_vae_encoder(variant: Variant) -> nn.Module:
    vae = build_vae(variant)
    del vae.decoder, vae.post_quant_conv
    return vae


def _build_vae_decoder(variant: Variant) -> nn.Module:
    vae = build_vae(variant)
    del vae.encoder, vae.quant_conv
    return vae


def build_vae(variant: Variant) -> nn.Module:
    """Build the whole VAE of a variant on the meta device."""
    with torch.device("meta"):
        return AutoencoderKL(VAEConfig(**_fields(variant, "vae_encoder")))


def _call_vae_encoder(module: Any, tensors: Tensors) -> Tensors:
    posterior = module.encode(tensors["image"])
    latents = module.sample_latents(posterior, tensors["noise"])
    return {"mean": posterior.mean, "logvar": posterior.logvar, "latents": latents}


def _call_vae_decoder(module: Any, tensors: Tensors) -> Tensors:
    return {"image": module.decode(tensors["latents"])}


def _build_block(path: str, variant: Variant) -> nn.Module:
    return build_unet(variant).get_submodule(path)


def _call_block(module: nn.Module, tensors: Tensors) -> Tensors:
    return {"out": module(*(tensors[str(i)] for i in range(len(tensors))))}


def use_attention(module: nn.Module, backend: str) -> int:
    """Let the attentions of a network be `plain` or `sliced`; return how many they are."""
    return use_kernel(module, backend)


def pack_weights(module: nn.Module) -> int:
    """Lay the weights of networks out for the kernels of a CPU; return of how many layers.

    Raises:
        UnsupportedError: There are no such kernels for their dtype or device.
    """
    weight = next(module.parameters())
    if not can_pack(weight.dtype, weight.device):
        message = f"no packed weights in {weight.dtype} on {weight.device}"
        raise UnsupportedError(message)
    return pack(module)


def save_memory(module: nn.Module, saving: str) -> int:
    """Let networks save memory; return in how many places they do."""
    return use_saving(module, saving)


class Tokenizer:
    """sd1_impl's tokenizer behind the port contract."""

    def __init__(self) -> None:
        self.tokenizer = CLIPTokenizer()

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        probes: Collection[str] = (),  # noqa: ARG002 - a tokenizer has none
        replace: Mapping[str, np.ndarray] | None = None,  # noqa: ARG002
    ) -> tuple[Arrays, Arrays]:
        """Tokenize; see `conformance.port.Component`."""
        return {"input_ids": self.tokenizer(inputs["text"].tolist()).numpy()}, {}


NETWORKS: dict[str, tuple[Build, Call]] = {
    "text_encoder": (build_text_encoder, _call_text_encoder),
    "unet": (build_unet, _call_unet),
    "vae_encoder": (_build_vae_encoder, _call_vae_encoder),
    "vae_decoder": (_build_vae_decoder, _call_vae_decoder),
    **{name: (partial(_build_block, block.path), _call_block) for name, block in BLOCKS.items()},
}
"""By component: builds the network or block of a variant on the meta device; calls it."""
