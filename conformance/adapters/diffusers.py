"""diffusers itself as a port: the reference judged by its own suite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import diffusers
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from conformance.adapters.torch_module import TorchPort
from conformance.export import diffusers_config

if TYPE_CHECKING:
    from conformance.variants import Variant


def build_unet(variant: Variant) -> nn.Module:
    """Build diffusers' UNet of a variant on the meta device, unmodified."""
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(
            diffusers_config("unet", variant.architecture("unet"))
        )


def call_unet(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Call diffusers' UNet with the tensors of the border."""
    (sample,) = module(
        tensors["sample"],
        tensors["timestep"],
        tensors["encoder_hidden_states"],
        return_dict=False,
    )
    return {"sample": sample}


def port() -> TorchPort:
    """Return diffusers as a port."""
    return TorchPort("diffusers", diffusers.__version__, {"unet": (build_unet, call_unet)})
