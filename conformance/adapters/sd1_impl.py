"""The suite's own from-scratch implementation as a port."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from conformance import __version__
from conformance.adapters.torch_module import TorchPort
from sd1_impl.config import UNetConfig
from sd1_impl.unet import UNet

if TYPE_CHECKING:
    from conformance.variants import Variant


def _build_unet(variant: Variant) -> nn.Module:
    architecture = variant.architecture("unet")
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in architecture.items()
    }
    with torch.device("meta"):
        return UNet(UNetConfig(**fields))


def _call_unet(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    sample = module(tensors["sample"], tensors["timestep"], tensors["encoder_hidden_states"])
    return {"sample": sample}


def port() -> TorchPort:
    """Return sd1_impl as a port."""
    return TorchPort("sd1_impl", __version__, {"unet": (_build_unet, _call_unet)})
