"""The losses of `sd1_impl` and their gradients, behind the port contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from conformance.adapters.sd1_impl_networks import build_text_encoder, build_unet, build_vae
from conformance.adapters.torch_training import Objective, Observe, loader
from conformance.training import FOLDERS, TEXT_TRAINING, TRAINED, TRAINING, VAE_TRAINING
from sd1_impl import training
from sd1_impl.scheduler_config import DDPMConfig
from sd1_impl.schedulers.ddpm import DDPMScheduler

if TYPE_CHECKING:
    from conformance.adapters.torch_module import Load

_BUILD = {"unet": build_unet, "text_encoder": build_text_encoder, "vae": build_vae}


def _denoising(networks: Any, tensors: Mapping[str, Any], observe: Observe) -> Tensor:
    states = tensors.get("encoder_hidden_states")
    if states is None:
        states, _ = networks["text_encoder"](tensors["input_ids"])
    found = training.denoising_loss(
        networks["unet"],
        DDPMScheduler(DDPMConfig(**tensors["config"])),
        tensors["latents"],
        tensors["timesteps"],
        tensors["noise"],
        states,
    )
    observe("noisy_latents", found.noisy_latents)
    observe("target", found.target)
    observe("model_output", found.model_output)
    return found.loss


def _autoencoding(networks: Any, tensors: Mapping[str, Any], observe: Observe) -> Tensor:
    found = training.autoencoder_loss(
        networks["vae"], tensors["image"], tensors["noise"], tensors["config"]["kl_weight"]
    )
    observe("mean", found.posterior.mean)
    observe("logvar", found.posterior.logvar)
    observe("latents", found.latents)
    observe("reconstruction", found.reconstruction)
    return found.loss


_OBJECTIVES: dict[str, Objective] = {
    TRAINING: _denoising,
    TEXT_TRAINING: _denoising,
    VAE_TRAINING: _autoencoding,
}

LOADERS: dict[str, Load] = {
    name: loader({folder: _BUILD[folder] for folder in FOLDERS[name]}, TRAINED[name], objective)
    for name, objective in _OBJECTIVES.items()
}
"""By component."""
